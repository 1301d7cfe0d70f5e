"""Pairs that BPE merges, found from the order of tokens alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping


def pairs(order: Mapping[str, float]) -> list[tuple[str, str]]:
    """The merges that make these tokens, in the order in which they are made.

    tiktoken and SentencePiece merge the two neighbors whose union comes first in `order`, whatever its parts are, while
    tokenizer.json lists pairs. One pair a token is enough: as long as nothing merges across its ends, a stretch of text
    is merged as if it were alone, so that the last two parts of a token are always the same. That no longer holds where
    tokens share a place: there the originals begin on the left and a tokenizer.json with the pair that it lists first,
    so that tokens may come about from any two parts; all are listed, in the order of the vocabulary.

    Args:
        order: Token, a character of which stands for what a text is first divided into → the lower, the earlier.
    """
    longer = {token: place for token, place in order.items() if len(token) > 1}
    places: dict[str, int] = {token: number for number, token in enumerate(order)}
    alone = len(set(longer.values())) == len(longer)
    found = []
    for token, place in longer.items():
        last = _last(token, order)
        parts = [] if last is None else [last]
        if not alone:
            parts += sorted(
                (each for each in _halves(token, places) if each != last), key=lambda p: [places[t] for t in p]
            )
        found += [(place, part) for part in parts]
    found.sort(key=lambda each: each[0])  # equal ones stay in the order of the vocabulary
    return [part for _, part in found]


def _last(token: str, order: Mapping[str, float]) -> tuple[str, str] | None:
    """The two parts that are merged at last; None where merging never gets there."""
    parts = list(token)
    while len(parts) > 2:
        best, at = None, -1
        for index in range(len(parts) - 1):
            place = order.get(parts[index] + parts[index + 1])
            if place is not None and (best is None or place < best):
                best, at = place, index
        if best is None:
            return None
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def _halves(token: str, known: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    for cut in range(1, len(token)):
        if token[:cut] in known and token[cut:] in known:
            yield token[:cut], token[cut:]
