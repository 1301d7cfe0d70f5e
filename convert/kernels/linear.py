"""`llmc.Linear` as kernels; how they are launched is told in `llmc.runtime.plugins.linear`."""

from __future__ import annotations

import triton
import triton.language as tl

from llmc.convert.kernels.ahead_of_time import KernelSource
from llmc.convert.kernels.grouped_product import Tile, multiply, product_constants
from llmc.runtime.plugins.linear import LinearLaunch, LinearShape
from llmc.runtime.plugins.mixture_of_experts import HEIGHTS, MANY

SUMS = 512  # that one program makes


@triton.jit
def _add(
    parts: tl.tensor, bias: tl.tensor, y: tl.tensor,
    count: tl.tensor, outputs: tl.tensor, portions: tl.tensor, SUMS: tl.constexpr,
) -> None:  # fmt: skip
    """Add up parts [portions, count] and the bias into y [count]. count: of rows times outputs."""
    place = tl.program_id(0) * SUMS + tl.arange(0, SUMS)
    inside = place < count
    total = tl.zeros((SUMS,), tl.float32)
    for portion in range(portions):
        total += tl.load(parts + portion * count + place, mask=inside, other=0.0)
    if bias is not None:
        total += tl.load(bias + place % outputs, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + place, total.to(y.dtype.element_ty), mask=inside)


def layout_for(shape: LinearShape, sm: int) -> LinearLaunch:
    return LinearLaunch(
        {str(rows): Tile.of(rows, False, sm, shape.weight, shape.inputs).channels for rows in HEIGHTS}, SUMS
    )


def sources(shape: LinearShape, sm: int) -> dict[str, KernelSource]:
    """A "product" for each height of a tile, "portions" for those of few rows, both with its rows; "add" for these."""
    types = dict.fromkeys(("x", "y", "bias"), f"*{shape.dtype}")
    types |= {"weight": "*i32", "scales": f"*{shape.weight.scales}", "parts": "*fp32"}
    types |= dict.fromkeys(("inputs", "outputs", "choices", "portion", "count", "portions"), "i32")
    aligned = tuple(name for name in ("inputs", "outputs") if getattr(shape, name) % 16 == 0)
    no_bias = {} if shape.bias else {"bias": None}
    found = {"add": KernelSource(_add, types, {"SUMS": SUMS} | no_bias)}

    def product(rows: int, portioned: bool) -> KernelSource:
        tile, bias = Tile.of(rows, False, sm, shape.weight, shape.inputs), shape.bias and not portioned
        constants = product_constants(
            shape.weight, tile, False, bias, grouped=False, portioned=portioned, inputs=shape.inputs
        )
        constants["choices_of_row"] = 1
        stored = {"y": "*fp32"} if portioned else {}
        multiples = (*aligned, *["portion"] * portioned)
        return KernelSource(multiply, types | stored, constants, tile.warps, tile.stages, multiples, tile.registers)

    found |= {f"portions_{rows}": product(rows, True) for rows in HEIGHTS if rows != MANY}
    return found | {f"product_{rows}": product(rows, False) for rows in HEIGHTS}
