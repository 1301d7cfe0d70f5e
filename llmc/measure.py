"""How fast an artifact decodes here, and how many drafts of its MTP layer are accepted."""

from __future__ import annotations

import time
from dataclasses import dataclass

from safetensors.numpy import load_file

from llmc.runtime.artifact import REFERENCE
from llmc.runtime.model import Model

_PROMPTS, _PROMPT_TOKENS, _NEW_TOKENS = 8, 32, 32


@dataclass(frozen=True)
class Speed:
    """Tokens per second of one greedy sequence; speculative is None without an MTP layer."""

    decode: float
    speculative: float | None


def measure(model: Model) -> tuple[Speed, float | None]:
    """Continues the beginnings of some check windows, with and without speculation.

    Returns the speeds, which vary from run to run, and the share of drafts that the model agreed to, which does not.
    """
    ids = load_file(model.artifact.path / REFERENCE)["input_ids"][:_PROMPTS, :_PROMPT_TOKENS]
    prompts = [model.tokenizer.decode(row.tolist()) for row in ids]
    drafts = model.draft_tokens
    try:
        model.draft_tokens = 0
        plain, _, _ = _run(model, prompts)
        if not drafts:
            return Speed(plain, None), None
        model.draft_tokens = drafts
        speculative, drafted, accepted = _run(model, prompts)
        return Speed(plain, speculative), accepted / drafted if drafted else None
    finally:
        model.draft_tokens = drafts


def _run(model: Model, prompts: list[str]) -> tuple[float, int, int]:
    """Tokens per second, the short prompts' share of the time included; tokens drafted and accepted."""
    tokens = drafted = accepted = 0
    seconds = 0.0
    for prompt in prompts:
        start = time.monotonic()
        answer = model.generate(prompt, max_new_tokens=_NEW_TOKENS)
        seconds += time.monotonic() - start
        tokens += len(answer.token_ids)
        drafted += answer.drafted
        accepted += answer.accepted
    return tokens / seconds, drafted, accepted
