"""Log-probabilities of tokens: of those that were chosen, or of a text that is given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmc.errors import InputError
from llmc.runtime.backends import Backend, FloatArray, IntArray, longer, step_width

_CHUNK_BYTES = 1 << 26  # of logits at a time


def most_scored(vocab_size: int, rows: int) -> int:
    """Tokens of each row whose logits there should be at a time."""
    return max(1, _CHUNK_BYTES // (4 * vocab_size * rows))


@dataclass(frozen=True)
class TokenLogprob:
    """Natural logarithms of the model's own probabilities, before temperature and other sampling parameters.

    Attributes:
        top: token → log-probability of the most likely tokens, the likeliest first
    """

    token_id: int
    logprob: float
    top: dict[int, float]


def token_logprobs(logits: FloatArray, tokens: IntArray, top: int) -> list[TokenLogprob]:
    """Of tokens [N] from logits [N, V], and of the `top` most likely at each place."""
    if not np.isfinite(logits).all():
        raise InputError(
            "the model's logits hold NaN or infinity: its activations outgrow what this backend computes with, or a "
            "file is damaged; `llmc check` says whether it ever worked here"
        )
    shifted = logits - logits.max(-1, keepdims=True)
    normalizer = np.log(np.exp(shifted).sum(-1, dtype=np.float64))
    chosen = np.take_along_axis(shifted, tokens[:, None], -1)[:, 0] - normalizer
    count = min(top, logits.shape[-1])
    best = (
        np.argpartition(-shifted, max(count - 1, 0), axis=-1)[:, :count] if count else np.empty((len(tokens), 0), int)
    )
    found = []
    for row, token in enumerate(tokens):
        likely = sorted(((float(shifted[row, other]), int(other)) for other in best[row]), key=lambda p: (-p[0], p[1]))
        tops = {other: value - float(normalizer[row]) for value, other in likely}
        found.append(TokenLogprob(int(token), float(chosen[row]), tops))
    return found


def score(
    backend: Backend, texts: list[list[int]], first: list[int], top: int, vocab_size: int
) -> list[list[TokenLogprob]]:
    """Of the tokens from `first[i]` on (at least the second) in each of texts [B][length], in one batch."""
    cache = backend.new_cache(len(texts))
    lengths = [len(text) for text in texts]
    padded = np.zeros((len(texts), max(lengths)), np.int64)
    for row, text in enumerate(texts):
        padded[row, : len(text)] = text
    long = longer(backend, lengths)
    found: list[list[TokenLogprob]] = [[] for _ in texts]
    most = most_scored(vocab_size, len(texts))
    start, end, wanted = 0, max(lengths) - 1, min(first) - 1  # what is said before `wanted` is of no use
    while start < end:
        stop = min(start + step_width(backend, len(texts), start), end)
        stop = min(stop, wanted) if start < wanted else min(stop, start + most)
        index = np.arange(start, stop) - start if start >= wanted else np.array([0])
        every = np.broadcast_to(index, (len(texts), len(index)))
        starts = np.full(len(texts), start)
        logits, _ = backend.forward("main", cache, padded[:, start:stop], starts, every, None, long)
        for row, text in enumerate(texts):
            places = [place for place in index if first[row] <= start + place + 1 < lengths[row]]
            if places and start >= wanted:
                tokens = np.array([text[start + place + 1] for place in places])
                found[row] += token_logprobs(logits[row, places], tokens, top)
        start = stop
    return found
