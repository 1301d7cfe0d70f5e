#!/usr/bin/env python3
"""Time GPTQ on a GPU with the kernel of its column loop and with the loop in torch, and compare their codes.

    python ci/gpu/gptq.py                                     # the experts of one DeepSeek-V3 layer, 256 x [2048, 7168]
    python ci/gpu/gptq.py --experts 8 --rows 1024 --columns 2048

First it times the factorizations that `llmc.quant.gptq` takes or leaves: four matrices in one call or one by one, and
the inverse of the triangle by halves or solved for.
Experts are solved in portions that fit into memory, each with a Hessian of its own. The two ways sum in another order,
so a ratio that lies between two steps may fall to either side; from there on, an output channel goes its own way. How
much of the output is lost must not depend on the way.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from rich.table import Table
from this_gpu import require_gpu, show, title

from llmc.quant import gptq
from llmc.quant.schemes import scheme
from llmc.quant.schemes.base import Scheme

WAYS = {"kernel": True, "torch": False}
SHARE_OF_MEMORY = 0.8
MOST_DIFFERENT = 0.01  # relative difference of two errors
FACTORIZED, FACTORIZED_AT_ONCE = (512, 1024, 2048, 4096, 7168), 4


@dataclass
class Measured:
    """Of one way, all portions together; error: the sum of the experts' relative output errors."""

    seconds: float = 0.0
    peak: int = 0
    error: float = 0.0


def problem(experts: range, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [E, rows, columns] and Hessians [E, columns, columns] of correlated inputs, by the expert's number."""
    weights = torch.empty(len(experts), rows, columns, device="cuda")
    hessians = torch.empty(len(experts), columns, columns, device="cuda")
    for place, expert in enumerate(experts):
        generator = torch.Generator("cuda").manual_seed(expert)
        weights[place].normal_(0.0, 0.02, generator=generator)
        basis = torch.randn(columns // 8 or 1, columns, device="cuda", generator=generator)
        x = torch.randn(2 * columns, columns, device="cuda", generator=generator)
        x += 0.3 * torch.randn(2 * columns, len(basis), device="cuda", generator=generator) @ basis
        torch.mm(x.mT, x, out=hessians[place])
    return weights, hessians


def solve(weights: torch.Tensor, hessians: torch.Tensor, chosen: Scheme, way: str, measured: Measured) -> torch.Tensor:
    """The codes; adds to what is measured."""
    gptq.USE_KERNEL = WAYS[way]
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    result = gptq.solve(weights, hessians, chosen)
    torch.cuda.synchronize()
    measured.seconds += time.perf_counter() - start
    measured.peak = max(measured.peak, torch.cuda.max_memory_allocated())
    measured.error += result.error.sum().item()
    return result.qweight


def time_factorizations() -> None:
    """Of four matrices, as many as one batch of DeepSeek-V3's gate and up has. Not as CUDA graphs, which not every
    library's factorization can be.
    """
    from triton.testing import do_bench

    table = Table("columns", *FACTORIZATIONS, title=title("ms for four matrices"))
    for columns in FACTORIZED:
        x = torch.randn(FACTORIZED_AT_ONCE, 2 * columns, columns, device="cuda")
        matrices = x.mT @ x
        del x
        upper = torch.linalg.cholesky(matrices[:1]).mT.contiguous().expand(FACTORIZED_AT_ONCE, -1, -1).contiguous()
        took = (do_bench(partial(way, matrices, upper), return_mode="median") for way in FACTORIZATIONS.values())
        table.add_row(str(columns), *(f"{each:.2f}" for each in took))
        del matrices, upper
        torch.cuda.empty_cache()
    show(table)


def one_by_one(matrices: torch.Tensor, upper: torch.Tensor) -> None:
    for matrix in matrices:
        torch.linalg.cholesky_ex(matrix)


def solved(matrices: torch.Tensor, upper: torch.Tensor) -> None:
    identity = torch.eye(upper.shape[-1], device="cuda").expand_as(upper)
    torch.linalg.solve_triangular(upper, identity, upper=True)


FACTORIZATIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], object]] = {
    "Cholesky in one call": lambda matrices, upper: torch.linalg.cholesky_ex(matrices),
    "one by one": one_by_one,
    "inverse solved for": solved,
    "by halves": lambda matrices, upper: gptq._triangular_inverse(upper, torch.zeros_like(upper)),
}


def portion_of(rows: int, columns: int, chosen: Scheme) -> int:
    """How many experts fit, by what two take beyond one; both ways are warm then."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    peaks = list[int]()
    for experts in (1, 2):
        given = problem(range(experts), rows, columns)
        found = {way: Measured() for way in WAYS}
        for way, measured in found.items():
            solve(*given, chosen, way, measured)
        peaks.append(max(measured.peak for measured in found.values()))
        del given
        torch.cuda.empty_cache()
    one, two = peaks
    return max(1, int((SHARE_OF_MEMORY * free - one) / max(1, two - one)) + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--rows", type=int, default=2048, help="output channels")
    parser.add_argument("--columns", type=int, default=7168, help="input channels, a multiple of the group size")
    parser.add_argument("--scheme", default="int4-g128")
    parser.add_argument("--portion", type=int, help="experts solved at once; by default as many as fit into memory")
    args = parser.parse_args()
    require_gpu("gptq.py")
    assert isinstance(gptq.USE_KERNEL, bool)  # or torch would be compared with itself
    chosen = scheme(args.scheme)
    chosen.check("the experts", (args.rows, args.columns))
    time_factorizations()
    fitting = portion_of(args.rows, args.columns, chosen)
    portion = min(args.experts, args.portion or fitting)
    measured = {way: Measured() for way in WAYS}
    equal = 0
    for start in range(0, args.experts, portion):
        given = problem(range(start, min(start + portion, args.experts)), args.rows, args.columns)
        codes = [solve(*given, chosen, way, measured[way]).view(torch.int8) for way in WAYS]
        equal += int((codes[0] == codes[1]).sum())
        del given, codes
    weights = args.experts * args.rows * args.columns
    table = Table(
        "way", "ms per expert", "GB/s of bfloat16 weights", "equal codes", "error", "peak GPU GB",
        title=title(f"{args.experts} x [{args.rows}, {args.columns}] {args.scheme}, {portion} at once"),
    )  # fmt: skip
    for way, found in measured.items():
        table.add_row(
            way,
            f"{1000 * found.seconds / args.experts:.2f}",
            f"{2 * weights / found.seconds / 1e9:.2f}",
            f"{equal / weights:.3%}",
            f"{found.error / args.experts:.5f}",
            f"{found.peak / 1e9:.1f}",
        )
    show(table)
    kernel, plain = (measured[way].error for way in WAYS)
    if not abs(kernel - plain) <= MOST_DIFFERENT * plain:
        raise SystemExit(f"errors of {kernel:.5g} with the kernel and {plain:.5g} without it: one of them is wrong")


if __name__ == "__main__":
    main()
