#!/usr/bin/env python3
"""Check and time products with one matrix of int4, FP4 or FP8 on a GPU, at the shapes of DeepSeek-R1's attention.

    python ci/gpu/linear.py

They are launched through `LinearPlugin`, the operation that engines hold, with cubins compiled for this GPU. A few rows
are bound by bytes: weights and scales are counted once, and held against a copy.
"""

from __future__ import annotations

import math

import torch
from expert_stacks import FORMS, known
from rich.table import Table
from this_gpu import (
    DEVICE,
    TYPES,
    compiled,
    console,
    copied_bytes_per_second,
    difference_of_rows,
    judged,
    milliseconds,
    on_tensors,
    require_gpu,
    resources,
    show,
    title,
)

from llmc.convert.kernels.kernel_sets import KernelRequest
from llmc.runtime.plugins.linear import LinearPlugin, LinearShape

SIZES = {"q_a_proj": (7168, 1536), "o_proj": (16384, 7168), "ragged": (2888, 1000)}  # inputs, outputs
ROWS = (1, 8, 17, 32, 100)
TOLERANCE = 0.01  # of a row's norm: outputs are rounded to bfloat16
GOAL = 0.75


def shapes() -> dict[tuple[str, str], LinearShape]:
    """By matrix and weights; bfloat16 needs no plugin."""
    return {
        (name, form): LinearShape(inputs, outputs, "bf16", stored, bias=name == "ragged")
        for name, (inputs, outputs) in SIZES.items()
        for form, stored in FORMS.items()
        if stored.form != "plain"
    }


def weight_bytes(shape: LinearShape) -> int:
    """Of the matrix with its scales."""
    told = shape.weight.inputs(1, shape.outputs, shape.inputs, shape.dtype)
    return sum(math.prod(size or 0 for size in each.shape) * TYPES[each.type].itemsize for each in told)


def main() -> None:
    require_gpu("linear.py")
    wanted = shapes()
    kernels = compiled([KernelRequest("Linear", shape) for shape in wanted.values()])
    copied, right = copied_bytes_per_second(), True
    table = Table(
        "matrix", "weights", "rows", "difference", "ms", "GB/s", "of a copy",
        title=title(f"a copy moves {copied / 1e9:.0f} GB/s"), caption=f"goal: {GOAL:.0%} of a copy for few rows",
    )  # fmt: skip
    for (name, form), each in zip(wanted, kernels, strict=True):
        operation, generator = LinearPlugin(each), torch.Generator(DEVICE).manual_seed(1)
        shape = operation.shape
        console.print(f"{name}, {form}: registers/spilled bytes: {resources(each)}")
        weights = known(shape.weight, 1, shape.outputs, shape.inputs, generator)
        bias = [torch.randn(shape.outputs, device=DEVICE, generator=generator).bfloat16()] * shape.bias
        for rows in ROWS:
            x = torch.randn(rows, shape.inputs, device=DEVICE, generator=generator).bfloat16()
            call, output = on_tensors(operation, x, *weights.stored, *bias)
            call()
            want = x.double() @ weights.exact(0).mT + sum(each.double() for each in bias)
            found = difference_of_rows(output, want)
            right &= found <= TOLERANCE
            took = milliseconds(call)
            speed = weight_bytes(shape) / took * 1e3
            said = judged(found, TOLERANCE)
            table.add_row(
                name, form, str(rows), said, f"{took:.4f}", f"{speed / 1e9:.0f}", f"{speed / copied:.0%}"
            )  # fmt: skip
    show(table)
    if not right:
        raise SystemExit("the kernels are wrong on this GPU")


if __name__ == "__main__":
    main()
