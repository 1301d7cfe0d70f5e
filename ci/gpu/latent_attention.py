#!/usr/bin/env python3
"""Check and time the kernels of latent attention on a GPU, at DeepSeek-R1's shapes: 128 heads, 512 + 64 channels.

    python ci/gpu/latent_attention.py

The kernels are compiled for this GPU and launched as an engine launches them. Every time is a median with the L2 cache
cleared before. The share of the copy's bandwidth counts each cache entry once, however often it is read; with 128 heads
an entry of bfloat16 costs 242 FLOPs a byte, so that most GPUs run out of FLOPs before bytes. The peer, torch's own
attention, reads the keys and values of all heads, which were expanded from the latents beforehand.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial

import torch
from device import compiled, copied_bytes_per_second, launcher, milliseconds, require_gpu, resources
from rich.console import Console
from rich.table import Table

from llmc.convert.kernels.kernel_sets import Wanted
from llmc.runtime.plugins.append_float8 import AppendFloat8, EntryShape
from llmc.runtime.plugins.latent_attention import LatentAttention, LatentShape
from llmc.runtime.plugins.operation import Operation

HEADS, RANK, ROPE = 128, 512, 64
NOPE, VALUE = 128, 128  # channels of an expanded key beside the rotated ones, and of an expanded value
SCALE = (NOPE + ROPE) ** -0.5
CACHE_SCALE = 0.03125
CAPACITY_BEYOND = 64  # entries that no token sees, full of NaN
TOLERANCE = 2**-6  # relative to the largest number of the output: weights and output are rounded to bfloat16
CHECKED = ((3, 1, 5000), (2, 4, 3000), (70, 2, 200), (1, 600, 2048))  # batch, tokens, longest
DECODED = tuple((batch, 1, context) for batch in (1, 8, 32) for context in (1 << 10, 8 << 10, 32 << 10, 128 << 10))
PREFILLED = ((1, 4096, 4096), (1, 1024, 32 << 10))


@dataclass(frozen=True)
class Problem:
    """query [B, Hq, S, R + P], cache [B, 1, T, R + P] in bfloat16 or as E4M3 codes, cache_position [B]."""

    query: torch.Tensor
    cache: torch.Tensor
    cache_position: torch.Tensor

    def entries(self, sequence: int, length: int) -> torch.Tensor:
        """The first numbers of a sequence's cache, float64."""
        cache = self.cache[sequence, 0, :length]
        return cache.view(torch.float8_e4m3fn).double() * CACHE_SCALE if cache.dtype == torch.int8 else cache.double()

    def output(self) -> torch.Tensor:
        return torch.empty(*self.query.shape[:3], RANK, dtype=torch.bfloat16, device="cuda")

    @property
    def inputs(self) -> list[torch.Tensor]:
        return [self.query, self.cache, self.cache_position]


def problem(batch: int, tokens: int, longest: int, float8: bool, shorter: int = 0) -> Problem:
    """Each sequence has so many entries less than the one before; behind them lies NaN."""
    generator = torch.Generator("cuda").manual_seed(batch + tokens + longest)
    query = torch.randn(batch, HEADS, tokens, RANK + ROPE, device="cuda", generator=generator).bfloat16()
    capacity = longest + CAPACITY_BEYOND
    kind = torch.int8 if float8 else torch.bfloat16
    cache = torch.empty(batch, 1, capacity, RANK + ROPE, dtype=kind, device="cuda")
    lengths = [max(tokens, longest - shorter * sequence) for sequence in range(batch)]
    for sequence, length in enumerate(lengths):
        entries = torch.randn(capacity, RANK + ROPE, device="cuda", generator=generator)
        entries[length:] = torch.nan
        cache[sequence, 0] = (entries / CACHE_SCALE).to(torch.float8_e4m3fn).view(kind) if float8 else entries
    return Problem(query, cache, torch.tensor(lengths, device="cuda") - tokens)


