"""Running our graphs in ONNX Runtime, the way the runtime does but in the plainest form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from llmc.runtime.quiet_onnxruntime import onnxruntime as ort


class GraphSession:
    """A graph with caches of its own, starting at zero entries per row."""

    def __init__(self, path: Path, batch: int, capacity: int = 64) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        # Blocked int4 DequantizeLinear becomes MatMulNBits inside ONNX Runtime, by default with int8 activations.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.window = capacity  # entries that steps look at, if the graph has a choice
        self.caches = {
            i.name: np.zeros([batch, i.shape[1], capacity, i.shape[3]], np.int8 if "int8" in i.type else np.float32)
            for i in self.session.get_inputs()
            if i.name.startswith("past.")
        }

    def feeds(
        self, ids: torch.Tensor, start: list[int], logits_index: list[list[int]] | None = None
    ) -> dict[str, np.ndarray]:
        batch, length = ids.shape
        first = np.array(start, np.int64)
        index = np.tile(np.arange(length), (batch, 1)) if logits_index is None else np.array(logits_index)
        window = np.zeros(self.window, np.int8)
        windows = {"window": window} if any(i.name == "window" for i in self.session.get_inputs()) else {}
        return windows | {
            "input_ids": ids.numpy(),
            "position_ids": first[:, None] + np.arange(length),
            "cache_position": first,
            "logits_index": index,
        }

    def step(
        self,
        ids: torch.Tensor,
        start: list[int],
        logits_index: list[list[int]] | None = None,
        previous_hidden: torch.Tensor | None = None,
        **images: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits [B, L, V] and hidden [B, S, H]; the caches move on."""
        feeds = self.feeds(ids, start, logits_index) | self.caches
        feeds |= {name: value.numpy() for name, value in images.items()}
        if previous_hidden is not None:
            feeds["previous_hidden"] = previous_hidden.numpy()
        names = [output.name for output in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(names, feeds), strict=True))
        self.caches = {name: outputs[name.replace("past", "present")] for name in self.caches}
        hidden = outputs.get("hidden")
        return torch.from_numpy(outputs["logits"]), None if hidden is None else torch.from_numpy(hidden)


def divergences(expected: torch.Tensor, got: torch.Tensor) -> torch.Tensor:
    """The KL divergence of each position's next-token distribution, from logits [..., V]."""
    p, q = (torch.log_softmax(logits.double(), -1) for logits in (expected, got))
    return (p.exp() * (p - q)).sum(-1)
