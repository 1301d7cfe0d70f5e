#!/usr/bin/env python3
"""How codes and scales are chosen, against other ways to choose them: KL divergence of the whole model for each.

    python ci/bench/rounding.py                                         # the embedded model, 2, 3 and 4 bits
    python ci/bench/rounding.py --variants default yaqa --schemes int3-g64
    python ci/bench/rounding.py --model DIRECTORY --length 128 --check 2048 --layers 1 4 7 10

All variants get the same calibration tokens, and quantize all linear layers of the decoder (or of the layers named).
The KL divergence is exact, over the whole vocabulary, of decoded weights. Some variants are what a recipe's `method`
offers; the others were tried, and lost or were replaced: docs/rounding.md says what came of them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from evaluate import evaluate, logits
from quantize import make_source
from rich.console import Console
from rich.table import Table

from llmc.calibration_recipe import Calibration, Check
from llmc.convert.checkpoint import Checkpoint
from llmc.quant import layer_solver
from llmc.quant.assign import METHODS, Rule
from llmc.quant.gptq import ASYMMETRY, DAMPING, Quantized, columns_by, solve
from llmc.quant.layerwise import QuantizeOptions, quantize
from llmc.quant.schemes import integer
from llmc.quant.schemes.base import Scheme
from llmc.text import read_texts

STRIP = 64  # columns between which the gradient is computed anew


def refined(
    rounds: int,
    passes: int,
    weight: torch.Tensor,
    hessian: torch.Tensor,
    scheme: Scheme,
    cross_covariance: torch.Tensor | None = None,
    rows: tuple[int, ...] = (),
) -> Quantized:
    """`solve`, whose arguments the others are; then as many rounds of scales of least error for the codes and as many
    passes of coordinate descent (as in QuantEase, Behdin et al. 2023) over the codes for these scales.
    """
    result = solve(weight, hessian, scheme, cross_covariance, rows)
    if result.zero_points is not None or not isinstance(scheme, integer.Integer) or result.damping.isinf().any():
        return result
    dead = hessian.diagonal(dim1=-2, dim2=-1) <= 0
    damping = (DAMPING * hessian.diagonal(dim1=-2, dim2=-1).mean(-1))[:, None].expand_as(dead)
    damped = hessian + torch.diag_embed(damping)
    wanted = weight.masked_fill(dead[:, None], 0.0)
    if cross_covariance is not None:
        wanted = wanted + ASYMMETRY * torch.linalg.solve(damped, (wanted @ cross_covariance).mT).mT
    steps, scales = result.qweight.float(), result.scales
    for _ in range(rounds):
        scales = better_scales(wanted, steps, damped, scales)
        for _ in range(passes):
            steps = descended(scheme, wanted, steps, damped, scales, result.order)
    return replace(result, qweight=scheme.to_codes(steps), scales=scales)


def better_scales(
    wanted: torch.Tensor, steps: torch.Tensor, hessian: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    """Scales [E, out, G] of least error for steps [E, out, in]: a linear system for every row, whose solution is taken
    where it still is the better one in bfloat16.
    """
    count, size = scales.shape[-1], steps.shape[-1] // scales.shape[-1]

    def by_group(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (count, size)).sum(-1)

    def error(scales: torch.Tensor) -> torch.Tensor:
        change = scales.float().repeat_interleave(size, -1) * steps - wanted
        return ((change @ hessian) * change).sum(-1, keepdim=True)

    parts = [slice(start, start + size) for start in range(0, count * size, size)]
    left = torch.stack([by_group((steps[..., part] @ hessian[..., part, :]) * steps) for part in parts], -1)
    right = by_group((wanted @ hessian) * steps)
    ridge = (1e-4 * left.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)).clamp_min(1e-20).expand_as(scales)
    found = torch.linalg.solve(left + torch.diag_embed(ridge), right + ridge * scales).to(scales.dtype)
    return torch.where(error(found) < error(scales), found, scales)


def descended(
    scheme: Scheme,
    wanted: torch.Tensor,
    steps: torch.Tensor,
    hessian: torch.Tensor,
    scales: torch.Tensor,
    order: torch.Tensor,
) -> torch.Tensor:
    """Steps [E, out, in] after one pass that makes each the best for all others as they are, by columns in `order`."""
    ranked = order[: len(hessian)]
    hessian = columns_by(ranked, columns_by(ranked, hessian).mT)
    wide = scales.float().repeat_interleave(steps.shape[-1] // scales.shape[-1], -1)
    wanted, steps, wide = (columns_by(order, each).mT.contiguous() for each in (wanted, steps, wide))  # [E, in, out]
    change = wide * steps - wanted
    for start in range(0, steps.shape[1], STRIP):
        strip = slice(start, min(start + STRIP, steps.shape[1]))
        gradient = hessian[:, strip] @ change
        for i in range(strip.start, strip.stop):
            best = wide[:, i] * steps[:, i] - gradient[:, i - start] / hessian[:, i, i, None]
            moved = wide[:, i] * (scheme.round_(best / wide[:, i]) - steps[:, i])
            steps[:, i] += moved / wide[:, i]
            change[:, i] += moved
            gradient += hessian[:, strip, i, None] * moved[:, None]
    return columns_by(order.argsort(-1), steps.round_().mT)


@dataclass(frozen=True)
class Variant:
    """A method of a recipe, and what else is done otherwise than llmc does it: (place, name, value)."""

    method: str = "gptaq"
    negative_scales: bool = True
    otherwise: tuple[tuple[Any, str, Any], ...] = ()

    @contextmanager
    def active(self) -> Iterator[None]:
        with ExitStack() as stack:
            for place, name, value in self.otherwise:
                stack.enter_context(patch.object(place, name, value))
            yield


def _solver(rounds: int, passes: int) -> tuple[tuple[Any, str, Callable[..., Quantized]], ...]:
    return ((layer_solver, "solve", partial(refined, rounds, passes)),)


VARIANTS = {
    "default": Variant(),
    **{method: Variant(method) for method in METHODS if method != Variant.method},
    # What targets get that do not take negative ones.
    "positive scales": Variant(negative_scales=False),
    # Scales down to a quarter of what would clip nothing, instead of half of it.
    "wide search": Variant(otherwise=((integer, "_COARSE", tuple(1 - 0.05 * step for step in range(16))),)),
    "scale refit": Variant(otherwise=_solver(1, 0)),
    "refit and descent": Variant(otherwise=_solver(2, 2)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a checkpoint; without it, the embedded model")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--schemes", nargs="+", default=["int2-g64", "int3-g64", "int4-g64"])
    parser.add_argument("--positive", action="store_true", help="positive scales in all variants")
    parser.add_argument("--samples", type=int, default=32, help="calibration windows")
    parser.add_argument("--length", type=int, default=512, help="tokens of each")
    parser.add_argument("--check", type=int, default=8192, help="tokens that are measured, in windows of 512")
    parser.add_argument("--layers", nargs="+", type=int, help="those that are quantized; without it, all")
    args = parser.parse_args()
    table = Table("scheme", "variant", "KL", "to the first", "ppl", "s")
    with tempfile.TemporaryDirectory() as work:
        source = args.model or make_source("embedded", Path(work))
        checkpoint = Checkpoint.open(source)
        texts = read_texts(
            Calibration(samples=args.samples, length=args.length),
            Check(tokens=args.check, length=512),
            checkpoint,
            Path(),
        )
        calibration, check = torch.from_numpy(texts.calibration), torch.from_numpy(texts.check)
        reference = logits(source, check)
        layers = "|".join(map(str, args.layers or range(checkpoint.spec.num_layers)))
        for scheme in args.schemes:
            first = 0.0
            for name in args.variants:
                start, variant, output = time.monotonic(), VARIANTS[name], Path(work) / f"{scheme}-{name}"
                rules = [Rule(rf"re:model\.layers\.({layers})\..*", scheme, variant.method)]
                with variant.active():
                    scratch = Path(work) / f"{output.name}.work"
                    options = QuantizeOptions(negative_scales=variant.negative_scales and not args.positive)
                    texts_read = calibration, calibration[:1]
                    quantize(checkpoint, rules, None, *texts_read, output, scratch, lambda *_: None, options)
                seconds, found = time.monotonic() - start, evaluate(output, source, check, reference)
                first = first or found.kl
                row = f"{found.kl:.5f}", f"{100 * (found.kl / first - 1):+.1f} %", f"{found.ppl:.3f}", f"{seconds:.0f}"
                Console(stderr=True).print(scheme, name, *row, highlight=False)
                table.add_row(scheme, name, *row)
            table.add_section()
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
