#!/usr/bin/env python3
"""Check and time the kernels of latent attention on a GPU, at DeepSeek-R1's shapes: 128 heads, 512 + 64 channels.

    python ci/gpu/latent_attention.py

The cubins are compiled for this GPU and launched through llmc.runtime.cubin, as an artifact's would be. Every time is a
median with the L2 cache cleared before. The share of the copy's bandwidth counts each cache entry once, however often
it is read; with 128 heads an entry of bfloat16 costs 242 FLOPs a byte, so that most GPUs run out of FLOPs before bytes.
The peer, torch's attention, reads the keys and values of all heads, which were expanded from the latents beforehand.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from llmc.convert.kernels.latent_attention_plan import SMS, LatentShape, plan

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

    @property
    def float8(self) -> bool:
        return self.cache.dtype == torch.uint8

    def entries(self, sequence: int, length: int) -> torch.Tensor:
        """The first numbers of a sequence's cache, float64."""
        cache = self.cache[sequence, 0, :length]
        return cache.view(torch.float8_e4m3fn).double() * CACHE_SCALE if self.float8 else cache.double()


def problem(batch: int, tokens: int, longest: int, float8: bool, shorter: int = 0) -> Problem:
    """Each sequence has so many entries less than the one before; behind them lies NaN."""
    generator = torch.Generator("cuda").manual_seed(batch + tokens + longest)
    query = torch.randn(batch, HEADS, tokens, RANK + ROPE, device="cuda", generator=generator).bfloat16()
    capacity = longest + CAPACITY_BEYOND
    kind = torch.uint8 if float8 else torch.bfloat16
    cache = torch.empty(batch, 1, capacity, RANK + ROPE, dtype=kind, device="cuda")
    lengths = [max(tokens, longest - shorter * sequence) for sequence in range(batch)]
    for sequence, length in enumerate(lengths):
        entries = torch.randn(capacity, RANK + ROPE, device="cuda", generator=generator)
        entries[length:] = torch.nan
        cache[sequence, 0] = (entries / CACHE_SCALE).to(torch.float8_e4m3fn).view(kind) if float8 else entries
    return Problem(query, cache, torch.tensor(lengths, device="cuda") - tokens)


class Kernels:
    """Those for this GPU, by the type of the cache."""

    def __init__(self, sm: int, float8: bool) -> None:
        from llmc.convert.kernels.latent_attention import JOINED_CHANNELS, compiled
        from llmc.runtime.cubin import CubinKernel

        self.sm, self.shape, self.joined_channels = sm, LatentShape(HEADS, RANK, ROPE, "bf16", float8), JOINED_CHANNELS
        self.multiprocessors = torch.cuda.get_device_properties("cuda").multi_processor_count
        torch.zeros(1, device="cuda")  # makes the context that cubins are loaded into
        made = compiled(self.shape, sm)
        self.resources = {name: (each.registers, each.stack_bytes) for name, each in made.items()}
        self._kernels = {name: CubinKernel(each.cubin, each.description) for name, each in made.items()}

    def attention(self, given: Problem) -> tuple[Callable[[], None], torch.Tensor, int]:
        """What to call, where its output [B, Hq, S, R] will lie, and the number of splits."""
        batch, _, tokens, _ = given.query.shape
        capacity = given.cache.shape[2]
        chosen = plan(self.shape, self.sm, self.multiprocessors, batch, tokens, capacity)
        output = torch.full((batch, HEADS, tokens, RANK), torch.nan, dtype=torch.bfloat16, device="cuda")
        workspace = torch.full((chosen.workspace_bytes,), 0xFF, dtype=torch.uint8, device="cuda")  # NaN
        logsum = workspace.data_ptr() + chosen.mixed_bytes
        values = {
            "query": given.query.data_ptr(),
            "cache": given.cache.data_ptr(),
            "cache_position": given.cache_position.data_ptr(),
            "scale": SCALE,
            "cache_scale": CACHE_SCALE if given.float8 else 1.0,
            "tokens": tokens,
            "capacity": capacity,
        }

        def whole() -> None:
            stream = torch.cuda.current_stream().cuda_stream
            self._kernels["whole"].launch(chosen.grid, stream, **values, mixed=output.data_ptr())

        def split() -> None:
            stream, mixed = torch.cuda.current_stream().cuda_stream, workspace.data_ptr()
            self._kernels["split"].launch(chosen.grid, stream, **values, mixed=mixed, logsum=logsum)
            self._kernels["join"].launch(
                chosen.join_grid(self.joined_channels), stream, mixed=mixed, logsum=logsum,
                output=output.data_ptr(), tokens=tokens, splits=chosen.splits,
            )  # fmt: skip

        return (split if chosen.splits > 1 else whole), output, chosen.splits


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


