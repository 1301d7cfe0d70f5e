"""How inputs are damaged: values of a JSON tree replaced, removed, repeated; bytes cut, flipped, inserted."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

# What programs stumble over, in place of a value of any type.
_ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63) - 1,
    10**18, 10**400, 0.0, -0.5, 0.5, 1e-320, 1e300, float("inf"), float("-inf"), float("nan"),
    "", " ", "0", "-1", "1e9", "NaN", "none", "..", "../x", "/etc/passwd", "/dev/zero", "a/b", "x" * 300,
    "\x00", "\x1b]0;x\x07", "\ud800", "\u202e", "[/]", "re:(", "re:(.+)+!", "re:(a|a)*$", "re:.*", "(" * 2000,
    "F32", "BF16", "F8_E4M3", "I4", "int4-g128",
    [], {}, [[]], [{}], {"": {}}, [0] * 40, list(range(300)), [None], ["x"], {"a": {"b": {"c": 1}}},
]  # fmt: skip
_ODD_BYTES = [
    b"", b"\x00", b"\xff", b"\x00" * 64, b"{", b"}", b"[" * 5000, b'{"a":' * 3000, b",", b'"', b"NaN", b"-Infinity",
    b"1e999", b"9" * 4400, b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800", b"&a [*a]", b"*a",
    b"!!python/object/apply:os.system [id]", b"!!timestamp x", b"!!bool x", b"!!int ''", b"\t", b"\n", b"  ",
    b": ", b"- ", b"? ", b"|\n", b">\n", b"---\n", b"# ", b"\x1b[2J",
]  # fmt: skip

odd_values: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(_ODD_VALUES), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.integers(), max_size=4)
)
# Small numbers are drawn more often than large ones; they are to mean any place.
_places = st.integers(0, 2**31 - 1).map(lambda number: (number + 40503) * 2654435761 % 2**32)


def damaged_json(value: Any, most: int = 3) -> st.SearchStrategy[Any]:
    """Copies of a JSON value, damaged in one to `most` places."""
    kinds = st.sampled_from(["replace", "replace", "replace", "remove", "wrap", "move", "add", "rename", "scale"])
    damages = st.lists(st.tuples(kinds, _places, odd_values, _places), min_size=1, max_size=most)
    return damages.map(lambda found: _damage(value, found))


def damaged_bytes(data: bytes, most: int = 2) -> st.SearchStrategy[bytes]:
    """The bytes, damaged in one to `most` places."""
    kinds = st.sampled_from(["cut", "flip", "insert", "insert", "remove", "repeat", "zero"])
    odd = st.one_of(st.sampled_from(_ODD_BYTES), st.binary(max_size=8))
    damages = st.lists(st.tuples(kinds, _places, odd, _places), min_size=1, max_size=most)

    def apply(found: list[tuple[str, int, bytes, int]]) -> bytes:
        damaged = data
        for kind, place, odd, other in found:
            at, length = place % (len(damaged) + 1), 1 + other % 64
            before, after, end = damaged[:at], damaged[at:], damaged[at + length :]
            damaged = {
                "cut": before,
                "flip": before + bytes(byte ^ (1 << other % 8) for byte in after[:1]) + after[1:],
                "insert": before + odd + after,
                "remove": before + end,
                "repeat": before + after[:length] * 3 + end,
                "zero": before + bytes(len(after[:length])) + end,
            }[kind]
        return damaged

    return damages.map(apply)


def damaged_file(data: bytes) -> st.SearchStrategy[bytes]:
    """A JSON file: damaged as a tree more often than as bytes."""
    trees = damaged_json(json.loads(data)).map(lambda value: json.dumps(value).encode())
    return st.one_of(trees, trees, damaged_bytes(data))


def _damage(value: Any, damages: list[tuple[str, int, Any, int]]) -> Any:
    root = {"": copy.deepcopy(value)}
    for kind, place, drawn, other in damages:
        odd = copy.deepcopy(drawn)  # what was drawn is drawn again
        found = list(_slots(root))
        parent, key = found[place % len(found)]
        other_parent, other_key = found[other % len(found)]
        if kind == "replace":
            parent[key] = odd
        elif kind == "remove" and parent is not root:
            del parent[key]
        elif kind == "wrap":
            parent[key] = [parent[key]]
        elif kind == "move":
            parent[key] = copy.deepcopy(other_parent[other_key])
        elif kind == "scale" and isinstance(parent[key], int | float):
            parent[key] *= (-1, 2, 10, 2**32)[other % 4]
        elif isinstance(parent[key], dict):
            if kind == "rename" and parent[key]:
                old = sorted(parent[key])[other % len(parent[key])]
                parent[key][str(odd)[:400]] = parent[key].pop(old)
            elif kind == "add":
                parent[key][str(odd)[:400]] = copy.deepcopy(other_parent[other_key])
    return root[""]


def _slots(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a tree that holds a value, as container and key."""
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], dict | list):
            yield from _slots(node[key])
