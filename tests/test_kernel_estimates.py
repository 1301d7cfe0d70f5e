"""ci/bench/kernels.py: what it reads from machine code, and what it makes of that."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton, which comes with torch for NVIDIA GPUs, is not installed")
SCRIPT = Path(__file__).parents[1] / "ci" / "bench" / "kernels.py"


@pytest.fixture(scope="module")
def bench() -> Any:
    path = list(sys.path)
    yield runpy.run_path(str(SCRIPT), run_name="kernel_estimates")
    sys.path[:] = path


def made(bench: Any, *loop: str, **more: Any) -> Any:
    sizes = {"warps": 2, "stages": 4, "registers": 128, "spilled": 0, "shared": 20 << 10}
    return bench["Compiled"](loop, **sizes | more)


def test_products_and_shared_memory_are_counted_by_their_names(bench: Any) -> None:
    loop = "HMMA.16816.F32.BF16", "HMMA.1688.F32.TF32", "HGMMA.64x128x16.F32.BF16", "LDS.64", "LDS", "STS.U8"
    found = made(bench, *loop, "LDSM.16.M88.4", "F2F.BF16.F32", "F2FP.BF16.F32.PACK_AB")
    assert found.tensor_flops == 2 * (2 * 16 * 8 * 16 + 2 * 16 * 8 * 8 + 2 * 64 * 128 * 16 // 4)
    assert found.shared_bytes == 2 * (256 + 128 + 32 + 512)
    assert found.count(r"F2F(?!P)") == 1


def test_programs_of_a_multiprocessor(bench: Any) -> None:
    (h100,) = (gpu for gpu in bench["GPUS"] if gpu.name == "H100")
    assert made(bench, "HMMA.16816", shared=28 << 10).blocks(h100) == 228 // 29  # by shared memory
    assert made(bench, "HMMA.16816", shared=0).blocks(h100) == 65536 // (128 * 64)  # by registers
    assert made(bench, "HMMA.16816", shared=0, registers=16, warps=8).blocks(h100) == 64 // 8


def test_the_slowest_part_is_the_limit(bench: Any) -> None:
    """4 KiB a step at 14.46 bytes a clock: 308 clocks at the best. 1,000 instructions of two warps take 769."""
    (h100,) = (gpu for gpu in bench["GPUS"] if gpu.name == "H100")
    case = bench["Case"]("a case", None, "attend", 4096, 4096, 4096)
    few, many = made(bench, *["IMAD"] * 100), made(bench, *["IMAD"] * 1000)
    assert (bench["estimate"](case, few, h100).limit, round(bench["estimate"](case, few, h100).share, 2)) == (
        "memory",
        0.92,
    )
    found = bench["estimate"](case, many, h100)
    assert (found.limit, found.share) == ("issue", pytest.approx(4096 / 14.46 / (1000 * 2 / 4 / 0.65), rel=1e-3))
    converted = bench["estimate"](case, made(bench, *["F2F.BF16.F32"] * 200), h100)
    assert (converted.limit, round(converted.parts["conversions"])) == ("conversions", 800)
    alone = bench["estimate"](case, made(bench, *["HMMA.16816.F32.BF16"] * 500, shared=200 << 10), h100)
    assert alone.limit == "one program"
    slow = bench["estimate"](case, made(bench, "IMAD", stages=1, shared=200 << 10), h100)
    assert slow.limit == "latency" and slow.share == pytest.approx(4096 / 700e-9 / (3.35e12 / 132), rel=1e-3)


def test_every_case_is_a_kernel_that_there_is(bench: Any) -> None:
    for sm in {gpu.sm for gpu in bench["GPUS"]}:
        cases = [case for of in bench["CASES"] for case in of(sm)]
        assert len({case.name for case in cases}) == len(cases) > 20
        for case in cases:
            assert case.kernel in case.request.module().sources(case.request.shape, sm)
            assert 0 < case.bytes <= case.loaded and case.flops > 0