def milliseconds(call: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return do_bench(call, return_mode="median")


def copied_bytes_per_second() -> float:
    """Read and written by a copy of 1 GiB."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2e3 * len(source) / milliseconds(lambda: target.copy_(source))


def peer_milliseconds(batch: int, context: int) -> float | None:
    """Of torch's attention for one token; values are padded to the keys' channels, or no fused kernel takes them."""
    needed = 2 * 2 * batch * HEADS * context * (NOPE + ROPE)
    if needed > 0.9 * torch.cuda.mem_get_info()[0]:
        return None
    key = torch.zeros(batch, HEADS, context, NOPE + ROPE, dtype=torch.bfloat16, device="cuda")
    value, query = torch.zeros_like(key), torch.zeros_like(key[:, :, :1])
    return milliseconds(lambda: torch.nn.functional.scaled_dot_product_attention(query, key, value))


def check(kernels: dict[str, Kernels], console: Console) -> bool:
    table = Table("cache", "batch", "tokens", "longest", "splits", "largest difference", title="against float64")
    right = True
    for name, each in kernels.items():
        for shape in CHECKED:
            given = problem(*shape, each.shape.float8, shorter=37)
            call, output, splits = each.attention(given)
            call()
            found = difference(given, output)
            right &= found <= TOLERANCE
            table.add_row(
                name, *map(str, shape), str(splits), f"{found:.2e}" + ("" if found <= TOLERANCE else " WRONG")
            )
    console.print(table)
    return right


def measure(kernels: dict[str, Kernels], console: Console) -> None:
    copied = copied_bytes_per_second()
    table = Table(
        "cache", "batch", "tokens", "context", "splits", "ms", "cache GB/s", "of a copy", "TFLOP/s", "torch ms",
        title=f"{torch.cuda.get_device_name()}, a copy moves {copied / 1e9:.0f} GB/s",
    )  # fmt: skip
    for name, each in kernels.items():
        for batch, tokens, context in DECODED + PREFILLED:
            row = [name, str(batch), str(tokens), str(context)]
            torch.cuda.empty_cache()
            try:
                given = problem(batch, tokens, context, each.shape.float8)
                call, _, splits = each.attention(given)
                took = milliseconds(call)
            except torch.OutOfMemoryError:
                table.add_row(*row, "out of memory")
                continue
            lengths = given.cache_position + tokens
            read = int(lengths.sum()) * (RANK + ROPE) * given.cache.element_size()
            seen = int((tokens * lengths - tokens * (tokens - 1) // 2).sum())
            flops = 2 * HEADS * seen * (RANK + ROPE + RANK)
            speed = 1e3 * read / took
            del given, call
            torch.cuda.empty_cache()
            peer = peer_milliseconds(batch, context) if tokens == 1 else None
            table.add_row(
                *row, str(splits), f"{took:.3f}", f"{speed / 1e9:.0f}", f"{speed / copied:.0%}",
                f"{flops / took / 1e9:.0f}", "–" if peer is None else f"{peer:.3f}",
            )  # fmt: skip
    console.print(table)


def main() -> None:
    if not torch.cuda.is_available():
        print("ci/gpu/latent_attention.py needs a CUDA device, and torch finds none here", file=sys.stderr)
        raise SystemExit(4)
    major, minor = torch.cuda.get_device_capability()
    sm = 10 * major + minor
    if sm not in SMS:
        print(f"ci/gpu/latent_attention.py needs a GPU of SM {', '.join(map(str, SMS))}, not {sm}", file=sys.stderr)
        raise SystemExit(4)
    console = Console(width=120)
    kernels = {"bf16": Kernels(sm, False), "fp8": Kernels(sm, True)}
    for name, each in kernels.items():
        console.print(f"{name}: registers and stack bytes {each.resources}")
    right = check(kernels, console)
    measure(kernels, console)
    if not right:
        raise SystemExit("the kernels are wrong on this GPU")


if __name__ == "__main__":
    main()
