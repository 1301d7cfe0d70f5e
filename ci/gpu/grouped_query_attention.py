#!/usr/bin/env python3
"""Check and time the kernels of grouped-query attention on a GPU, at the heads of models that many people run.

    python ci/gpu/grouped_query_attention.py

They are launched through `GroupedQueryAttentionPlugin`, the operation that engines hold, with cubins compiled for this
GPU. A step that decodes is bound by bytes: the keys and values that are seen are counted once, and held against a copy.
A prompt is bound by products: those with entries that are seen are counted, and held against torch's product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.table import Table
from this_gpu import (
    DEVICE,
    TYPES,
    compiled,
    console,
    copied_bytes_per_second,
    judged,
    milliseconds,
    multiplied_flops_per_second,
    on_tensors,
    require_gpu,
    resources,
    show,
    title,
)

from llmc.convert.kernels.kernel_sets import KernelRequest
from llmc.runtime.plugins.grouped_query_attention import GroupedQueryAttentionPlugin, GroupedQueryShape

SHAPES = {
    "Llama-3.1-8B": GroupedQueryShape(32, 8, 128, 128, "bf16"),
    "Qwen2.5-7B": GroupedQueryShape(28, 4, 128, 128, "bf16"),
    "gpt-oss, window": GroupedQueryShape(64, 8, 64, 64, "bf16", window=128, sinks=True),
    "Gemma-2-9B": GroupedQueryShape(16, 8, 256, 256, "bf16", softcap=True),
    "MiMo-V2-Flash": GroupedQueryShape(64, 4, 192, 128, "bf16"),
}
TOLERANCE = 2**-6  # weights and outputs are rounded to bfloat16
SOFTCAP, CAPACITY = 50.0, 32768


@dataclass(frozen=True)
class Step:
    """lengths: entries that the last token of each sequence sees"""

    lengths: tuple[int, ...]
    tokens: int = 1


STEPS = {
    "one sequence": Step((CAPACITY,)),
    "8 sequences": Step((4096,) * 8),
    "one long, 31 short": Step((CAPACITY, *(1024,) * 31)),
    "drafts": Step((CAPACITY, 777), 4),
    "a prompt": Step((4096,), 4096),
    "a prompt's end": Step((CAPACITY,), 48),
}


def entries(shape: GroupedQueryShape, step: Step) -> int:
    """That are read, of one group."""
    return sum(min(length, shape.window + step.tokens - 1) if shape.window else length for length in step.lengths)


def read_bytes(shape: GroupedQueryShape, step: Step) -> int:
    return entries(shape, step) * shape.groups * (shape.channels + shape.values) * TYPES[shape.dtype].itemsize


def flops(shape: GroupedQueryShape, step: Step) -> int:
    """Of the products of each token with what it sees."""
    window = shape.window or CAPACITY + 1
    seen = sum(min(length - ago, window) for length in step.lengths for ago in range(step.tokens))
    return 2 * seen * shape.heads * (shape.channels + shape.values)


def tensors(shape: GroupedQueryShape, step: Step) -> list[torch.Tensor]:
    generator = torch.Generator(DEVICE).manual_seed(1)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, device=DEVICE, generator=generator, dtype=TYPES[shape.dtype])

    batch, capacity = len(step.lengths), max(step.lengths) + 5
    query = random(batch, shape.heads, step.tokens, shape.channels)
    key, value = (random(batch, shape.groups, capacity, size) for size in (shape.channels, shape.values))
    for row, length in enumerate(step.lengths):
        key[row, :, length:] = value[row, :, length:] = torch.nan
    position = torch.tensor(step.lengths, device=DEVICE) - step.tokens
    return [query, key, value, position] + [random(shape.heads)] * shape.sinks


def exact(shape: GroupedQueryShape, scale: float, given: list[torch.Tensor], row: int, token: int) -> torch.Tensor:
    """[Hq, V] in float64"""
    query, key, value, position, *sinks = given
    end = int(position[row]) + token + 1
    seen = slice(max(0, end - shape.window) if shape.window else 0, end)
    k, v = (x[row, :, seen].double().repeat_interleave(shape.heads_per_group, 0) for x in (key, value))
    scores = scale * (k @ query[row, :, token].double()[..., None])[..., 0]
    if shape.softcap:
        scores = SOFTCAP * (scores / SOFTCAP).tanh()
    if sinks:
        scores = torch.cat([scores, sinks[0].double()[:, None]], 1)
    weights = scores.softmax(-1)[:, : v.shape[1]]
    return (weights[:, None] @ v)[:, 0]


def main() -> None:
    require_gpu("grouped_query_attention.py")
    kernels = compiled([KernelRequest("GroupedQueryAttention", shape) for shape in SHAPES.values()])
    copied, multiplied, right = copied_bytes_per_second(), multiplied_flops_per_second(), True
    table = Table(
        "heads", "step", "difference", "ms", "of a copy", "of a product",
        title=title(f"a copy moves {copied / 1e9:.0f} GB/s, a product does {multiplied / 1e12:.0f} TFLOP/s"),
        caption="goals: 75% of a copy for one token, 60% of a product for a prompt",
    )  # fmt: skip
    for (name, shape), each in zip(SHAPES.items(), kernels, strict=True):
        scale = shape.channels**-0.5
        operation = GroupedQueryAttentionPlugin(each, scale, SOFTCAP if shape.softcap else 0.0)
        console.print(f"{name}: registers/spilled bytes: {resources(each)}")
        for kind, step in STEPS.items():
            given = tensors(shape, step)
            call, output = on_tensors(operation, *given)
            call()
            checked = {(row, token) for row in range(len(step.lengths)) for token in (0, step.tokens // 2, -1)}
            places = [(row, token % step.tokens) for row, token in sorted(checked)]
            off = [(output[r, :, t].double() - exact(shape, scale, given, r, t)).abs().max().item() for r, t in places]
            found = max(torch.tensor(off).nan_to_num(nan=torch.inf).tolist())
            right &= found <= TOLERANCE
            took = milliseconds(call) / 1e3
            table.add_row(
                name, kind, judged(found, TOLERANCE), f"{took * 1e3:.4f}",
                f"{read_bytes(shape, step) / took / copied:.0%}", f"{flops(shape, step) / took / multiplied:.0%}",
            )  # fmt: skip
    show(table)
    if not right:
        raise SystemExit("the kernels are wrong on this GPU")


if __name__ == "__main__":
    main()
