"""Does the artifact still say what the original said? Its answers to the check text against the recorded ones.

Measures and their names follow llama.cpp's perplexity tool; how far a part of the original's answers tells the whole
Kullback–Leibler divergence stands in `divergence.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llmc.errors import InputError
from llmc.runtime.artifact import Artifact
from llmc.runtime.as_built import AsBuilt, accepted_now, as_built
from llmc.runtime.backends import Backend, longer, step_width
from llmc.runtime.divergence import Divergence, Kind, divergence
from llmc.runtime.floor import Floor, floor, recorded
from llmc.runtime.gates import Gate, gates
from llmc.runtime.reference import read_reference
from llmc.runtime.spread import Histogram, Windows, by_window, histogram
from llmc.runtime.uncertainty import ends, standard_error
from llmc.runtime.where import (
    KindOfToken,
    SourceOfText,
    Stretch,
    WorstToken,
    WorstWindow,
    by_kind,
    by_position,
    by_source,
    worst,
    worst_windows,
)

if TYPE_CHECKING:
    from llmc.contracts.progress import ProgressFunction
    from llmc.runtime.model import Model

Array = NDArray[Any]
_CHUNK_BYTES = 1 << 26  # of logits at a time
_LARGEST_SURPRISE = 700.0  # nats per token whose perplexity still is a number
_STEPS = 8  # at the end of a window, token by token, as answers are made: what reads a prompt is another program


@dataclass(frozen=True)
class CheckReport:
    """What a comparison found. Standard errors (`…_stderr`) are over windows; those of differences are paired.

    Attributes:
        tokens: Predictions compared.
        ppl_original, ppl: Perplexity per token.
        kl_kind, kl_sampling_stderr: As `Divergence` has them.
        kl_mean, kl_median, kl_p99, kl_p999, kl_max: Of the divergence per token, in nats.
        kl_above_0_1, kl_above_1: Shares of tokens whose divergence is more than 0.1 or 1 nats.
        top1: Share of positions whose most likely token is the original's.
        p_change, p_change_rms: Mean and root of the mean square of the change of the true token's probability.
        kl_by_position, kl_by_kind: Means of the divergence, along the windows and by the token that follows.
        kl_by_source: The same by source of the text, where there are several.
        kl_histogram, by_window: How the divergence is spread; the windows' means, for paired comparisons.
        worst, worst_windows: The tokens of the largest divergence, and the windows of the largest mean.
        runtime: What of that is the backend's own; None where the reference does not tell.
        as_built: Whether the artifact does what it did when it was built; None where nothing is on record.
        mtp_acceptance: Share of MTP drafts that greedy decoding accepts; None where that is not on record.
        ends: Gate → confidence in percent → end of the interval of what it is about, the upper one, of top1 the lower.
        gates: The recipe's and those that hold for every model, judged.
    """

    tokens: int
    ppl_original: float
    ppl_original_stderr: float
    ppl: float
    ppl_stderr: float
    ppl_increase_stderr: float
    kl_kind: Kind
    kl_mean: float
    kl_mean_stderr: float
    kl_sampling_stderr: float | None
    kl_median: float
    kl_p99: float
    kl_p999: float
    kl_max: float
    kl_above_0_1: float
    kl_above_0_1_stderr: float
    kl_above_1: float
    kl_above_1_stderr: float
    top1: float
    top1_stderr: float
    p_change: float
    p_change_stderr: float
    p_change_rms: float
    p_change_rms_stderr: float
    kl_by_position: list[Stretch] = field(default_factory=list)
    kl_by_kind: list[KindOfToken] = field(default_factory=list)
    kl_by_source: list[SourceOfText] = field(default_factory=list)
    worst: list[WorstToken] = field(default_factory=list)
    worst_windows: list[WorstWindow] = field(default_factory=list)
    kl_histogram: Histogram | None = None
    by_window: Windows | None = None
    runtime: Floor | None = None
    as_built: AsBuilt | None = None
    mtp_acceptance: float | None = None
    ends: dict[str, dict[str, float]] = field(default_factory=dict)
    gates: list[Gate] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Answers:
    """A model's, at every position of the check text: log-probabilities at the reference's `top_ids` [N, P, K] and
    `tail_ids` [N, P, S], if it has any, and of the true tokens [N, P], and its most likely token [N, P].
    """

    top: Array
    tail: Array | None
    true: Array
    best: Array


def compare(
    reference: dict[str, Array],
    said: Answers,
    apart: Divergence,
    text_of: Callable[[int], str | None] | None = None,
    sources: Sequence[tuple[str, int]] = (),
) -> CheckReport:
    """Statistics of a model's answers, whose divergence from the reference is known.

    Args:
        text_of: How the vocabulary writes a token; None: nothing is told by kinds of tokens.
        sources: Name of each source of the text, and how many windows it has, one source after the other.
    """
    kl = apart.values
    before, after = (array.astype(np.float64) for array in (reference["true_logprobs"], said.true))
    ppl_original, ppl_original_stderr = _perplexity(before)
    ppl, ppl_stderr = _perplexity(after)
    ratio, surprise, change = ppl / ppl_original, before - after, np.exp(after) - np.exp(before)
    agreed, large, huge = (
        each.astype(np.float64) for each in (said.best == reference["top_ids"][..., 0], kl > 0.1, kl > 1)
    )
    rms = math.sqrt(np.square(change).mean())
    return CheckReport(
        tokens=kl.size,
        ppl_original=ppl_original,
        ppl_original_stderr=ppl_original_stderr,
        ppl=ppl,
        ppl_stderr=ppl_stderr,
        ppl_increase_stderr=ratio * standard_error(surprise),
        kl_kind=apart.kind,
        kl_mean=float(kl.mean()),
        kl_mean_stderr=standard_error(kl),
        kl_sampling_stderr=apart.sampling_stderr,
        kl_median=float(np.median(kl)),
        kl_p99=float(np.quantile(kl, 0.99)),
        kl_p999=float(np.quantile(kl, 0.999)),
        kl_max=float(kl.max()),
        kl_above_0_1=float(large.mean()),
        kl_above_0_1_stderr=standard_error(large),
        kl_above_1=float(huge.mean()),
        kl_above_1_stderr=standard_error(huge),
        top1=float(agreed.mean()),
        top1_stderr=standard_error(agreed),
        p_change=float(change.mean()),
        p_change_stderr=standard_error(change),
        p_change_rms=rms,
        p_change_rms_stderr=standard_error(np.square(change)) / (2 * rms) if rms else 0.0,
        kl_by_position=by_position(kl),
        kl_by_kind=by_kind(kl, reference["input_ids"][:, 1:], text_of) if text_of else [],
        kl_by_source=by_source(kl, before, after, sources),
        worst=worst(kl, before, after),
        worst_windows=worst_windows(kl),
        kl_histogram=histogram(kl),
        by_window=by_window(kl, before, after, agreed),
        ends={
            "ppl_increase": {level: _increase(end) for level, end in ends(surprise, upper=True).items()},
            "kl_mean": ends(kl, upper=True),
            "top1": ends(agreed, upper=False),
        },
    )


def _increase(surprise: float) -> float:
    """Of perplexity, by nats per token; cut where both perplexities are."""
    return math.expm1(min(surprise, _LARGEST_SURPRISE))


def _perplexity(logprobs: Array) -> tuple[float, float]:
    """Perplexity of [N, P] log-probabilities, cut at e^700, and its standard error."""
    ppl = math.exp(min(-logprobs.mean(), _LARGEST_SURPRISE))
    return ppl, ppl * standard_error(logprobs)


def check(model: Model, progress: ProgressFunction | None = None, file: str | Path | None = None) -> CheckReport:
    """Runs the check text through a model's backend, window by window, and sees whether the artifact does what it did
    when it was built; InputError for logits that are not finite.

    Args:
        file: of the reference, where it is not in the artifact.
    """
    artifact, built = model.artifact, model.artifact.built
    reference = read_reference(artifact, file)
    said = _answers(artifact, model.backend, reference, progress)
    apart = divergence(reference, said.top, said.tail, artifact.vocab_size)
    report = replace(
        compare(reference, said, apart, model.tokenizer.id_to_token, artifact.check_sources),
        runtime=floor(reference, said.top, said.tail, said.best, _STEPS, artifact.vocab_size),
        as_built=as_built(model, built),
        mtp_acceptance=accepted_now(model, built, reference["input_ids"]),
    )
    report.gates.extend(gates(report, artifact.gates, artifact.default_gates))
    return report


def _parts(predictions: int, chunk: int, steps: int) -> list[slice]:
    """Positions that are computed at once: at most `chunk`, and each of the last `steps` on its own."""
    together = max(predictions - steps, 1)
    starts = [*range(0, together, chunk), *range(together, predictions)]
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], predictions], strict=True)]


def _answers(
    artifact: Artifact, backend: Backend, reference: dict[str, Array], progress: ProgressFunction | None
) -> Answers:
    ids, top_ids, tail_ids = reference["input_ids"], reference["top_ids"], reference.get("tail_ids")
    windows, predictions, _ = top_ids.shape
    top, tail = np.empty(top_ids.shape), None if tail_ids is None else np.empty(tail_ids.shape)
    true, best = np.empty((windows, predictions)), np.empty((windows, predictions), np.int64)
    chunk = max(1, min(step_width(backend, 1, predictions), _CHUNK_BYTES // (4 * artifact.vocab_size)))
    long = longer(backend, ids.shape[1:])
    for row in range(windows):
        cache = backend.new_cache(1)
        for part in _parts(predictions, chunk, _STEPS if row < recorded(reference) else 0):
            start = part.start
            every = np.arange(part.stop - start)[None]
            batch, _ = backend.forward("main", cache, ids[row : row + 1, part], np.array([start]), every, None, long)
            logits = batch[0]
            if not np.isfinite(logits).all():
                raise InputError(
                    f"{artifact.path}: logits hold NaN or infinity in window {row}: activations outgrow what this "
                    "backend computes with, or a file is damaged; try another backend, or build it again"
                )
            peak = logits.max(-1, keepdims=True)
            normalizer = peak + np.log(np.exp(logits - peak).sum(-1, keepdims=True, dtype=np.float64))
            top[row, part] = np.take_along_axis(logits, top_ids[row, part], -1) - normalizer
            if tail is not None and tail_ids is not None:
                tail[row, part] = np.take_along_axis(logits, tail_ids[row, part], -1) - normalizer
            true[row, part] = (np.take_along_axis(logits, ids[row, 1:][part, None], -1) - normalizer)[:, 0]
            best[row, part] = logits.argmax(-1)
        if progress:
            progress("perplexity, KL", (row + 1) * predictions, windows * predictions)
    return Answers(top, tail, true, best)
