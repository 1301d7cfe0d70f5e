"""What a pass in torch measures of two models, as backends are measured, with the exact divergence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from types import MappingProxyType
from typing import Any

import numpy as np

from llmc.contracts.manifest import Checks, TextRead
from llmc.contracts.part import LimitRecord
from llmc.quant.reference import Answers
from llmc.runtime.check import Answers as Said
from llmc.runtime.check import compare
from llmc.runtime.divergence import Divergence, divergence
from llmc.runtime.gates import gates


def torch_checks(
    answers: Answers,
    ids: np.ndarray,
    text_of: Callable[[int], str | None],
    read: Sequence[TextRead] = (),
    limits: Mapping[str, float | LimitRecord] = MappingProxyType({}),
) -> Checks:
    """Return the measures of what two models said; the divergence is the exact one, with what a sample tells of it
    beside it, if there is one.

    Args:
        answers: Of both.
        ids: The text [N, L].
        text_of: How the vocabulary writes a token.
        read: The sources of the text.
        limits: Gate → what may be lost.
    """
    found: dict[str, Any] = {field.name: getattr(answers, field.name).numpy() for field in fields(answers)}
    names = {"top_ids": "top_ids", "top_logprobs": "top", "true_logprobs": "true"}
    names |= (
        {"tail_ids": "tail_ids", "tail_logprobs": "tail", "tail_mass": "tail_mass"} if found["tail_ids"].size else {}
    )
    original = {name: found[mine] for name, mine in names.items()} | {"input_ids": ids}
    said = Said(*(found[f"{name}_quantized"] for name in ("top", "tail", "true", "best")))
    sources = [(each.text, each.windows) for each in read if each.windows is not None]
    report = compare(original, said, Divergence(found["divergence"], "exact"), text_of, sources)
    report.gates.extend(gates(report, limits))
    told = report.to_json() | {"computed_by": "torch"}
    if found["tail_ids"].size:
        sample = divergence(original, said.top, said.tail, 0)
        told |= {"kl_sampled": float(sample.values.mean()), "kl_sampling_stderr": sample.sampling_stderr}
    return Checks.model_validate(told)
