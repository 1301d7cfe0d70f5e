"""`llmc.MixtureOfExperts` as kernels; how they are launched is told in `llmc.runtime.plugins.mixture_of_experts`."""

from __future__ import annotations

import triton
import triton.language as tl

from llmc.convert.kernels.ahead_of_time import KernelSource
from llmc.convert.kernels.grouped_product import Tile, multiply, product_constants
from llmc.convert.kernels.token_groups import WARPS, group_constants, group_tokens
from llmc.runtime.plugins.mixture_of_experts import HEIGHTS, ExpertsLaunch, ExpertsShape, ExpertWeights

COLUMNS = 1024  # of a token that one program adds up


@triton.jit
def _combine(
    outer: tl.tensor, index: tl.tensor, weight: tl.tensor, y: tl.tensor,
    hidden: tl.tensor, top_k: tl.tensor, EXPERTS: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """y[n] = sum over k of weight[n, k] outer[n, k], in float32. Grid: N, parts of H."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < hidden
    total = tl.zeros((COLUMNS,), tl.float32)
    for k in range(top_k):
        choice = token * top_k + k
        expert = tl.load(index + choice)
        known = (expert >= 0) & (expert < EXPERTS)  # of no expert, nothing was written
        row = tl.load(outer + choice * hidden + column, mask=inside & known, other=0.0)
        total += row.to(tl.float32) * tl.load(weight + choice).to(tl.float32)
    tl.store(y + token * hidden + column, total.to(y.dtype.element_ty), mask=inside)


def layout_for(shape: ExpertsShape, sm: int) -> ExpertsLaunch:
    def channels(has_up: bool, weights: ExpertWeights, inputs: int) -> dict[str, int]:
        return {str(rows): Tile.of(rows, has_up, sm, weights, inputs).channels for rows in HEIGHTS}

    of_gate, of_down = channels(True, shape.gate_up, shape.hidden), channels(False, shape.down, shape.inner)
    return ExpertsLaunch(of_gate, of_down, COLUMNS)


def sources(shape: ExpertsShape, sm: int) -> dict[str, KernelSource]:
    """Besides "combine", each for every height of a tile: "group", "gate_up" and "down" with its rows."""
    kind = f"*{shape.dtype}"
    types = dict.fromkeys(("x", "y", "outer", "bias", "up_bias"), kind) | dict.fromkeys(
        ("tile_choices", "tile_expert"), "*i32"
    )
    types |= {"index": "*i64", "weight": f"*{shape.weighting}"}
    sizes = ("choices", "tiles", "inputs", "outputs", "choices_of_row", "hidden", "top_k")
    types |= dict.fromkeys(sizes, "i32")
    aligned = ("inputs", "outputs") if shape.hidden % 16 == 0 == shape.inner % 16 else ()
    found = {"combine": KernelSource(_combine, types, {"COLUMNS": COLUMNS, "EXPERTS": shape.experts})}
    for rows in HEIGHTS:
        found[f"group_{rows}"] = KernelSource(group_tokens, types, group_constants(shape.experts, rows), WARPS)
        for name, weights in (("gate_up", shape.gate_up), ("down", shape.down)):
            stack = kind if weights.form == "plain" else "*i32"
            stored = {"weight": stack, "up": stack} | dict.fromkeys(("scales", "up_scales"), f"*{weights.scales}")
            inputs = shape.hidden if name == "gate_up" else shape.inner
            tile = Tile.of(rows, name == "gate_up", sm, weights, inputs)
            constants = product_constants(
                weights, tile, name == "gate_up", shape.bias, shape.alpha, shape.limit, inputs=inputs
            )
            found[f"{name}_{rows}"] = KernelSource(
                multiply, types | stored, constants, tile.warps, tile.stages, aligned, tile.registers
            )
    return found
