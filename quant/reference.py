"""What the original said about the check text: the yardstick that travels with the artifact."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import load_final_norm, load_lm_head
from llmc.convert.safetensors_file import SafetensorsWriter
from llmc.quant.stream import Stream

KEPT = 64  # log-probabilities per position
_LOGITS_BYTES = 1 << 27  # of each model, at once


@dataclass(frozen=True)
class Distance:
    """Of two models over a text: their perplexities, and the mean KL divergence of the second from the first, nats."""

    ppl_original: float
    ppl: float
    kl: float


@torch.no_grad()
def write_reference(
    checkpoint: Checkpoint,
    ids: torch.Tensor,
    original: Stream,
    quantised: Stream,
    path: Path,
    progress: Callable[[int, int], None],
) -> Distance:
    """Writes reference.safetensors, and measures how far the quantised model is from it, before any target rounds.

    ids [N, L]; the streams hold what enters the final norm. Position i predicts token i + 1:
    input_ids int32 [N, L], top_ids int32 and top_logprobs float32 [N, L-1, 64], true_logprobs float32 [N, L-1].
    """
    norm, head = load_final_norm(checkpoint).to(original.device), load_lm_head(checkpoint).to(original.device)
    rows, length = ids.shape
    kept = min(KEPT, head.shape[0])
    top_ids = torch.empty(rows, length - 1, kept, dtype=torch.int32)
    top_logprobs = torch.empty(rows, length - 1, kept)
    true, true_quantised, divergence = torch.empty(3, rows, length - 1).unbind()
    step = max(1, _LOGITS_BYTES // (4 * head.shape[0]))
    for row in range(rows):
        hidden = [norm(stream.read(slice(row, row + 1)))[0, :-1] for stream in (original, quantised)]
        for start in range(0, length - 1, step):
            part = slice(start, min(start + step, length - 1))
            said, said_quantised = (functional.linear(x[part], head).log_softmax(-1) for x in hidden)
            following = ids[row, 1:][part, None].to(original.device)
            true[row, part] = said.gather(-1, following)[:, 0]
            true_quantised[row, part] = said_quantised.gather(-1, following)[:, 0]
            top = said.topk(kept, dim=-1)
            top_ids[row, part], top_logprobs[row, part] = top.indices.int(), top.values
            divergence[row, part] = (said.exp() * (said - said_quantised)).sum(-1)
        progress((row + 1) * length, rows * length)
    with SafetensorsWriter(path) as writer:
        writer.add("input_ids", ids.int())
        writer.add("top_ids", top_ids)
        writer.add("top_logprobs", top_logprobs)
        writer.add("true_logprobs", true)
    ppl_original, ppl = (math.exp(-each.double().mean().item()) for each in (true, true_quantised))
    return Distance(ppl_original, ppl, divergence.double().mean().item())
