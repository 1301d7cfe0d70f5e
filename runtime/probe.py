"""Does a graph compute what it computed when it was built? Whatever compression costs, it does, to a few millionths.

A few rows of arbitrary tokens are read, a part at once and the last ones one by one, with activations in float32, as
their rounding would hide small faults. Of the logits of a position sums with arbitrary signs are kept: with signs s_t
and V tokens, the mean of (Σ s_t · d_t)² / V over the signs is the mean of d_t² over the vocabulary, so that a few sums
tell how far logits are apart, whichever they are (Freivalds checks products of matrices in this way).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llmc.errors import InputError
from llmc.runtime.backends import Backend, Graph, IntArray, longer, step_width

if TYPE_CHECKING:
    from llmc.contracts.fidelity import ProbeRecord

Array = NDArray[Any]
_ROWS, _LENGTH, _STEPS, _SUMS = 4, 64, 8, 4
_SEED = b"llmc"
_NEARLY_ALL = 0.99  # of the positions: a rounding may send a token to another expert


@dataclass(frozen=True)
class Probe:
    """What graphs made of the tokens [B, L + 1].

    Attributes:
        sums: Graph → float32 [B, L, S].
        spread: Graph → root of the mean square of what logits differ by from their position's mean.
    """

    tokens: IntArray
    sums: dict[str, Array]
    spread: dict[str, float]

    def record(self) -> dict[str, Any]:
        """As `ProbeRecord` has it."""
        packed = {graph: base64.b64encode(each.astype("<f4").tobytes()).decode() for graph, each in self.sums.items()}
        return {"tokens": self.tokens.tolist(), "sums": packed, "spread": self.spread}


def probe(backend: Backend, vocab_size: int, tokens: IntArray | None = None) -> Probe:
    """Ask a backend's graphs; InputError for logits that are not finite.

    Args:
        tokens: [B, L + 1]; None: arbitrary ones, always the same of a vocabulary.
    """
    if tokens is None:
        length = max(2, min(_LENGTH, backend.context - 1))
        tokens = (_bits(_ROWS * (length + 1) * 8, b"tokens").view("<u8") % vocab_size).astype(np.int64)
        tokens = tokens.reshape(_ROWS, length + 1)
    signs = np.unpackbits(_bits(-(-vocab_size * _SUMS // 8), b"signs"))[: vocab_size * _SUMS]
    weights = (2.0 * signs.reshape(vocab_size, _SUMS) - 1) / np.sqrt(vocab_size)
    found: dict[str, list[tuple[Array, Array]]] = {}
    for graph, logits in _answers(backend, tokens):
        if not np.isfinite(logits).all():
            raise InputError(f"logits of arbitrary tokens hold NaN or infinity ({graph} graph); build it again")
        centered = logits.astype(np.float64) - logits.mean(-1, keepdims=True, dtype=np.float64)
        found.setdefault(graph, []).append((centered @ weights, np.square(centered).mean(-1)))
    sums = {graph: np.concatenate([each for each, _ in parts], 1).astype(np.float32) for graph, parts in found.items()}
    spread = {graph: float(np.sqrt(np.concatenate([x for _, x in parts], 1).mean())) for graph, parts in found.items()}
    return Probe(tokens, sums, spread)


def difference(now: Probe, then: ProbeRecord) -> dict[str, float]:
    """How far 99 % of the positions are from what they were, at most, by graph: root mean square over the vocabulary of
    the change of logits, over their spread. InputError for a record that is none of these graphs.
    """
    apart = {}
    for graph, sums in now.sums.items():
        try:
            before = np.frombuffer(base64.b64decode(then.sums[graph], validate=True), "<f4").reshape(sums.shape)
            spread = then.spread[graph]
        except (KeyError, ValueError) as error:
            raise InputError(f"llmc.json: what the {graph} graph said is not on record ({error})") from error
        if not np.isfinite(before).all():
            raise InputError(f"llmc.json: what the {graph} graph said is on record as NaN or infinity")
        changes = np.sqrt(np.square(sums.astype(np.float64) - before).mean(-1))
        apart[graph] = float(np.quantile(changes, _NEARLY_ALL) / max(spread, 1e-30))
    return apart


def _answers(backend: Backend, tokens: IntArray) -> Iterator[tuple[Graph, Array]]:
    """Logits [B, n, V] of parts of the rows, in order, by graph."""
    rows, length = tokens.shape[0], tokens.shape[1] - 1
    cache, long = backend.new_cache(rows), longer(backend, [length + 1] * rows)
    start, together = 0, max(length - _STEPS, 1)
    while start < length:
        stop = min(start + step_width(backend, rows, start), together) if start < together else start + 1
        place, every = np.full(rows, start), np.tile(np.arange(stop - start), (rows, 1))
        logits, hidden = backend.forward("main", cache, tokens[:, start:stop], place, every, None, long)
        yield "main", logits
        if backend.has_mtp:
            following = tokens[:, start + 1 : stop + 1]
            yield "mtp", backend.forward("mtp", cache, following, place, every, hidden, long)[0]
        start = stop


def _bits(count: int, purpose: bytes) -> NDArray[np.uint8]:
    """Bytes that are the same everywhere and always, as random numbers of libraries need not be."""
    return np.frombuffer(hashlib.shake_256(_SEED + purpose).digest(count), np.uint8)
