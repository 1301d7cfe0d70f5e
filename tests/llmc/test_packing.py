"""Chats stay whole as far as windows allow; text fills the rest; every token is counted."""

import random

import numpy as np
import pytest

from llmc.packing import Piece, pack


def chat(number: int, length: int, source: int = 0, spare: bool = False) -> Piece:
    """Its tokens tell its number and their places."""
    return Piece([number * 1000 + at for at in range(length)], source, True, spare)


def runs(windows: np.ndarray) -> list[list[int]]:
    """The uninterrupted parts of documents in all windows."""
    found: list[list[int]] = []
    for row in windows.tolist():
        for at, token in enumerate(row):
            if at and token == row[at - 1] + 1:
                found[-1].append(token)
            else:
                found.append([token])
    return found


def test_text_of_one_source_is_a_stream() -> None:
    text = [Piece(list(range(start, start + 7)), 0) for start in range(0, 70, 7)]
    windows, used = pack(text, 4, 16, seed=3)
    assert windows.tolist() == np.arange(64).reshape(4, 16).tolist()
    assert (used[0].documents, used[0].tokens, used[0].cut, used[0].dropped) == (10, 64, 0, 0)


def test_chats_are_whole_where_text_fills_the_rest() -> None:
    chooser = random.Random(0)
    chats = [chat(number, chooser.randint(5, 30)) for number in range(1, 41)]
    count = -(-sum(len(each.tokens) for each in chats) // 32) + 6
    text = Piece(list(range(900_000, 900_000 + count * 32 - sum(len(each.tokens) for each in chats))), 1)
    windows, used = pack([*chats, text], count, 32, seed=0)
    whole = {tuple(each.tokens) for each in chats}
    assert whole <= {tuple(run) for run in runs(windows)}
    assert used[0].documents == 40 and not used[0].cut and not used[0].dropped
    assert used[1].tokens == len(text.tokens) and used[0].tokens + used[1].tokens == windows.size


def test_without_text_chats_lose_ends_and_never_beginnings() -> None:
    chooser = random.Random(1)
    chats = [chat(number, chooser.randint(5, 30)) for number in range(1, 131)]
    count = sum(len(each.tokens) for each in chats[:80]) // 32
    spare = [Piece(each.tokens, 0, True, True) for each in chats[80:]]
    windows, used = pack([*chats[:80], *spare], count, 32, seed=0)
    found = runs(windows)
    assert all(run[0] % 1000 == 0 for run in found)
    lost = [1000 * (run[0] // 1000) for run in found if len(run) < len(chats[run[0] // 1000 - 1].tokens)]
    assert len(lost) == used[0].cut <= count
    assert used[0].documents == len(found) and used[0].tokens == windows.size
    assert used[0].dropped == sum(len(chats[run[0] // 1000 - 1].tokens) for run in found) - windows.size


def test_a_chat_that_is_longer_than_a_window_is_cut_and_counted() -> None:
    windows, used = pack([chat(1, 50), Piece(list(range(16)), 1)], 3, 16, seed=0)
    first = [list(range(1000, 1016)), list(range(16))]
    assert [row for row in windows.tolist() if row in first] in (first, first[::-1])
    assert (used[0].documents, used[0].cut) == (1, 1)  # the rest of it stands in for text that there is not
    assert used[0].tokens == 32 and used[0].dropped == 18


def test_windows_of_several_sources_are_mixed_in_the_same_way_every_time() -> None:
    pieces = [Piece([source] * 320, source) for source in range(2)]
    first, again, other = (pack(pieces, 40, 16, seed)[0][:, 0].tolist() for seed in (0, 0, 1))
    assert first == again != other and sum(first) == 20
    assert 4 < sum(first[:20]) < 16


def test_too_few_tokens() -> None:
    with pytest.raises(ValueError, match="6 tokens are missing"):
        pack([chat(1, 10)], 1, 16, seed=0)
