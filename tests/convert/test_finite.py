"""NaN and infinity are found while a file is read for its hash, in every type that weights have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.random_checkpoint import LLAMA, random_weights, write_checkpoint

from llmc.convert import finite
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.finite import FiniteCheck
from llmc.convert.safetensors_file import read_header
from llmc.errors import InputError

FLOATS = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float32, torch.float64]


def check(path: Path, *names: str) -> FiniteCheck:
    """Of the named tensors, or all, after the file was read to the end."""
    header = read_header(path)
    found = FiniteCheck([tensor for name, tensor in header.items() if name in names or not names])
    assert b"".join(map(bytes, found.pieces(path))) == path.read_bytes()
    return found


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_float(tmp_path: Path, dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    whole = torch.tensor([limits.max, limits.min, 0.0, -0.0, limits.tiny, -limits.tiny, 1.0]).to(dtype)
    if dtype == torch.float64:
        whole = torch.tensor([limits.max, limits.min], dtype=dtype)
    save_file({"a": whole}, tmp_path / "whole.safetensors")
    check(tmp_path / "whole.safetensors").refuse()
    values = [torch.nan, -torch.nan] + ([] if dtype == torch.float8_e4m3fn else [torch.inf, -torch.inf])
    for value in values:
        broken = torch.ones(9, dtype=torch.float64).index_fill(0, torch.tensor(7), value).to(dtype)
        save_file({"a": broken}, tmp_path / "broken.safetensors")
        with pytest.raises(InputError, match=r"broken.safetensors: tensor a holds NaN or infinity"):
            check(tmp_path / "broken.safetensors").refuse()


def test_integers_that_look_like_nan(tmp_path: Path) -> None:
    save_file({"codes": torch.full((64,), -1, dtype=torch.int32)}, tmp_path / "a.safetensors")
    check(tmp_path / "a.safetensors").refuse()


@pytest.mark.parametrize("place", [0, 255, 256, 700, -1])
def test_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    """Tensors begin at odd bytes and are longer than what is read at once."""
    monkeypatch.setattr(finite, "_PIECE", 512)
    weights = torch.ones(1001, dtype=torch.bfloat16)
    weights[place] = -torch.inf
    tensors = {"a": torch.ones(3, dtype=torch.uint8), "b": weights, "c": torch.ones(77)}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="tensor b holds"):
        check(tmp_path / "a.safetensors").refuse()
    check(tmp_path / "a.safetensors", "a", "c").refuse()  # nobody asked for b


def test_all_are_counted_and_some_are_named(tmp_path: Path) -> None:
    save_file({f"w{i}": torch.full((2,), torch.nan if i % 2 else 1.0) for i in range(9)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"tensors w1, w3, w5 \(4 in all\) hold NaN or infinity"):
        check(tmp_path / "a.safetensors").refuse()


def test_a_file_cut_short_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(999)}, path)
    found = FiniteCheck(read_header(path).values())
    path.write_bytes(path.read_bytes()[:-3])
    assert b"".join(map(bytes, found.pieces(path))) == path.read_bytes()
    found.refuse()


def test_copies_that_the_model_does_not_need(tmp_path: Path) -> None:
    weights = random_weights(LLAMA | {"tie_word_embeddings": True})
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    write_checkpoint(tmp_path, LLAMA | {"tie_word_embeddings": True}, weights)
    names = {tensor.name for tensor in Checkpoint.open(tmp_path).used()}
    assert names == weights.keys() - {"lm_head.weight"}
