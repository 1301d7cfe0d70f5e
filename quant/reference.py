"""What the original said about the check text: the yardstick that travels with the artifact."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import load_final_norm, load_lm_head, logits
from llmc.convert.safetensors_file import SafetensorsWriter
from llmc.quant.activation_file import ActivationFile
from llmc.quant.overflow import OverflowInModelError, refuse_overflow

KEPT = 64  # log-probabilities per position
LARGEST_SURPRISE = 700.0  # nats per token: the perplexity still is a number
_LOGITS_BYTES = 1 << 27  # of each model, at once


@dataclass(frozen=True)
class Answers:
    """What two models say of every next token of a text: the original's most likely tokens int64 [N, P, K], and of both
    the log-probabilities of those, and of the tokens that follow [N, P]; and what the second finds most likely.
    """

    top_ids: torch.Tensor
    top: torch.Tensor
    true: torch.Tensor
    top_quantized: torch.Tensor
    true_quantized: torch.Tensor
    best_quantized: torch.Tensor


@dataclass(frozen=True)
class Distance:
    """Of two models over a text: their perplexities, and the mean KL divergence of the second from the first, nats."""

    ppl_original: float
    ppl: float
    kl: float
    answers: Answers


@torch.no_grad()
def write_reference(
    checkpoint: Checkpoint,
    ids: torch.Tensor,
    original: ActivationFile,
    quantized: ActivationFile,
    quantized_head: torch.Tensor | None,
    path: Path,
    progress: Callable[[int, int], None],
) -> Distance:
    """Writes reference.safetensors, and measures how far the quantized model is from it, before any target rounds.

    ids [N, L]; the streams hold what enters the final norm, `quantized_head` is [V, H], float32, None if the head
    stayed as it is. Position i predicts token i + 1:
    input_ids int32 [N, L], top_ids int32 and top_logprobs float32 [N, L-1, 64], true_logprobs float32 [N, L-1].
    OverflowInModelError for logits of either model that are no numbers to compute with; a quantized model's perplexity
    is cut at e^700.
    """
    device = original.device
    norm, head = load_final_norm(checkpoint).to(device), load_lm_head(checkpoint).to(device)
    heads = head, head if quantized_head is None else quantized_head.to(device)
    rows, length = ids.shape
    kept = min(KEPT, head.shape[0])
    top_ids = torch.empty(rows, length - 1, kept, dtype=torch.int32)
    top_logprobs, top_quantized = torch.empty(2, rows, length - 1, kept).unbind()
    best_quantized = torch.empty(rows, length - 1, dtype=torch.int64)
    true, true_quantized, divergence = torch.empty(3, rows, length - 1).unbind()
    step = max(1, _LOGITS_BYTES // (4 * head.shape[0]))
    for row in range(rows):
        hidden = [norm(stream.read(slice(row, row + 1)))[0, :-1] for stream in (original, quantized)]
        for start in range(0, length - 1, step):
            part = slice(start, min(start + step, length - 1))
            scores = [logits(checkpoint.spec, x[part], each) for x, each in zip(hidden, heads, strict=True)]
            for model, each in zip(("original", "quantized"), scores, strict=True):
                refuse_overflow(each, f"the {model} model's logits over the check text")
            said, said_quantized = (each.log_softmax(-1) for each in scores)
            following = ids[row, 1:][part, None].to(original.device)
            true[row, part] = said.gather(-1, following)[:, 0]
            true_quantized[row, part] = said_quantized.gather(-1, following)[:, 0]
            top = said.topk(kept, dim=-1)
            top_ids[row, part], top_logprobs[row, part] = top.indices.int(), top.values
            top_quantized[row, part] = said_quantized.gather(-1, top.indices)
            best_quantized[row, part] = said_quantized.argmax(-1)
            divergence[row, part] = (said.exp() * (said - said_quantized)).sum(-1)
        progress((row + 1) * length, rows * length)
    with SafetensorsWriter(path) as writer:
        writer.add("input_ids", ids.int())
        writer.add("top_ids", top_ids)
        writer.add("top_logprobs", top_logprobs)
        writer.add("true_logprobs", true)
    surprise, surprise_quantized = (-each.double().mean().item() for each in (true, true_quantized))
    if surprise > LARGEST_SURPRISE:
        raise OverflowInModelError(
            f"the original model holds the check text for impossible, by {surprise:.3g} nats a token"
        )
    ppl = math.exp(min(surprise_quantized, LARGEST_SURPRISE))
    answers = Answers(top_ids.long(), top_logprobs, true, top_quantized, true_quantized, best_quantized)
    return Distance(math.exp(surprise), ppl, divergence.double().mean().item(), answers)
