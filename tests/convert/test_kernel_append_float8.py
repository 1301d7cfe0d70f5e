"""Entries of an FP8 cache are rounded as torch rounds them, and nothing else is written.

The kernel runs in Triton's interpreter, which needs a process of its own: this file, run as a script.
"""

from __future__ import annotations

import sys

import pytest
import torch
from support.interpreted_kernels import compiled_without_spills, run
from support.interpreter_process import results_of

from llmc.convert.kernels.kernel_sets import KernelRequest
from llmc.runtime.plugins.append_float8 import AppendFloat8Plugin, EntryShape
from llmc.runtime.plugins.operation import Gpu

pytest.importorskip("triton", reason="Triton, which comes with torch for NVIDIA GPUs, is not installed")

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
UNTOUCHED = 0xAB
SCALE = 0.3
STARTS, CAPACITY = [0, 5, 30], 32  # of the last row, two tokens do not fit
BELOW = [4, -2, -40]  # places before a row, which are another row's or nobody's


def halfway() -> torch.Tensor:
    """All numbers of E4M3, those in the middle between two, those next to them, and what is too large or no number."""
    codes = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middles = (codes[1:] + codes[:-1]) / 2
    near = torch.cat([middles, middles.nextafter(torch.tensor(1e9)), middles.nextafter(torch.tensor(0.0))])
    given = torch.cat([codes, near, torch.tensor([460.0, 464.0, 1e30, float("inf"), 1e-30])])
    return torch.cat([given, -given, torch.tensor([float("nan")])])


def entries(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(3, 1, 4, 20, generator=torch.Generator().manual_seed(0)).to(dtype)


def in_kernel(given: torch.Tensor, starts: list[int], capacity: int, scale: float) -> torch.Tensor:
    """As a plugin launches it."""
    batch, _, _, channels = given.shape
    cache = torch.full((batch, 1, capacity, channels), UNTOUCHED, dtype=torch.uint8).view(torch.int8)
    wanted = KernelRequest("AppendFloat8", EntryShape(channels, NAMES[given.dtype]))
    written, launched = run(
        AppendFloat8Plugin, wanted, [cache, given, torch.tensor(starts)], cache.shape, Gpu(80, 1), cache_scale=scale
    )
    assert launched == ["append"] and written.data_ptr() == cache.data_ptr()
    return cache.view(torch.uint8)


results = results_of(__file__)


def test_rounds_to_the_nearest(results: dict[str, torch.Tensor]) -> None:
    want = halfway().clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    assert torch.equal(results["halfway"].flatten(), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_writes_its_place_alone(results: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    given = (entries(dtype).float() / SCALE).to(torch.float8_e4m3fn).view(torch.uint8)
    want = torch.full((3, 1, CAPACITY, 20), UNTOUCHED, dtype=torch.uint8)
    for row, start in enumerate(STARTS):
        fits = min(4, CAPACITY - start)
        want[row, 0, start : start + fits] = given[row, 0, :fits]
    assert torch.equal(results[str(dtype)], want)


def test_writes_nothing_before_the_cache(results: dict[str, torch.Tensor]) -> None:
    given = (entries(torch.bfloat16).float() / SCALE).to(torch.float8_e4m3fn).view(torch.uint8)
    want = torch.full((3, 1, CAPACITY, 20), UNTOUCHED, dtype=torch.uint8)
    want[0, 0, 4:8], want[1, 0, :2] = given[0, 0], given[1, 0, 2:]
    assert torch.equal(results["below"], want)


@pytest.mark.parametrize("sm", [80, 120])
def test_compiles_without_spills(sm: int) -> None:
    assert list(compiled_without_spills(KernelRequest("AppendFloat8", EntryShape(576, "bf16")), sm)) == ["append"]


if __name__ == "__main__":
    found = {"halfway": in_kernel(halfway()[None, None, None], [0], 1, 1.0)}
    found["below"] = in_kernel(entries(torch.bfloat16), BELOW, CAPACITY, SCALE)
    for kind in (torch.bfloat16, torch.float16):
        found[str(kind)] = in_kernel(entries(kind), STARTS, CAPACITY, SCALE)
    torch.save(found, sys.argv[1])
