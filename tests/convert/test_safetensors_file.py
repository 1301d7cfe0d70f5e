"""The safetensors reader and writer against the reference implementation, and against broken files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmc.convert.safetensors_file import SafetensorsWriter, read_header
from llmc.errors import InputError, MachineError

TENSORS = {
    "z": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "a": torch.arange(5).to(torch.bfloat16),
    "codes": torch.tensor([[1.0, -2.0]]).to(torch.float8_e4m3fn),
    "scalar": torch.tensor(7),
    "empty": torch.empty(0, 4),
    "strided": torch.arange(6).reshape(2, 3).T,
}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.contiguous().float(), b.contiguous().float())


def write(path: Path) -> Path:
    with SafetensorsWriter(path) as writer:
        for name, tensor in TENSORS.items():
            writer.add(name, tensor)
    return path


def with_header(path: Path, header: Any, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_the_reference_implementation_reads_what_is_written(tmp_path: Path) -> None:
    theirs = load_file(write(tmp_path / "x.safetensors"))
    assert theirs.keys() == TENSORS.keys()
    assert all(same(theirs[name], tensor) for name, tensor in TENSORS.items())
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_order_is_kept_and_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = write(tmp_path / "x.safetensors"), write(tmp_path / "y.safetensors")
    assert list(read_header(first)) == list(TENSORS)
    assert first.read_bytes() == second.read_bytes()


def test_reads_what_the_reference_implementation_writes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in TENSORS.items()}, path)
    stored = read_header(path)
    assert all(same(stored[name].read(), tensor) for name, tensor in TENSORS.items())
    data = path.read_bytes()
    z = stored["z"]
    assert data[z.offset : z.offset + z.nbytes] == TENSORS["z"].numpy().tobytes()


def test_an_exception_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), SafetensorsWriter(tmp_path / "x.safetensors") as writer:
        writer.add("a", torch.ones(3))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llmc.convert.safetensors_file.shutil.copyfileobj", full)
    with (
        pytest.raises(MachineError, match=r"x\.safetensors: no space left"),
        SafetensorsWriter(tmp_path / "x.safetensors") as writer,
    ):
        writer.add("a", torch.ones(3))
    assert list(tmp_path.iterdir()) == []


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


BROKEN = {
    "bad dtype": ({"w": entry("F7")}, 8, "unknown dtype 'F7'"),
    "size mismatch": ({"w": entry(shape=(3,))}, 8, "has 8 bytes"),
    "beyond the end": ({"w": entry()}, 4, "truncated"),
    "trailing bytes": ({"w": entry()}, 12, "belong to no tensor"),
    "overlap": ({"v": entry(), "w": entry(offsets=(4, 12))}, 12, "overlap"),
    "same bytes twice": ({"v": entry(), "w": entry()}, 8, "overlap"),
    "hole": ({"v": entry(), "w": entry(offsets=(12, 20))}, 20, "leave a hole"),
    "negative shape": ({"w": entry(shape=(-1, -2))}, 8, "broken safetensors header at w"),
    "boolean shape": ({"w": entry(shape=(True, 2))}, 8, "broken safetensors header at w"),
    "huge shape": ({"w": entry(shape=(2**62, 2**62))}, 8, "has 8 bytes"),
    "negative offset": ({"w": entry(offsets=(-8, 0))}, 8, "broken safetensors header at w"),
    "unhashable dtype": ({"w": entry(dtype=["F32"])}, 8, "dtype"),
    "no dtype": ({"w": {"shape": [2], "data_offsets": [0, 8]}}, 8, "broken safetensors header at w"),
    "not a mapping": ({"w": 3}, 8, "broken safetensors header at w"),
    "a list": ([1], 8, "not an object"),
    "not JSON": (b"{nonsense", 8, "broken safetensors header"),
    "not UTF-8": (b'{"\xff": 1}', 8, "broken safetensors header"),
    "deep nesting": (b"[" * 100_000, 8, "broken safetensors header"),
    "sizes of thousands of digits": (
        b'{"w":{"dtype":"F32","shape":[%s],"data_offsets":[0,8]}}' % b",".join([b"9" * 4300] * 9),
        8,
        "digits",
    ),
    "sizes of 60 digits": ({"w": entry(shape=[10**59] * 60)}, 8, "broken safetensors header at w"),
    "many sizes": ({"w": entry(shape=[1] * 65)}, 8, "broken safetensors header at w"),
    "an offset beyond 64 bits": ({"w": entry(offsets=(0, 2**64))}, 8, "broken safetensors header at w"),
    "a long name": ({"w" * 1001: entry()}, 8, "broken safetensors header at www"),
    "half a character": (b'{"\\ud800": 1}', 8, "half a character"),
    "NaN": (b'{"w": NaN}', 8, "no finite number"),
    "a name twice": (b'{"w": 1, "w": 2}', 0, "a name occurs twice"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_headers_are_refused(tmp_path: Path, name: str) -> None:
    header, size, message = BROKEN[name]
    with pytest.raises(InputError) as caught:
        read_header(with_header(tmp_path / "x.safetensors", header, bytes(size)))
    assert message in str(caught.value)
    assert "x.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"1234", (2**63).to_bytes(8, "little"), b"\x10" + bytes(7) + b"{}"])
def test_files_without_a_whole_header_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.safetensors: truncated or not a safetensors file"):
        read_header(path)


def test_a_file_cut_after_opening_is_an_error_not_garbage(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors")
    stored = read_header(path)
    path.write_bytes(path.read_bytes()[: stored["strided"].offset + 4])
    with pytest.raises(InputError, match="truncated inside strided"):
        stored["strided"].read()


def test_parts_are_read_where_they_lie(tmp_path: Path) -> None:
    stack = torch.arange(120, dtype=torch.int32).reshape(4, 5, 6)
    with SafetensorsWriter(tmp_path / "x.safetensors") as writer:
        writer.add("a", torch.ones(3))
        writer.add("stack", stack)
    stored = read_header(tmp_path / "x.safetensors")["stack"]
    one = stored.item(2)
    for part, expected, contiguous in (
        (stored.rows(1, 3), stack[1:3], True),
        (stored.rows(1, 4, 2), stack[1::2], False),
        (one, stack[2], True),
        (one.rows(1, 5, 3), stack[2, 1::3], False),
        (one.rows(4, 5), stack[2, 4:], True),
        (one.transposed(), stack[2].T, False),
        (one.transposed().rows(1, 6, 2), stack[2].T[1::2], False),
        (one.transposed().rows(3, 6).transposed(), stack[2, :, 3:], False),
        (one.transposed().transposed(), stack[2], True),
        (one.item(3), stack[2, 3], True),
        (one.transposed().item(3), stack[2, :, 3], False),
        (stored.rows(2, 2), stack[:0], True),
    ):
        assert torch.equal(part.read(), expected) and part.read().is_contiguous()
        assert (part.shape, part.nbytes) == (tuple(expected.shape), 4 * expected.numel())
        assert (part.strides is None) == contiguous and part.whole is stored
    assert one.rows(1, 5, 3).name == "stack[2][1:5:3]"
