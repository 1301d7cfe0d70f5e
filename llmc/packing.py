"""Documents become windows of equal length: text is cut where a window is full, chats stay whole.

A chat that begins in the middle has no question, and one that ends there wastes an answer. So chats are placed first,
the longest first, each into the window that it fills best; text is poured into what room is left. Where there is no
text, the rest of a window is the beginning of another chat: what comes after is dropped, and counted.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Piece:
    """A document as tokens, and the number of its source. whole: it is not to be cut; spare: it is taken only where
    the others leave room.
    """

    tokens: list[int]
    source: int
    whole: bool = False
    spare: bool = False


@dataclass
class Used:
    """What windows hold of one source. cut: chats whose end is missing; dropped: the tokens of these ends."""

    documents: int = 0
    tokens: int = 0
    cut: int = 0
    dropped: int = 0


def pack(pieces: Sequence[Piece], count: int, length: int, seed: int) -> tuple[np.ndarray, dict[int, Used]]:
    """Windows [count, length] int64, and what they hold of each source.

    Text alone of one source is one stream that is cut every `length` tokens; otherwise the windows are shuffled by
    `seed`, so that any part of them is a sample of the whole.

    Raises:
        ValueError: when the pieces have fewer than count x length tokens.
    """
    packing = _Packing(count, length)
    for piece in sorted((each for each in pieces if each.whole and not each.spare), key=_longest_first):
        packing.place(piece)
    packing.pour([each for each in pieces if not each.whole])
    packing.fill(sorted((each for each in pieces if each.spare), key=_longest_first))
    if len({each.source for each in pieces}) > 1 or any(each.whole for each in pieces):
        random.Random(seed).shuffle(packing.rows)
    return np.array(packing.rows, np.int64), packing.used


def _longest_first(piece: Piece) -> int:
    return -len(piece.tokens)


class _Packing:
    def __init__(self, count: int, length: int) -> None:
        self.length = length
        self.rows: list[list[int]] = [[] for _ in range(count)]
        self.used: dict[int, Used] = {}
        self._rooms = [(length, row) for row in range(count)]  # sorted: (room, row), rows that are full left out
        self._over: list[Piece] = []  # what found no room
        self._ends: list[Piece] = []  # what was cut off

    def place(self, piece: Piece) -> None:
        """Into the row with the least room that is enough; a longer one than a window loses its end."""
        size = min(len(piece.tokens), self.length)
        at = bisect_left(self._rooms, (size, -1))
        if at < len(self._rooms):
            self._append(self._rooms[at][1], piece, size)
        else:
            self._over.append(piece)

    def pour(self, pieces: Sequence[Piece]) -> int:
        """Text, one document after the other, into the rows with the least room first, where chats would be cut; how
        many tokens of it.
        """
        rows = iter([row for _, row in self._rooms])
        row, poured = next(rows, None), 0
        for piece in pieces:
            start = 0
            while start < len(piece.tokens) and row is not None:
                part = piece.tokens[start : start + self.length - len(self.rows[row])]
                self.rows[row] += part
                start += len(part)
                if len(self.rows[row]) == self.length:
                    row = next(rows, None)
            self._count(piece, start)
            poured += start
        rooms = ((self.length - len(tokens), row) for row, tokens in enumerate(self.rows))
        self._rooms = sorted(each for each in rooms if each[0])
        return poured

    def fill(self, spare: Sequence[Piece]) -> None:
        """The rest of every row: with the longest chats that fit, or the beginning of the shortest that does not."""
        chats = sorted((*spare, *self._over), key=lambda piece: len(piece.tokens))
        sizes = [len(piece.tokens) for piece in chats]
        while self._rooms and chats:
            room, row = self._rooms[-1]
            at = max(0, bisect_right(sizes, room) - 1)
            piece, size = chats.pop(at), min(sizes.pop(at), room)
            self._append(row, piece, size)
        for end in self._ends:  # better than too little text
            if not self._rooms:
                break
            self.used[end.source].dropped -= self.pour([end])
            self.used[end.source].documents -= 1  # it is counted already
        if missing := sum(room for room, _ in self._rooms):
            raise ValueError(f"{missing} tokens are missing")

    def _append(self, row: int, piece: Piece, size: int) -> None:
        room = self.length - len(self.rows[row])
        self._rooms.pop(bisect_left(self._rooms, (room, row)))
        self.rows[row] += piece.tokens[:size]
        if room > size:
            insort(self._rooms, (room - size, row))
        self._count(piece, size)
        if rest := len(piece.tokens) - size:
            self.used[piece.source].cut += 1
            self.used[piece.source].dropped += rest
            self._ends.append(Piece(piece.tokens[size:], piece.source))

    def _count(self, piece: Piece, tokens: int) -> None:
        used = self.used.setdefault(piece.source, Used())
        used.documents, used.tokens = used.documents + (tokens > 0), used.tokens + tokens