def difference(given: Problem, output: torch.Tensor) -> float:
    """Largest, over the largest number; of four heads of every sequence, against a softmax in float64."""
    heads, tokens = [0, 1, HEADS // 2, HEADS - 1], given.query.shape[2]
    worst = 0.0
    for sequence, position in enumerate(given.cache_position.tolist()):
        entries = given.entries(sequence, position + tokens)
        scores = SCALE * given.query[sequence, heads].double() @ entries.mT
        seen = torch.arange(len(entries), device="cuda") <= position + torch.arange(tokens, device="cuda")[:, None]
        want = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ entries[:, :RANK]
        found = (output[sequence, heads].double() - want).abs().max() / want.abs().max()
        worst = max(worst, torch.nan_to_num(found, nan=torch.inf).item())
    return worst


def peer_milliseconds(batch: int, context: int) -> float | None:
    """Of torch's attention for one token; values are padded to the keys' channels, or no fused kernel takes them."""
    needed = 2 * 2 * batch * HEADS * context * (NOPE + ROPE)
    if needed > 0.9 * torch.cuda.mem_get_info()[0]:
        return None
    key = torch.zeros(batch, HEADS, context, NOPE + ROPE, dtype=torch.bfloat16, device="cuda")
    value, query = torch.zeros_like(key), torch.zeros_like(key[:, :, :1])
    return milliseconds(partial(torch.nn.functional.scaled_dot_product_attention, query, key, value))


def work(tokens: int, lengths: list[int]) -> tuple[int, int]:
    """Cache entries that are read once, and FLOPs of a step whose sequences have these lengths with the new tokens."""
    seen = sum(tokens * length - tokens * (tokens - 1) // 2 for length in lengths)
    return sum(lengths), 2 * HEADS * seen * (RANK + ROPE + RANK)


def check(kernels: dict[str, Operation], console: Console) -> bool:
    table = Table("cache", "batch", "tokens", "longest", "largest difference", title="against float64")
    right = True
    for name, operation in kernels.items():
        for shape in CHECKED:
            given = problem(*shape, float8=name == "fp8", shorter=37)
            output = given.output()
            launcher(operation, given.inputs, output)()
            found = difference(given, output)
            right &= found <= TOLERANCE
            table.add_row(name, *map(str, shape), f"{found:.2e}" + ("" if found <= TOLERANCE else " WRONG"))
    console.print(table)
    return right & check_append(console)


def check_append(console: Console) -> bool:
    """Codes of new cache entries, against torch's."""
    append = compiled(AppendFloat8, Wanted("AppendFloat8", EntryShape(RANK + ROPE, "bf16")), cache_scale=CACHE_SCALE)
    entries = 3 * torch.randn(4, 1, 33, RANK + ROPE, device="cuda").bfloat16()
    cache = torch.zeros(4, 1, 100, RANK + ROPE, dtype=torch.int8, device="cuda")
    starts = torch.tensor([0, 7, 60, 67], device="cuda")
    want = cache.clone()
    codes = (entries.float() / CACHE_SCALE).clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.int8)
    for row, start in enumerate(starts.tolist()):
        want[row, :, start : start + 33] = codes[row]
    launcher(append, [cache, entries, starts], cache)()
    equal = torch.equal(cache, want)
    console.print(f"AppendFloat8: {'codes are torch’s' if equal else 'WRONG codes'}")
    return equal


def measure(kernels: dict[str, Operation], console: Console) -> None:
    copied = copied_bytes_per_second()
    table = Table(
        "cache", "batch", "tokens", "context", "ms", "cache GB/s", "of a copy", "TFLOP/s", "torch ms",
        title=f"{torch.cuda.get_device_name()}, a copy moves {copied / 1e9:.0f} GB/s",
    )  # fmt: skip
    for name, operation in kernels.items():
        for batch, tokens, context in DECODED + PREFILLED:
            row = [name, str(batch), str(tokens), str(context)]
            torch.cuda.empty_cache()
            try:
                given = problem(batch, tokens, context, name == "fp8")
                took = milliseconds(launcher(operation, given.inputs, given.output()))
            except torch.OutOfMemoryError:
                table.add_row(*row, "out of memory")
                continue
            entries, flops = work(tokens, (given.cache_position + tokens).tolist())
            speed = 1e3 * entries * (RANK + ROPE) * given.cache.element_size() / took
            del given
            torch.cuda.empty_cache()
            peer = peer_milliseconds(batch, context) if tokens == 1 else None
            table.add_row(
                *row, f"{took:.3f}", f"{speed / 1e9:.0f}", f"{speed / copied:.0%}", f"{flops / took / 1e9:.0f}",
                "–" if peer is None else f"{peer:.3f}",
            )  # fmt: skip
    console.print(table)


def main() -> None:
    require_gpu(__file__)
    console = Console(width=120)
    kernels = {
        name: compiled(
            LatentAttention,
            Wanted("LatentAttention", LatentShape(HEADS, RANK, ROPE, "bf16", name == "fp8")),
            scale=SCALE,
            cache_scale=CACHE_SCALE if name == "fp8" else 1.0,
        )
        for name in ("bf16", "fp8")
    }
    for name, operation in kernels.items():
        console.print(f"{name}, registers + spilled bytes: {resources(operation)}")
    right = check(kernels, console)
    measure(kernels, console)
    if not right:
        sys.exit("the kernels are wrong on this GPU")


if __name__ == "__main__":
    main()
