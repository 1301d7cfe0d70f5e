"""Which files an ONNX graph takes tensors from, read from its protobuf without the package `onnx`, which the runtime
does not need. A graph holds the names and places of its weights, not their numbers, so that this takes little.
"""

from __future__ import annotations

from collections.abc import Iterator

# onnx.proto: number of a field → the message in it, of all fields that lead to a TensorProto, and to what it says.
_FIELDS: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto", 6: "GraphProto", 10: "TensorProto", 11: "GraphProto", 22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
}  # fmt: skip
_MOST_DEPTH = 64  # of graphs in graphs
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # kinds of a field on the wire


def locations(model: bytes) -> set[str]:
    """Names of the files, as the graph writes them, relative to its folder; ValueError when it is no such graph."""
    return set(_locations(memoryview(model), "ModelProto", 0))


def _locations(message: memoryview, kind: str, depth: int) -> Iterator[str]:
    if depth > _MOST_DEPTH:
        raise ValueError(f"graphs in graphs, more than {_MOST_DEPTH} deep")
    inner = _FIELDS[kind]
    for field, value in _fields(message):
        below = inner.get(field)
        if below == "StringStringEntryProto":
            entry = {number: bytes(text) for number, text in _fields(value)}
            if entry.get(1) == b"location":
                yield entry.get(2, b"").decode("utf-8")
        elif below:
            yield from _locations(value, below, depth + 1)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of every field that has a length; the others are skipped."""
    place, end = 0, len(message)
    while place < end:
        key, place = _varint(message, place)
        kind = key & 7
        if kind == _VARINT:
            _, place = _varint(message, place)
        elif kind == _BYTES:
            length, place = _varint(message, place)
            if place + length > end:
                raise ValueError("cut off")
            yield key >> 3, message[place : place + length]
            place += length
        elif kind in (_EIGHT, _FOUR):
            place += 8 if kind == _EIGHT else 4
        else:
            raise ValueError(f"a field of kind {kind}")
    if place != end:
        raise ValueError("cut off")


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            raise ValueError("cut off")
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a number of more than ten bytes")
