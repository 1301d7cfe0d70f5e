"""What the original said about the check text: the yardstick that travels with the artifact."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import load_final_norm, load_lm_head
from llmc.convert.safetensors_file import SafetensorsWriter
from llmc.quant.stream import Stream

KEPT = 64  # log-probabilities per position
_LOGITS_BYTES = 1 << 28


@torch.no_grad()
def write_reference(
    checkpoint: Checkpoint,
    ids: torch.Tensor,
    original: Stream,
    quantised: Stream,
    path: Path,
    progress: Callable[[int, int], None],
) -> tuple[float, float]:
    """Writes reference.safetensors; returns the perplexities of original and quantised model over the text.

    ids [N, L]; the streams hold what enters the final norm. Position i predicts token i + 1:
    input_ids int32 [N, L], top_ids int32 and top_logprobs float32 [N, L-1, 64], true_logprobs float32 [N, L-1].
    """
    norm, head = load_final_norm(checkpoint), load_lm_head(checkpoint)
    rows, length = ids.shape
    kept = min(KEPT, head.shape[0])
    top_ids = torch.empty(rows, length - 1, kept, dtype=torch.int32)
    top_logprobs = torch.empty(rows, length - 1, kept)
    true = {stream.part: torch.empty(rows, length - 1) for stream in (original, quantised)}
    step = max(1, _LOGITS_BYTES // (4 * head.shape[0]))
    for stream in (original, quantised):
        for row in range(rows):
            hidden = norm(stream.read(slice(row, row + 1)))[0, :-1]
            for start in range(0, length - 1, step):
                part = slice(start, min(start + step, length - 1))
                logprobs = functional.linear(hidden[part], head).log_softmax(-1)
                following = ids[row, 1:][part, None]
                true[stream.part][row, part] = logprobs.gather(-1, following)[:, 0]
                if stream is original:
                    top = logprobs.topk(kept, dim=-1)
                    top_ids[row, part], top_logprobs[row, part] = top.indices.int(), top.values
            if stream is original:
                progress((row + 1) * length, rows * length)
    with SafetensorsWriter(path) as writer:
        writer.add("input_ids", ids.int())
        writer.add("top_ids", top_ids)
        writer.add("top_logprobs", top_logprobs)
        writer.add("true_logprobs", true[original.part])
    ppl = [math.exp(-true[stream.part].double().mean().item()) for stream in (original, quantised)]
    return ppl[0], ppl[1]
