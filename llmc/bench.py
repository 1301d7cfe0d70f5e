"""`llmc bench`: an artifact's speed and memory on this machine, for prompts, batches and drafts of several sizes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice, product
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from llmc.errors import InputError
from llmc.measure import peak_memory
from llmc.progress import size
from llmc.runtime import load
from llmc.runtime.artifact import REFERENCE
from llmc.runtime.drafts import acceptance, run
from llmc.runtime.model import Model
from llmc.runtime.reference import read_reference
from llmc.tables import Report, table
from llmc.terminal import console
from llmc.text_sources import python_documents

_DOCUMENTS = 20
_PROMPT_TOKENS = (32, 512)


@dataclass(frozen=True)
class Timing:
    """What was measured of one size of batch, prompt and answer.

    Attributes:
        prefill: prompt tokens a second
        decode: new tokens a second after the first one, all rows together
        tokens_per_step: new tokens of a row per pass of the main model
        acceptance: share of drafts that the model agreed to; None where none were made
    """

    batch: int
    prompt_tokens: int
    new_tokens: int
    draft_tokens: int
    prefill: float
    decode: float
    tokens_per_step: float
    acceptance: float | None


def bench(
    artifact: Path,
    prompt_tokens: Sequence[int] | None,
    new_tokens: int,
    batches: Sequence[int],
    draft_tokens: Sequence[int] | None,
    rounds: int,
    backend: str | None,
    threads: int | None,
    device: int | None = None,
    ranks: int = 1,
) -> Report:
    """Greedy answers to pieces of the check text; the median of `rounds`, after one that does not count.

    Args:
        prompt_tokens: None for 32 and 512, as far as they fit the context with the answer
    """
    start = time.perf_counter()
    with load(artifact, backend, threads, device=device, ranks=ranks) as model:
        loaded, after_load = time.perf_counter() - start, peak_memory()
        text = _text(model)
        drafts = list(draft_tokens) if draft_tokens else [0] + [model.draft_tokens] * (model.draft_tokens > 0)
        if max(drafts) and not model.backend.has_mtp:
            raise InputError(f"{artifact}: has no MTP layer that could draft {max(drafts)} tokens; leave it at 0")
        sizes = list(product(prompt_tokens or _usual(model.context - new_tokens + 1), batches, drafts))
        for prompt, batch, _ in sizes:
            _check(model, prompt, new_tokens, batch)
        columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn()
        with Progress(*columns, console=console(stderr=True), transient=True) as progress:
            task = progress.add_task("", total=len(sizes) * (rounds + 1))
            timings = []
            for prompt, batch, draft in sizes:
                progress.update(task, description=f"{batch} x {prompt} + {new_tokens} tokens, {draft} drafts")
                runs = []
                for turn in range(rounds + 1):
                    runs.append(run(model, _prompts(text, turn, batch, prompt), new_tokens, draft))
                    progress.advance(task)
                counted = runs[1:]
                steps = sum(answer.steps for each in counted for answer in each.answers)
                timings.append(
                    Timing(
                        *(batch, prompt, new_tokens, draft),
                        prefill=median(batch * prompt / each.prefill for each in counted),
                        decode=median(batch * (new_tokens - 1) / each.decode for each in counted),
                        tokens_per_step=batch * (new_tokens - 1) * rounds / steps,
                        acceptance=acceptance(counted),
                    )
                )
        data = {
            "artifact": str(artifact),
            "backend": model.backend_info,
            "threads": threads,
            "load_seconds": loaded,
            "memory_loaded": after_load,
            "memory_peak": peak_memory(),
            "cache_bytes_per_token": model.backend.cache_bytes,
            "timings": [asdict(timing) for timing in timings],
        }
    speeds = table(
        f"{artifact}: {model.backend_info}", "batch", "prompt", "new", "drafts",
        "prefill tokens/s", "decode tokens/s", "per step", "accepted",
    )  # fmt: skip
    for each in timings:
        accepted = "" if each.acceptance is None else f"{each.acceptance:.1%}"
        counts = str(each.batch), str(each.prompt_tokens), str(each.new_tokens), str(each.draft_tokens)
        speeds.add_row(*counts, f"{each.prefill:.0f}", f"{each.decode:.0f}", f"{each.tokens_per_step:.2f}", accepted)
    rest = table("", "what", "measured")
    rest.add_row("load", f"{loaded:.2f} s")
    rest.add_row("memory, loaded", size(after_load))
    rest.add_row("memory, at most", size(peak_memory()))
    rest.add_row("cache, per token and row", size(model.backend.cache_bytes))
    return Report(data, [speeds, rest])


def _text(model: Model) -> NDArray[np.int64]:
    """The check text; where the artifact was built without it, the sources of Python's standard library."""
    if REFERENCE in model.artifact.files:
        return read_reference(model.artifact)["input_ids"].ravel()
    documents = (text for _, text in islice(python_documents(), _DOCUMENTS))
    return np.array([token for text in documents for token in model.tokenizer.encode(text).ids], np.int64)


def _usual(room: int) -> list[int]:
    return [length for length in _PROMPT_TOKENS if length <= room] or [max(1, min(*_PROMPT_TOKENS, room // 2))]


def _check(model: Model, prompt_tokens: int, new_tokens: int, batch: int) -> None:
    if batch > model.backend.batch:
        raise InputError(f"a batch of {batch} is more than the {model.backend.batch} that this backend takes at once")
    if prompt_tokens + new_tokens - 1 > model.context:
        raise InputError(
            f"{prompt_tokens} prompt tokens and {new_tokens} new ones do not fit the context of {model.context}; "
            "give --prompt-tokens or --new-tokens"
        )


def _prompts(text: NDArray[np.int64], turn: int, batch: int, length: int) -> list[list[int]]:
    """The text, over and over, in pieces."""
    starts = [(turn * batch + row) * length for row in range(batch)]
    return [np.take(text, range(start, start + length), mode="wrap").tolist() for start in starts]
