"""The importance matrix that llama.cpp's quantization takes: of every weight's inputs the mean squares, over the
calibration text that the other tools get.

llama.cpp's own tool for it is not in its Python package. The numbers are the same: sums of squares over the tokens that
a matrix sees, an expert those that are routed to it, divided by their count. `attn_v_b` has none here, as the torch
blocks do not have its inputs; llama.cpp then weighs all of them alike.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import CausalLM, Linear
from llmc.convert.spec import LatentAttentionSpec
from llmc.convert.tensor_names import ModuleName

_NAMES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "q_a_proj": "attn_q_a",
    "q_b_proj": "attn_q_b",
    "kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


class _Sums:
    """Of one tensor: of every expert, or only 0, the sum of squares [in], and how many tokens there were."""

    def __init__(self) -> None:
        self.squares: dict[int, torch.Tensor] = {}
        self.tokens: dict[int, int] = defaultdict(int)

    def add(self, x: torch.Tensor, expert: int = 0) -> None:
        x = x.flatten(0, -2).float()
        found = x.square().sum(0)
        self.squares[expert] = self.squares[expert] + found if expert in self.squares else found
        self.tokens[expert] += len(x)

    def means(self, experts: int) -> NDArray[np.float32]:
        """An expert that saw no token gets the mean of the others."""
        mean = sum(self.squares.values()) / max(1, sum(self.tokens.values()))
        each = [self.squares[i] / self.tokens[i] if self.tokens[i] else mean for i in range(experts)]
        return torch.cat(each).numpy()


def importance(source: Path, ids: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
    """GGUF's tensor names → mean squares, of experts one row after the other; ids [N, L]."""
    model, sums, experts = CausalLM.load(Checkpoint.open(source)), defaultdict[str, _Sums](_Sums), dict[str, int]()
    spec = model.spec
    for index in range(spec.num_layers):
        for name, module in model.layers[index].named_modules():
            parsed = ModuleName.parse(name)
            if isinstance(module, Linear) and parsed.projection in _NAMES:
                suffix = "_shexp" if "shared" in name else "_exps" if parsed.expert is not None else ""
                tensor = f"blk.{index}.{_NAMES[parsed.projection]}{suffix}.weight"
                experts[tensor] = max(experts.get(tensor, 0), (parsed.expert or 0) + 1)
                module.register_forward_pre_hook(_watch(sums[tensor], parsed.expert or 0))
                attention = spec.attentions[index]
                if parsed.projection in ("q_proj", "q_b_proj") and isinstance(attention, LatentAttentionSpec):
                    tensor = f"blk.{index}.attn_k_b.weight"
                    experts[tensor] = attention.num_heads
                    module.register_forward_hook(_watch_queries(sums[tensor], attention))
    head = sums["token_embd.weight" if spec.tie_word_embeddings else "output.weight"]
    for row in torch.from_numpy(ids):
        head.add(model.hidden(row[None]))
    return {name: found.means(experts.get(name, 1)) for name, found in sums.items() if found.tokens}


def _watch(sums: _Sums, expert: int) -> Any:
    return lambda module, inputs: sums.add(inputs[0], expert)


def _watch_queries(sums: _Sums, attention: LatentAttentionSpec) -> Any:
    """llama.cpp multiplies the part of each head's query that is not rotated by its part of kv_b_proj."""

    def hook(module: Linear, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        heads = output.unflatten(-1, (attention.num_heads, -1))[..., : attention.qk_nope_head_dim]
        for head in range(attention.num_heads):
            sums.add(heads[..., head, :], head)

    return hook
