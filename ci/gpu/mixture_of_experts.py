#!/usr/bin/env python3
"""Check and time the kernels of a mixture of experts on a GPU, at the shapes of DeepSeek-R1 and Qwen3-30B-A3B.

    python ci/gpu/mixture_of_experts.py

The kernels are compiled for this GPU and launched as an engine launches them. Every time is a median with the L2 cache
cleared before. Bytes are those of the chosen experts' weights, each expert once; FLOPs those of the choices. The peers
compute with bfloat16 weights: torch's grouped product, where torch has one and the weights fit, and one product after
the other. Both are spared what the kernels do besides: rows are gathered beforehand, and outputs are not added up.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from device import (
    compiled,
    copied_bytes_per_second,
    launcher,
    milliseconds,
    multiplied_flops_per_second,
    require_gpu,
    resources,
)
from rich.console import Console
from rich.table import Table

from llmc.convert.kernels import expert_weights
from llmc.convert.kernels.kernel_sets import Wanted
from llmc.convert.quantised_weight import QuantisedWeight
from llmc.runtime.plugins.mixture_of_experts import ExpertsShape, MixtureOfExperts, Weights

FORMS = {
    "int4": Weights("int4", 128, 1, "bf16"),
    "fp8": Weights("fp8", 128, 128, "fp32"),
    "bf16": Weights("plain"),
}
BITS = {"int4": 4 + 16 / 128, "fp8": 8 + 32 / 128**2, "bf16": 16}  # of a weight, its share of a scale among them
R1 = ExpertsShape(256, 8, 7168, 2048, "bf16", "bf16", Weights("plain"), Weights("plain"))
MODELS = {"R1": R1, "Qwen3-30B": replace(R1, experts=128, hidden=2048, inner=768)}
SMALL = replace(R1, experts=24, top_k=4, hidden=1168, inner=400)  # neither whole blocks nor whole tiles
CHECKED = (1, 7, 96, 1000)  # tokens
TOKENS = (1, 8, 32, 512, 4096)
TOLERANCE = 0.01  # of a token's norm: weights of high tiles, the inner channels and each expert's output are rounded


@dataclass(frozen=True)
class Stack:
    """Of one projection: as the kernels take it, and [E, out, in] in bfloat16, if that is wanted."""

    stored: list[torch.Tensor]
    plain: torch.Tensor | None = None


def checked_stack(form: str, experts: int, out: int, columns: int, generator: torch.Generator) -> Stack:
    """Numbers that are exactly what the codes mean."""
    if form == "bf16":
        plain = (0.05 * torch.randn(experts, out, columns, generator=generator)).bfloat16()
        return Stack([plain.cuda()], plain.cuda())
    found = []
    for _ in range(experts):
        if form == "int4":
            codes = torch.randint(-8, 8, (out, columns), generator=generator, dtype=torch.int8)
            scales = (0.02 * torch.rand(out, -(-columns // 128), generator=generator)).bfloat16()
            found.append(QuantisedWeight(codes, scales, (1, 128), "int4"))
        else:
            codes = torch.randn(out, columns, generator=generator).to(torch.float8_e4m3fn)
            scales = 0.05 * torch.rand(-(-out // 128), -(-columns // 128), generator=generator)
            found.append(QuantisedWeight(codes, scales, (128, 128), "float8_e4m3fn"))
    like = FORMS[form]
    words = torch.stack([expert_weights.words(each, like) for each in found]).cuda()
    scales = torch.stack([expert_weights.scales(each, like) for each in found]).cuda()
    return Stack([words, scales], torch.stack([each.dequantise() for each in found]).cuda())


def timed_stack(form: str, experts: int, out: int, columns: int) -> Stack:
    """Any codes."""
    kinds = {"bf16": torch.bfloat16, "fp32": torch.float32, "i32": torch.int32}
    stored = []
    for wanted in FORMS[form].inputs(experts, out, columns, "bf16"):
        shape = [n for n in wanted.shape if n is not None]
        if wanted.type == "i32":
            stored.append(torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32, device="cuda"))
        else:
            stored.append(torch.full(shape, 0.01, dtype=kinds[wanted.type], device="cuda"))
    return Stack(stored)


def routing(shape: ExpertsShape, tokens: int, hot: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """index [N, K] of different experts and weight [N, K]; hot: all tokens choose the last ones."""
    if hot:
        last = torch.arange(shape.experts - shape.top_k, shape.experts, device="cuda")
        index = last.expand(tokens, -1).contiguous()
    else:
        index = torch.rand(tokens, shape.experts, device="cuda").topk(shape.top_k).indices
    weight = torch.rand(tokens, shape.top_k, device="cuda").bfloat16()
    return index, weight


def in_float64(x: torch.Tensor, index: torch.Tensor, weight: torch.Tensor, stacks: list[Stack]) -> torch.Tensor:
    y = torch.zeros(x.shape, dtype=torch.float64, device="cuda")
    gate, up, down = (each.plain for each in stacks)
    assert gate is not None and up is not None and down is not None
    for expert in range(len(gate)):
        token, choice = torch.where(index == expert)
        given = x[token].double()
        inner = torch.nn.functional.silu(given @ gate[expert].double().mT) * (given @ up[expert].double().mT)
        y.index_add_(0, token, inner @ down[expert].double().mT * weight[token, choice, None].double())
    return y


def work(shape: ExpertsShape, form: str, index: torch.Tensor) -> tuple[float, int]:
    """Bytes of the weights of distinct chosen experts, and FLOPs of all choices."""
    weights = 3 * shape.hidden * shape.inner
    return len(index.unique()) * weights * BITS[form] / 8, 2 * index.numel() * weights


def shape_of(model: ExpertsShape, form: str) -> ExpertsShape:
    return replace(model, gate_up=FORMS[form], down=FORMS[form])


def check(console: Console) -> bool:
    table = Table("weights", "tokens", "routing", "largest error", "twice the same", title="against float64")
    right, generator = True, torch.Generator().manual_seed(0)
    sizes = (SMALL.inner, SMALL.hidden), (SMALL.inner, SMALL.hidden), (SMALL.hidden, SMALL.inner)
    for form in FORMS:
        operation = compiled(MixtureOfExperts, Wanted("MixtureOfExperts", shape_of(SMALL, form)))
        console.print(f"{form}, registers + spilled bytes: {resources(operation)}")
        stacks = [checked_stack(form, SMALL.experts, *size, generator) for size in sizes]
        for tokens in CHECKED:
            for hot in (False, True):
                x = torch.randn(tokens, SMALL.hidden, device="cuda").bfloat16()
                index, weight = routing(SMALL, tokens, hot)
                index[0, 0], index[-1, 1] = -1, SMALL.experts  # which there are not, and count nothing
                inputs = [x, index, weight, *(part for each in stacks for part in each.stored)]
                first, second = torch.empty_like(x), torch.empty_like(x)
                for output in (first, second):
                    launcher(operation, inputs, output)()
                want = in_float64(x, index, weight, stacks)
                errors = (first.double() - want).norm(dim=1) / want.norm(dim=1)
                error = errors.nan_to_num(nan=torch.inf).max().item()
                fine = error <= TOLERANCE and torch.equal(first, second)
                right &= fine
                verdict = f"{error:.2e}" + ("" if fine else " WRONG")
                table.add_row(form, str(tokens), "hot" if hot else "any", verdict, str(torch.equal(first, second)))
    console.print(table)
    return right


def peers(model: ExpertsShape, index: torch.Tensor, x: torch.Tensor) -> dict[str, float | None]:
    """Milliseconds for the same choices with weights of bfloat16; None where they do not fit or torch has no such."""
    none: dict[str, float | None] = {"grouped": None, "loop": None}
    if 2 * 3 * model.experts * model.hidden * model.inner > 0.8 * torch.cuda.mem_get_info()[0]:
        return none
    both = torch.full((model.experts, model.hidden, 2 * model.inner), 0.01, dtype=torch.bfloat16, device="cuda")
    down = torch.full((model.experts, model.inner, model.hidden), 0.01, dtype=torch.bfloat16, device="cuda")
    flat, order = index.flatten().sort()
    rows = x[order // index.shape[1]]
    ends = torch.bincount(flat, minlength=model.experts).cumsum(0).to(torch.int32)
    bounds = [0, *ends.tolist()]

    def activated(gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, -1)
        return torch.nn.functional.silu(gate) * up

    def loop() -> None:
        for expert, (start, end) in enumerate(pairwise(bounds)):
            if end > start:
                activated(rows[start:end] @ both[expert]) @ down[expert]

    found: dict[str, float | None] = {"grouped": None, "loop": milliseconds(loop)}
    grouped_mm: Callable[..., torch.Tensor] | None = getattr(torch.nn.functional, "grouped_mm", None) or getattr(
        torch, "_grouped_mm", None
    )
    if grouped_mm is not None:
        try:
            call = grouped_mm
            found["grouped"] = milliseconds(lambda: call(activated(call(rows, both, offs=ends)), down, offs=ends))
        except (RuntimeError, NotImplementedError) as error:
            print(f"torch's grouped product does not run here: {error}", file=sys.stderr)
    return found


def measure(console: Console) -> None:
    copied, multiplied = copied_bytes_per_second(), multiplied_flops_per_second()
    table = Table(
        "model", "weights", "tokens", "ms", "GB/s", "of a copy", "TFLOP/s", "of a product", "grouped ms", "loop ms",
        title=f"{torch.cuda.get_device_name()}, a copy moves {copied / 1e9:.0f} GB/s, "
        f"a product of bfloat16 does {multiplied / 1e12:.0f} TFLOP/s",
    )  # fmt: skip
    for name, model in MODELS.items():
        others: dict[int, dict[str, float | None]] = {}
        for tokens in TOKENS:
            torch.manual_seed(tokens)
            index, _ = routing(model, tokens)
            others[tokens] = peers(model, index, torch.randn(tokens, model.hidden, device="cuda").bfloat16())
            torch.cuda.empty_cache()
        for form in ("int4", "fp8"):
            operation = compiled(MixtureOfExperts, Wanted("MixtureOfExperts", shape_of(model, form)))
            sizes = (model.inner, model.hidden), (model.inner, model.hidden), (model.hidden, model.inner)
            stacks = [part for size in sizes for part in timed_stack(form, model.experts, *size).stored]
            for tokens in TOKENS:
                torch.manual_seed(tokens)
                index, weight = routing(model, tokens)
                x = torch.randn(tokens, model.hidden, device="cuda").bfloat16()
                took = milliseconds(launcher(operation, [x, index, weight, *stacks], torch.empty_like(x)))
                read, flops = work(model, form, index)
                peer = ["–" if ms is None else f"{ms:.3f}" for ms in others[tokens].values()]
                bytes_per_second, per_second = 1e3 * read / took, 1e3 * flops / took
                table.add_row(
                    name, form, str(tokens), f"{took:.3f}",
                    f"{bytes_per_second / 1e9:.0f}", f"{bytes_per_second / copied:.0%}",
                    f"{per_second / 1e12:.0f}", f"{per_second / multiplied:.0%}", *peer,
                )  # fmt: skip
            del stacks
            torch.cuda.empty_cache()
    console.print(table)


def main() -> None:
    require_gpu(__file__)
    console = Console(width=130)
    right = check(console)
    measure(console)
    if not right:
        sys.exit("the kernels are wrong on this GPU")


if __name__ == "__main__":
    main()
