"""The kernel of GPTQ's column loop agrees with the loop in torch, and compiles for every generation of GPU.

It runs in Triton's interpreter, which needs a process of its own: this file, run as a script.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.interpreter_process import results_of

from llmc.quant import gptq
from llmc.quant.gptq import _fix_columns, solve
from llmc.quant.schemes import scheme
from llmc.quant.schemes.base import Scheme
from llmc.quant.schemes.fp4 import NVFP4
from llmc.quant.schemes.fp8 import FP8
from llmc.quant.schemes.integer import Integer

pytestmark = pytest.mark.slow

pytest.importorskip("triton", reason="Triton, which comes with torch for NVIDIA GPUs, is not installed")

EXPERTS = 3
DEAD = 6  # a column whose weights are zero
SCHEMES: dict[str, Scheme] = {
    "int4": Integer(4, None),
    "int3-asym": Integer(3, None, symmetric=False),
    "fp8": FP8("channel"),
    "fp4": NVFP4(),
}
# Columns and out. The interpreter takes 3 ms for a column of a tile, so not every scheme sees every shape.
SHAPES = {
    "int4": [(1, 1), (1, 7), (1, 130), (16, 1), (16, 7), (16, 130), (100, 7), (128, 1), (128, 7), (128, 130)],
    "int3-asym": [(1, 130), (16, 130), (100, 1), (128, 7)],
    "fp8": [(1, 130), (16, 130), (100, 1), (128, 7)],
    "fp4": [(1, 130), (100, 1), (128, 7)],
}
FLOATS = {"fp8": 8, "fp4": 4}  # bits
CASES = [(name, *shape, "upper") for name in SCHEMES for shape in SHAPES[name]]
CASES += [(name, 100, 7, "identity") for name in SCHEMES]
SOLVED = ("int4-g64", "int3-g32-asym-actorder", "fp8-block", "nvfp4")
Tensors = dict[str, Any]
Results = dict[Any, tuple[torch.Tensor, torch.Tensor]]  # by case


def problem(name: str, columns: int, out: int, factor: str) -> Tensors:
    """target, scales, zeros [E, columns, out]; inverse [E, columns, columns], transposed in memory as solve's is."""
    generator = torch.Generator().manual_seed(1000 * columns + out)
    target = torch.randn(EXPERTS, columns, out, generator=generator)
    fine = 100.0 if name == "fp8" else 2.0
    scales = ((0.5 + torch.rand(EXPERTS, columns, out, generator=generator)) / fine).bfloat16().float()
    zeros = torch.randint(-4, 4, target.shape, generator=generator).float() if name == "int3-asym" else None
    upper = torch.eye(columns).repeat(EXPERTS, 1, 1)
    if factor == "upper":
        upper += (0.1 * torch.randn(EXPERTS, columns, columns, generator=generator)).triu(1)
        upper *= 0.5 + torch.rand(EXPERTS, columns, 1, generator=generator)
    if columns > DEAD:
        target[:, DEAD], scales[:, DEAD] = 0.0, 1.0
        upper[:, DEAD] = 0.0
        upper[:, :, DEAD] = 0.0
        upper[:, DEAD, DEAD] = 1.0
    return {"target": target, "scales": scales, "zeros": zeros, "inverse": upper.mT.contiguous().mT}


def to_solve() -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [2, 9, 192] and the Hessians of 400 tokens."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(2, 400, 192, generator=generator)
    return torch.randn(2, 9, 192, generator=generator), x.mT @ x


def boundaries(name: str) -> Tensors:
    """Every step of a format, ties between two, their neighbors, both zeros, what lies beyond; scale and U are 1."""
    if name == "fp8":
        values = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    else:
        values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6]) if name == "fp4" else torch.arange(12).float()
    values = torch.cat([values, (values[1:] + values[:-1]) / 2, torch.tensor([460.0, 1e30, torch.inf])])
    values = torch.cat([values, values.nextafter(torch.tensor(0.0)), values.nextafter(torch.tensor(torch.inf))])
    values = torch.cat([values, -values, torch.tensor([torch.nan])])[None, None]
    return {"target": values, "scales": torch.ones_like(values), "zeros": None, "inverse": torch.ones(1, 1, 1)}


