"""Does an artifact do what it did when it was built, graph by graph, token by token?

Nothing of this depends on what compression costs: a difference is a file that was damaged or mixed up, or another
program, library or machine that computes otherwise.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmc.errors import InputError
from llmc.runtime.artifact import Artifact
from llmc.runtime.backends import Backend, IntArray
from llmc.runtime.drafts import Drafts, continued
from llmc.runtime.probe import Probe, difference, probe
from llmc.runtime.spoken_to import spoken_to

if TYPE_CHECKING:
    from llmc.contracts.fidelity import BuiltRecord, ProbeRecord
    from llmc.runtime.model import Model

_ERRORS = 3.0  # standard errors that an acceptance may fall behind


@dataclass(frozen=True)
class AsBuilt:
    """What is still as it was; None: not on record, or not to be told here.

    Attributes:
        graph, mtp_graph: How far logits of arbitrary tokens are from what they were, see `probe.difference`.
        tokenizer, chat_template: Whether they say the same.
        mtp_acceptance_least: The least share of drafts that chance explains.
    """

    graph: float | None = None
    mtp_graph: float | None = None
    tokenizer: bool | None = None
    chat_template: bool | None = None
    mtp_acceptance_least: float | None = None


def as_built(model: Model, built: BuiltRecord) -> AsBuilt | None:
    """Hold a model against the record of its build; None where there is none."""
    if not built.model_fields_set:
        return None
    apart: dict[str, float] = {}
    if built.probe is not None:
        tokens = _tokens(model, built.probe)
        found = ask(model.artifact, model.backend, tokens)
        apart = {} if found is None else difference(found, built.probe)
    digests = spoken_to(model.tokenizer) if built.digests else {}
    same = {name: digests.get(name) == built.digests.get(name) for name in built.digests.keys() | digests.keys()}
    return AsBuilt(
        graph=apart.get("main"),
        mtp_graph=apart.get("mtp"),
        tokenizer=same["vocabulary"] and same["encoding"] if same else None,
        chat_template=same.get("chat_template"),
        mtp_acceptance_least=_least(Drafts(built.mtp_accepted or 0, built.mtp_drafted)) if built.mtp_drafted else None,
    )


def _tokens(model: Model, then: ProbeRecord) -> IntArray:
    tokens = np.array(then.tokens, np.int64)
    if tokens.max() >= model.artifact.vocab_size or tokens.shape[1] > model.backend.context:
        raise InputError("llmc.json: the tokens that its graphs were asked at the build are not of this model")
    return tokens


def ask(artifact: Artifact, backend: Backend, tokens: Any = None) -> Probe | None:
    """What the graphs make of arbitrary tokens in float32; None: this backend does not compute like that."""
    exactly: AbstractContextManager[bool] | None = getattr(backend, "exactly", lambda: None)()
    if exactly is None:
        return None
    with exactly as exact:
        return probe(backend, artifact.vocab_size, tokens) if exact else None


def accepted_now(model: Model, built: BuiltRecord, ids: Any) -> float | None:
    """Share of drafts that are accepted here; None where there were none when it was built, or are none here."""
    if not (built.mtp_drafted and model.draft_tokens):
        return None
    return continued(model, ids).share


def _least(drafts: Drafts) -> float:
    """Both shares, of then and of now, have their standard error."""
    share = drafts.share or 0.0
    return share - _ERRORS * math.sqrt(2 * share * (1 - share) / drafts.drafted)
