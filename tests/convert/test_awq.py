"""AWQ, packed here word by word as AutoAWQ's `from_linear` does it, and against compressed-tensors' own converter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
from support.quantized_checkpoint import quantized_copy
from support.random_checkpoint import LLAMA, random_weights, write_checkpoint

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.formats.pack_quantized import PackQuantized
from llmc.errors import InputError

CONFIG = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
MODULE = "model.layers.0.mlp.gate_proj"


def packed(numbers: torch.Tensor) -> torch.Tensor:
    """[n, out], 0 to 15 → int32 [n, out / 8]"""
    rows = []
    for row in numbers.tolist():
        words = []
        for start in range(0, len(row), 8):
            word = 0
            for place, output in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
                word |= row[start + output] << 4 * place
            words.append(word - (1 << 32) if word >= 1 << 31 else word)
        rows.append(words)
    return torch.tensor(rows, dtype=torch.int32)


def stored() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What a [80, 64] matrix is stored as, and what it is."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (64, 80), generator=generator)
    zeros = torch.randint(0, 16, (2, 80), generator=generator)
    scales = (torch.rand(2, 80, generator=generator) * 0.05 + 0.01).half()
    plain = (codes - zeros.repeat_interleave(32, 0)) * scales.float().repeat_interleave(32, 0)
    return {"qweight": packed(codes), "qzeros": packed(zeros), "scales": scales}, plain.T


def checkpoint(path: Path, quantization: dict[str, Any] | None = None, **changes: torch.Tensor) -> Checkpoint:
    weights = random_weights(LLAMA)
    del weights[f"{MODULE}.weight"]
    weights |= {f"{MODULE}.{part}": tensor for part, tensor in (stored()[0] | changes).items()}
    config = LLAMA | ({"quantization_config": quantization} if quantization else {})
    return Checkpoint.open(write_checkpoint(path, config, weights))


def test_read_and_kept_as_integers_with_zero_points(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", CONFIG)
    plain, weight = stored()[1], source.quantized(MODULE)
    assert weight is not None and weight.kind == source.kind(f"{MODULE}.weight")
    assert torch.equal(source.tensor(f"{MODULE}.weight"), plain)
    kept = quantized_copy(source, {}, tmp_path)
    again = kept.quantized(MODULE)
    assert again is not None and again.kind == weight.kind and torch.equal(again.qweight, weight.qweight)
    assert torch.equal(kept.tensor(f"{MODULE}.weight"), plain)


def test_stored_as_the_package_would_convert_it(tmp_path: Path) -> None:
    parts = {f"m.{part}": tensor for part, tensor in stored()[0].items()}
    theirs = AutoAWQConverter(group_size=32).process(parts)
    weight = checkpoint(tmp_path, CONFIG).quantized(MODULE)
    assert weight is not None
    ours = PackQuantized.encode("m", weight, weight.kind)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_described_in_a_file_of_its_own(tmp_path: Path) -> None:
    tmp_path.joinpath("quant_config.json").write_text(
        json.dumps({"w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"})
    )
    assert torch.equal(checkpoint(tmp_path).tensor(f"{MODULE}.weight"), stored()[1])


@pytest.mark.parametrize(
    ("quantization", "changes", "said"),
    [
        (CONFIG | {"bits": 8}, {}, "`quantization_config.bits` must be 4, not 8"),
        (CONFIG | {"version": "gemv"}, {}, "`quantization_config.version` 'gemv' cannot be read, only gemm"),
        (CONFIG, {"scales": torch.ones(3, 80)}, "scales [3, 80] does not fit a [80, 64] weight"),
        (CONFIG, {"qzeros": torch.zeros(2, 80).int()}, "qzeros [2, 80] does not fit a [80, 64] weight"),
        (CONFIG, {"scales": torch.ones(2, 80).int()}, "its scales I32; must be I32 and floats"),
    ],
)
def test_refused(tmp_path: Path, quantization: dict[str, Any], changes: dict[str, torch.Tensor], said: str) -> None:
    with pytest.raises(InputError) as caught:
        checkpoint(tmp_path, quantization, **changes)
    assert said in str(caught.value)
