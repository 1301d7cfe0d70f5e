"""What the original said about the check text: the yardstick that travels with the artifact."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import RMSNorm, load_final_norm, load_lm_head, logits
from llmc.convert.safetensors_file import SafetensorsWriter
from llmc.convert.spec import ModelSpec
from llmc.quant.activation_file import ActivationFile
from llmc.quant.overflow import OverflowInModelError, refuse_overflow
from llmc.quant.tail_sample import tail_sample

KEPT = 64  # log-probabilities per position
DRAWN = 64  # of those that are not kept, as many stand for all
QUANTIZED_TOKENS = 4096  # that the quantized model's answers are recorded for, too: what a runtime is held against
LARGEST_SURPRISE = 700.0  # nats per token: the perplexity still is a number
_LOGITS_BYTES = 1 << 26  # of each model, at once, as float64


@dataclass(frozen=True)
class Answers:
    """What two models say of every next token of a text.

    Attributes:
        top_ids: The original's most likely tokens, int64 [N, P, K], the likeliest first.
        tail_ids: Tokens drawn from the others by `tail_sample`, int64 [N, P, S]; S is 0 where there are no others.
        tail_mass: Probability of the others together, float64 [N, P].
        top, tail, true: The original's log-probabilities of those tokens, and of the one that follows [N, P]; float64.
        top_quantized, tail_quantized, true_quantized: The second model's.
        best_quantized: What the second finds most likely, int64 [N, P].
        divergence: Kullback–Leibler divergence of the second from the original over the whole vocabulary, in nats,
            float64 [N, P].
    """

    top_ids: torch.Tensor
    tail_ids: torch.Tensor
    tail_mass: torch.Tensor
    top: torch.Tensor
    tail: torch.Tensor
    true: torch.Tensor
    top_quantized: torch.Tensor
    tail_quantized: torch.Tensor
    true_quantized: torch.Tensor
    best_quantized: torch.Tensor
    divergence: torch.Tensor

    @classmethod
    def blank(cls, rows: int, positions: int, vocabulary: int, whole: bool = True) -> Answers:
        """Room for them. whole: with all that a reference has; otherwise only with what is compared at once."""
        kept = min(KEPT, vocabulary) if whole else 1
        drawn = DRAWN if whole and vocabulary > KEPT else 0

        def room(*size: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
            return torch.empty(rows, positions, *size, dtype=dtype)

        return cls(
            room(kept, dtype=torch.int64), room(drawn, dtype=torch.int64), room(), room(kept), room(drawn), room(),
            room(kept), room(drawn), room(), room(dtype=torch.int64), room(),
        )  # fmt: skip

    def note(
        self, row: int, part: slice, scores: Sequence[torch.Tensor], following: torch.Tensor, offsets: torch.Tensor
    ) -> None:
        """Write down what two models' logits [n, V] say at some positions of a row, where `following` [n] came next.

        Args:
            offsets: Of the draw from the tail, see `tail_sample`.
        """
        said, said_quantized = (each.double().log_softmax(-1) for each in scores)
        top_ids = said.topk(self.top_ids.shape[-1], dim=-1).indices
        p, drawn = said.exp(), self.tail_ids.shape[-1]
        others = p.scatter(-1, top_ids, 0.0)
        tail_ids = tail_sample(said, others, offsets, drawn) if drawn else top_ids[:, :0]
        following = following[:, None]
        self.top_ids[row, part], self.tail_ids[row, part] = top_ids, tail_ids
        for model, top, tail, true in (
            (said, self.top, self.tail, self.true),
            (said_quantized, self.top_quantized, self.tail_quantized, self.true_quantized),
        ):
            top[row, part], tail[row, part] = model.gather(-1, top_ids), model.gather(-1, tail_ids)
            true[row, part] = model.gather(-1, following)[:, 0]
        self.best_quantized[row, part] = said_quantized.argmax(-1)
        self.divergence[row, part] = (p * (said - said_quantized)).sum(-1)
        self.tail_mass[row, part] = others.sum(-1)

    def write(self, ids: torch.Tensor, path: Path) -> None:
        """Leave the original's part, with the text's ids [N, L], and the first windows of the second model's, as
        docs/artifact-format.md has it.
        """
        first = slice(0, max(1, QUANTIZED_TOKENS // ids.shape[1]))
        with SafetensorsWriter(path) as writer:
            writer.add("input_ids", ids.int())
            writer.add("top_ids", self.top_ids.int())
            writer.add("top_logprobs", self.top.float())
            writer.add("true_logprobs", self.true.float())
            if self.tail_ids.shape[-1]:
                writer.add("tail_ids", self.tail_ids.int())
                writer.add("tail_logprobs", self.tail.float())
                writer.add("tail_mass", self.tail_mass.float())
                writer.add("quantized_tail_logprobs", self.tail_quantized[first].float())
            writer.add("quantized_top_logprobs", self.top_quantized[first].float())
            writer.add("quantized_best", self.best_quantized[first].int())


@dataclass(frozen=True)
class Distance:
    """Of two models over a text: their perplexities, and the mean KL divergence of the second from the first over the
    whole vocabulary, in nats.
    """

    ppl_original: float
    ppl: float
    kl: float
    answers: Answers


@dataclass(frozen=True)
class End:
    """What makes logits of a model's hidden states.

    Attributes:
        name: original or quantized, for errors.
        norm: The final one.
        head: [V, H] float32.
    """

    name: str
    spec: ModelSpec
    norm: RMSNorm
    head: torch.Tensor

    @classmethod
    def of(cls, name: str, checkpoint: Checkpoint, device: torch.device) -> End:
        """That of a checkpoint."""
        norm, head = load_final_norm(checkpoint), load_lm_head(checkpoint)
        return cls(name, checkpoint.spec, norm.to(device), head.to(device))

    def scores(self, normed: torch.Tensor) -> torch.Tensor:
        """Normed [n, H] → logits [n, V]; OverflowInModelError for what cannot be computed with."""
        found = logits(self.spec, normed, self.head)
        refuse_overflow(found, f"the {self.name} model's logits over the check text")
        return found


@torch.no_grad()
def fill(
    answers: Answers,
    ids: torch.Tensor,
    models: Sequence[tuple[End, ActivationFile]],
    progress: Callable[[int, int], None],
) -> None:
    """Write down what two models say of a text, the original first.

    Args:
        answers: Room for it.
        ids: [N, L] int64; position i predicts token i + 1.
        models: The end of each, and what enters its final norm.
        progress: Is told how many tokens of how many are done.
    """
    (first, stream), _ = models
    rows, length = ids.shape
    step = max(1, _LOGITS_BYTES // (8 * first.head.shape[0]))
    for row in range(rows):
        offsets = torch.rand(length - 1, generator=torch.Generator().manual_seed(row), dtype=torch.float64)
        offsets = offsets.to(stream.device)
        hidden = [end.norm(each.read(slice(row, row + 1)))[0, :-1] for end, each in models]
        for start in range(0, length - 1, step):
            part = slice(start, min(start + step, length - 1))
            scores = [end.scores(x[part]) for (end, _), x in zip(models, hidden, strict=True)]
            answers.note(row, part, scores, ids[row, 1:][part].to(stream.device), offsets[part])
        progress((row + 1) * length, rows * length)


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
    stayed as it is. Position i predicts token i + 1. What is drawn from the tails depends on the row's number
    alone. OverflowInModelError for logits of either model that are no numbers to compute with; a quantized model's
    perplexity is cut at e^700.
    """
    end = End.of("original", checkpoint, original.device)
    other = replace(end, name="quantized")
    if quantized_head is not None:
        other = replace(other, head=quantized_head.to(original.device))
    answers = Answers.blank(len(ids), ids.shape[1] - 1, end.head.shape[0])
    fill(answers, ids, ((end, original), (other, quantized)), progress)
    answers.write(ids, path)
    surprise, surprise_quantized = (-each.mean().item() for each in (answers.true, answers.true_quantized))
    if surprise > LARGEST_SURPRISE:
        raise OverflowInModelError(
            f"the original model holds the check text for impossible, by {surprise:.3g} nats a token"
        )
    ppl = math.exp(min(surprise_quantized, LARGEST_SURPRISE))
    return Distance(math.exp(surprise), ppl, answers.divergence.mean().item(), answers)