def zero_scales() -> Tensors:
    target = torch.tensor([[[1.0, -1.0, 0.0], [0.5, 0.5, 0.5]]])
    scales = torch.tensor([[[0.0, 0.0, 0.0], [0.25, 0.25, 0.25]]])
    inverse = torch.tensor([[[1.0, 0.5], [0.0, 1.0]]])
    return {"target": target, "scales": scales, "zeros": None, "inverse": inverse}


def in_kernel(name: str, given: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """Steps and what is lost; every tensor is a slice of a larger one, as in solve."""
    from llmc.quant.kernels.fix_columns import fix_block

    def inside(x: torch.Tensor) -> torch.Tensor:
        larger = torch.full((x.shape[0], x.shape[1] + 9, x.shape[2]), torch.nan)
        larger[:, 5 : 5 + x.shape[1]] = x
        return larger[:, 5 : 5 + x.shape[1]]

    scheme, target = SCHEMES[name], inside(given["target"])
    steps, lost = inside(torch.empty_like(target)), torch.empty_like(target).contiguous()
    zeros = None if given["zeros"] is None else inside(given["zeros"])
    bounds = scheme.lowest, scheme.highest, FLOATS.get(name, 0)
    fix_block(target, given["inverse"], inside(given["scales"]), zeros, steps, lost, *bounds)
    return steps.contiguous(), lost


def kernel_of(choose: Callable[..., Any], chosen: Scheme, target: torch.Tensor) -> Callable[..., None] | None:
    """What `solve` would choose if the tensor were on a GPU."""
    return choose(chosen, SimpleNamespace(is_cuda=True, device=target.device))


def in_torch(name: str, given: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, column by column without strips."""
    target, scales, zeros, inverse = given["target"].clone(), given["scales"], given["zeros"], given["inverse"]
    steps, lost = torch.empty_like(target), torch.empty_like(target)
    for i in range(target.shape[1]):
        ratio = target[:, i] * scales[:, i].reciprocal()
        steps[:, i] = SCHEMES[name].round_(ratio, None if zeros is None else zeros[:, i])
        diagonal = inverse[:, i, i, None].reciprocal()
        lost[:, i] = torch.addcmul(target[:, i], steps[:, i], scales[:, i], value=-1) * diagonal
        target[:, i + 1 :] -= inverse[:, i, i + 1 :, None] * lost[:, i, None]
    return steps, lost


results = results_of(__file__)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_agrees_with_torch(results: Results, case: tuple[str, int, int, str]) -> None:
    name, columns, _, factor = case
    given = problem(*case)
    steps, lost = results[case]
    want_steps, want_lost = in_torch(name, given)
    wide = given["scales"], given["zeros"]
    in_strips = _fix_columns(SCHEMES[name], given["target"].clone(), given["inverse"], columns, lambda _: wide)
    # Sums in another order may tip a ratio that lies between two steps; the rest of its channel then goes its own way.
    allowed = 0 if factor == "identity" else 1
    parted = (steps != want_steps).any(1)
    assert parted.sum() <= allowed and (steps != in_strips.steps).any(1).sum() <= allowed
    assert (torch.isclose(lost, want_lost, rtol=1e-4, atol=1e-5).all(1) | parted).all()
    assert lost.square().sum((-2, -1)).tolist() == pytest.approx(in_strips.lost.sum(-1).tolist(), rel=1e-3)
    if columns > DEAD:
        assert not steps[:, DEAD].any() and not lost[:, DEAD].any()


@pytest.mark.parametrize("name", ["int4", "fp8", "fp4"])
def test_rounds_bit_by_bit_as_torch_does(results: Results, name: str) -> None:
    given = boundaries(name)
    want, _ = in_torch(name, given)
    steps, _ = results[f"boundaries {name}"]
    finite = ~want.isnan()
    assert torch.equal(steps[finite].view(torch.int32), want[finite].view(torch.int32))
    assert steps[~finite].isnan().all()


@pytest.mark.parametrize("name", ["int4", "fp8", "fp4"])
def test_a_scale_of_zero_is_as_bad_as_in_torch(results: Results, name: str) -> None:
    for got, want in zip(results[f"zero {name}"], in_torch(name, zero_scales()), strict=True):
        torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.parametrize("name", SOLVED)
def test_solve_with_the_kernel_is_solve_without(results: Results, name: str) -> None:
    """Blocks of groups, and groups that are found on the way."""
    codes, error = results[f"solve {name}"]
    plain = solve(*to_solve(), scheme(name))
    assert (codes == plain.qweight).float().mean() > 0.99
    torch.testing.assert_close(error, plain.error, rtol=1e-3, atol=0)


class WithoutCompiler:
    """A kernel where Triton finds none to build its launcher with."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **constants: Any) -> None:
            raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

        return launch


def test_without_a_c_compiler_torch_computes_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from llmc.quant.kernels import fix_columns

    plain = [solve(*to_solve(), scheme(name)) for name in SOLVED]
    monkeypatch.setattr(fix_columns, "_fix_block", WithoutCompiler())
    monkeypatch.setattr(gptq, "_kernel", partial(kernel_of, gptq._kernel))
    gptq._launches.cache_clear()
    for name, want in zip(SOLVED, plain, strict=True):
        assert torch.equal(solve(*to_solve(), scheme(name)).qweight, want.qweight)
    (said,) = (record.message for record in caplog.records)
    assert said.endswith("which is slower: Failed to find C compiler. Please specify via CC environment variable.")
    gptq._launches.cache_clear()


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("name", SCHEMES)
def test_compiles_without_spills(
    name: str, capability: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # what is cached is not compiled
    monkeypatch.setenv("TRITON_DUMP_PTXAS_LOG", "1")
    import triton
    from triton.backends.compiler import GPUTarget

    from llmc.quant.kernels import fix_columns as module

    kernel = module._fix_block
    constants: dict[str, Any] = {
        "FLOAT_BITS": FLOATS.get(name, 0),
        "COLUMNS": module.COLUMNS,
        "CHANNELS": module.CHANNELS,
    }
    constants["inverse_row"] = 1  # as solve's factor lies in memory
    if SCHEMES[name].symmetric:
        constants["zeros"] = None
    types = dict.fromkeys(kernel.arg_names[:6], "*fp32") | {"lowest": "fp32", "highest": "fp32"}
    signature = {arg: "constexpr" if arg in constants else types.get(arg, "i32") for arg in kernel.arg_names}
    source = triton.compiler.ASTSource(kernel, signature, constants)
    made = triton.compile(source, GPUTarget("cuda", capability, 32), {"num_warps": module.WARPS})
    assert made.asm["cubin"]
    log = capfd.readouterr().out  # of ptxas, for sm_90a, sm_100a and sm_120a where features are the architecture's own
    assert re.search(rf"for 'sm_{capability}a?'", log), log
    assert re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log) == [("0", "0")]
    assert int(re.findall(r"Used (\d+) registers", log)[0]) <= 128  # four blocks at once


if __name__ == "__main__":
    found: Results = {case: in_kernel(case[0], problem(*case)) for case in CASES}
    for name in ("int4", "fp8", "fp4"):
        found[f"boundaries {name}"] = in_kernel(name, boundaries(name))
        found[f"zero {name}"] = in_kernel(name, zero_scales())
    gptq._kernel = partial(kernel_of, gptq._kernel)
    for name in SOLVED:
        solved = solve(*to_solve(), scheme(name))
        found[f"solve {name}"] = solved.qweight, solved.error
    torch.save(found, sys.argv[1])
