"""How fast an artifact is here: reading a prompt, answering, with and without drafts of its MTP layer."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from llmc.errors import InputError
from llmc.runtime.decoding import Decoder
from llmc.runtime.model import Model
from llmc.runtime.reference import read_reference
from llmc.runtime.sampling import SamplingParams
from llmc.runtime.sequence import GeneratedSequence

_PROMPTS, _PROMPT_TOKENS, _NEW_TOKENS = 8, 32, 32


@dataclass(frozen=True)
class Speed:
    """Tokens per second of one greedy sequence; speculative is None without an MTP layer."""

    decode: float
    speculative: float | None


def peak_memory() -> int:
    """Bytes that this process has had in memory at most."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where ru_maxrss counts the process that started this one, too
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes, on macOS


@dataclass
class Run:
    """Answers of one batch, and the seconds that prompts and steps took."""

    answers: list[GeneratedSequence]
    prefill: float = 0.0
    decode: float = 0.0


def measure(model: Model, reference: Path | None = None) -> tuple[Speed, float | None]:
    """Continues the beginnings of some check windows, with and without speculation, as far as the context goes.

    Args:
        reference: see `Model.check`.

    Returns the speeds, which vary from run to run, and the share of drafts that the model agreed to, which does not.
    """
    length = min(_PROMPT_TOKENS, model.context // 2)
    prompts = read_reference(model.artifact, reference)["input_ids"][:_PROMPTS, :length].tolist()
    new_tokens = min(_NEW_TOKENS, model.context - length)

    def tokens_per_second(draft_tokens: int) -> tuple[float, float | None]:
        runs = [run(model, [prompt], new_tokens, draft_tokens) for prompt in prompts]
        speed = sum(len(run.answers[0].tokens) for run in runs) / sum(run.prefill + run.decode for run in runs)
        return speed, acceptance(runs)

    plain, _ = tokens_per_second(0)
    if not model.draft_tokens:
        return Speed(plain, None), None
    try:
        speculative, accepted = tokens_per_second(model.draft_tokens)
    except InputError as error:  # the very same answers came without drafts
        raise InputError(
            f"drafts of the multi-token-prediction layer: {error}; set num_nextn_predict_layers to 0 in the original's "
            "config.json to go without that layer"
        ) from error
    return Speed(plain, speculative), accepted


def run(model: Model, prompts: list[list[int]], new_tokens: int, draft_tokens: int) -> Run:
    """Generates exactly so many tokens greedily; end-of-text tokens end nothing."""
    parameters = SamplingParams(max_new_tokens=new_tokens)
    answers = [GeneratedSequence(prompt, parameters, new_tokens, model.tokenizer, frozenset()) for prompt in prompts]
    timed = Run(answers)
    start = time.perf_counter()
    for _ in Decoder(model.backend, answers, draft_tokens).run(lambda: False):
        now = time.perf_counter()
        if any(answer.steps for answer in answers):
            timed.decode += now - start
        else:
            timed.prefill += now - start
        start = now
    return timed


def acceptance(runs: list[Run]) -> float | None:
    """Share of drafts that the model agreed to; None where there were none."""
    answers = [answer for run in runs for answer in run.answers]
    drafted = sum(answer.drafted for answer in answers)
    return sum(answer.accepted for answer in answers) / drafted if drafted else None
