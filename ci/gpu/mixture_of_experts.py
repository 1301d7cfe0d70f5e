#!/usr/bin/env python3
"""Check and time the kernels of a mixture of experts on a GPU, at the shapes of DeepSeek-R1 and Qwen3-30B-A3B.

    python ci/gpu/mixture_of_experts.py

They are launched through `MixtureOfExpertsPlugin`, the operation that engines hold, with cubins compiled for this GPU.
Decoding is bound by bytes: each chosen expert's weights are counted once, and held against a copy. Prefill is bound by
FLOPs, held against a product of torch's in bfloat16. Routing is uniform, which makes the most experts distinct. The
peers have the same experts in bfloat16: torch's grouped product, with the sorting and adding that it needs, and a loop
over the chosen experts. All but the loop, which asks the GPU for the routing, run as CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from expert_stacks import FORMS, FP8, INT4, PLAIN, Stack, expert_bytes, flops, known, random
from rich.table import Table
from this_gpu import (
    DEVICE,
    compiled,
    console,
    copied_bytes_per_second,
    difference_of_rows,
    judged,
    milliseconds,
    multiplied_flops_per_second,
    on_tensors,
    require_gpu,
    resources,
    show,
    title,
)
from torch.nn import functional

from llmc.convert.kernels.kernel_sets import KernelRequest
from llmc.runtime.plugins.mixture_of_experts import ExpertsShape, MixtureOfExpertsPlugin

MODELS = {
    "DeepSeek-R1": ExpertsShape(256, 8, 7168, 2048, "bf16", "bf16", PLAIN, PLAIN),
    "Qwen3-30B-A3B": ExpertsShape(128, 8, 2048, 768, "bf16", "bf16", PLAIN, PLAIN),
}
TIMED = {"int4 g128": INT4, "fp8 128x128": FP8}
DECODED, PREFILLED = (1, 8, 32), (512, 4096)
COPY_GOAL, MATMUL_GOAL = 0.75, 0.6
# Few experts, so that a CPU's worth of float64 will do; widths of real models, and some that fill no block.
CHECKED = {
    "R1's widths": replace(MODELS["DeepSeek-R1"], experts=12),
    "Qwen3's widths": replace(MODELS["Qwen3-30B-A3B"], experts=16),
    "ragged": ExpertsShape(7, 3, 776, 328, "bf16", "bf16", PLAIN, PLAIN),
    "gpt-oss's widths": ExpertsShape(8, 4, 2880, 2880, "bf16", "bf16", PLAIN, PLAIN, bias=True, alpha=1.702, limit=7.0),
}
ROUTINGS = ("uniform", "hot", "some empty")
CHECKED_TOKENS = (1, 9, 300)
TOLERANCE = 0.02  # of a token's norm: inner channels, each choice's output and their sum are rounded to bfloat16


def routing(kind: str, tokens: int, shape: ExpertsShape, generator: torch.Generator) -> torch.Tensor:
    """[N, K], different experts for a token, unless it is "hot": the last expert gets everything."""
    if kind == "hot":
        return torch.full((tokens, shape.top_k), shape.experts - 1, device=DEVICE)
    score = torch.rand(tokens, shape.experts, device=DEVICE, generator=generator)
    if kind == "some empty":  # the first, and all behind those that are needed
        score[:, 0] = score[:, shape.top_k + 2 :] = -1
    return score.topk(shape.top_k).indices


def inputs_of(kind: str, tokens: int, shape: ExpertsShape, generator: torch.Generator) -> list[torch.Tensor]:
    """x [N, H], index and weight [N, K]."""
    x = torch.randn(tokens, shape.hidden, device=DEVICE, generator=generator).bfloat16()
    index = routing(kind, tokens, shape, generator)
    weight = torch.rand(index.shape, device=DEVICE, generator=generator).bfloat16()
    return [x, index, weight]


def biases_of(shape: ExpertsShape, generator: torch.Generator) -> list[torch.Tensor]:
    """Of gate, up and down, where there are some."""
    sizes = (shape.inner, shape.inner, shape.hidden) if shape.bias else ()
    return [torch.randn(shape.experts, size, device=DEVICE, generator=generator).bfloat16() for size in sizes]


def exact(
    inputs: list[torch.Tensor],
    gate: Stack,
    up: Stack,
    down: Stack,
    biases: Sequence[torch.Tensor] = (),
    alpha: float = 1.0,
    limit: float = 0.0,
) -> torch.Tensor:
    """float64 [N, H]"""
    x, index, weight = inputs
    want = torch.zeros(x.shape, dtype=torch.float64, device=DEVICE)
    for expert in index.unique().tolist():
        token, slot = torch.where(index == expert)
        rows = x[token].double()
        of_gate, of_up, of_down = [bias[expert].double() for bias in biases] or [torch.zeros((), device=DEVICE)] * 3
        gates, ups = rows @ gate.exact(expert).mT + of_gate, rows @ up.exact(expert).mT + of_up
        if limit:
            gates, ups = gates.clamp(max=limit), ups.clamp(-limit, limit) + 1
        inner = gates * torch.sigmoid(alpha * gates) * ups
        want.index_add_(0, token, (inner @ down.exact(expert).mT + of_down) * weight[token, slot, None].double())
    return want


def check(operations: dict[tuple[str, str], MixtureOfExpertsPlugin]) -> bool:
    table = Table("widths", "weights", "routing", *map(str, CHECKED_TOKENS), title="difference from float64, by tokens")
    right = True
    for (widths, form), operation in operations.items():
        shape, generator = operation.shape, torch.Generator(DEVICE).manual_seed(1)
        gate, up = (known(shape.gate_up, shape.experts, shape.inner, shape.hidden, generator) for _ in range(2))
        down = known(shape.down, shape.experts, shape.hidden, shape.inner, generator)
        biases = biases_of(shape, generator)
        for kind in ROUTINGS:
            row = list[str]()
            for tokens in CHECKED_TOKENS:
                given = inputs_of(kind, tokens, shape, generator)
                call, output = on_tensors(operation, *given, *gate.stored, *up.stored, *down.stored, *biases)
                call()
                found = difference_of_rows(output, exact(given, gate, up, down, biases, shape.alpha, shape.limit))
                right &= found <= TOLERANCE
                row.append(judged(found, TOLERANCE))
            table.add_row(widths, form, kind, *row)
    show(table)
    return right


def grouped(inputs: list[torch.Tensor], gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """By torch's grouped product. gate_up [E, 2 I, H], down [E, H, I]"""
    product = getattr(functional, "grouped_mm", None) or torch._grouped_mm
    x, index, weight = inputs
    expert, order = index.flatten().sort(stable=True)
    ends = torch.searchsorted(expert, torch.arange(len(down), device=DEVICE), right=True, out_int32=True)
    gate, up = product(x[order // index.shape[1]], gate_up.mT, offs=ends).chunk(2, -1)
    outer = torch.empty(len(order), x.shape[1], dtype=x.dtype, device=DEVICE)
    outer[order] = product(functional.silu(gate) * up, down.mT, offs=ends)
    return torch.bmm(weight[:, None], outer.view(*index.shape, -1))[:, 0]


def looped(inputs: list[torch.Tensor], gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """By two products for each chosen expert."""
    x, index, weight = inputs
    y = torch.zeros_like(x)
    for expert in index.unique().tolist():
        token, slot = torch.where(index == expert)
        gate, up = (x[token] @ gate_up[expert].mT).chunk(2, -1)
        y.index_add_(0, token, functional.silu(gate) * up @ down[expert].mT * weight[token, slot, None])
    return y


PEERS: dict[str, Callable[..., torch.Tensor]] = {"grouped": grouped, "looped": looped}


def peer_milliseconds(shape: ExpertsShape, given: dict[int, list[torch.Tensor]]) -> dict[tuple[str, int], str]:
    """By peer and number of tokens; "–" where this torch or GPU cannot."""
    found = {(name, tokens): "–" for name in PEERS for tokens in given}
    try:
        gate, up, down = random(replace(shape, gate_up=PLAIN, down=PLAIN), torch.Generator(DEVICE).manual_seed(2))
        gate_up = torch.cat([gate, up], 1)
    except torch.OutOfMemoryError:
        return found
    del gate, up
    for name, peer in PEERS.items():
        for tokens, inputs in given.items():
            try:
                took = milliseconds(partial(peer, inputs, gate_up, down))
                found[name, tokens] = f"{took:.3f}"
            except (RuntimeError, AttributeError) as error:
                console.print(f"{name}, {tokens} tokens: {str(error).splitlines()[0]}", markup=False)
    return found


def measure(operations: dict[tuple[str, str], MixtureOfExpertsPlugin]) -> None:
    copied, multiplied = copied_bytes_per_second(), multiplied_flops_per_second()
    table = Table(
        "model", "weights", "tokens", "experts", "ms", "GB/s", "of a copy", "TFLOP/s", "of a matmul", *PEERS,
        title=title(f"a copy moves {copied / 1e9:.0f} GB/s", f"a matmul does {multiplied / 1e12:.0f} TFLOP/s"),
        caption=f"goals: {COPY_GOAL:.0%} of a copy up to {DECODED[-1]} tokens, {MATMUL_GOAL:.0%} of a matmul beyond; "
        "peers in ms, with bfloat16 weights",
    )  # fmt: skip
    for model, shape in MODELS.items():
        generator = torch.Generator(DEVICE).manual_seed(3)
        given = {tokens: inputs_of("uniform", tokens, shape, generator) for tokens in DECODED + PREFILLED}
        peers = peer_milliseconds(shape, given)
        for form in TIMED:
            torch.cuda.empty_cache()
            operation = operations[model, form]
            try:
                weights = random(operation.shape, generator)
            except torch.OutOfMemoryError:
                table.add_row(model, form, "", "", "out of memory")
                continue
            for tokens, inputs in given.items():
                call, _ = on_tensors(operation, *inputs, *weights)
                seconds, distinct = milliseconds(call) / 1e3, len(inputs[1].unique())
                bandwidth = distinct * expert_bytes(operation.shape) / seconds
                speed = flops(shape, tokens) / seconds
                table.add_row(
                    model, form, str(tokens), str(distinct), f"{1e3 * seconds:.3f}",
                    f"{bandwidth / 1e9:.0f}", f"{bandwidth / copied:.0%}",
                    f"{speed / 1e12:.0f}", f"{speed / multiplied:.0%}", *(peers[name, tokens] for name in PEERS),
                )  # fmt: skip
            del weights, call
    show(table)


def main() -> None:
    require_gpu("mixture_of_experts.py")
    checked = {(w, f): replace(shape, gate_up=it, down=it) for w, shape in CHECKED.items() for f, it in FORMS.items()}
    timed = {(m, f): replace(shape, gate_up=it, down=it) for m, shape in MODELS.items() for f, it in TIMED.items()}
    shapes = checked | timed
    kernels = compiled([KernelRequest("MixtureOfExperts", shape) for shape in shapes.values()])
    operations = {name: MixtureOfExpertsPlugin(each) for name, each in zip(shapes, kernels, strict=True)}
    for name in timed:
        console.print(f"{', '.join(name)}: registers/spilled bytes: {resources(operations[name].kernels)}")
    right = check({name: operations[name] for name in checked})
    measure(operations)
    if not right:
        raise SystemExit("the kernels are wrong on this GPU")


if __name__ == "__main__":
    main()
