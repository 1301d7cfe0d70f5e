#!/usr/bin/env python3
"""Check and time the kernels of latent attention on a GPU, at DeepSeek-R1's shapes: 128 heads, 512 + 64 channels.

    python ci/gpu/latent_attention.py

They are launched through the plugins that engines hold, `LatentAttentionPlugin`, `AppendFloat8Plugin` and, for prompts,
`ExpandedLatentAttentionPlugin`, with cubins compiled for this GPU. The share of the copy's bandwidth counts each cache
entry once, however often it is read; with 128 heads an entry of bfloat16 costs 242 FLOPs a byte, so that most GPUs run
out of FLOPs before bytes. The peer, torch's attention, reads the keys and values of all heads, which were expanded from
the latents beforehand.

Prompts are timed in both forms. The absorbed one's products with kv_b_proj, which are not timed, take as many FLOPs for
a token as expanding, which is, takes for an entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from rich.table import Table
from this_gpu import (
    DEVICE,
    compiled,
    console,
    copied_bytes_per_second,
    current,
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
from llmc.runtime.plugins.append_float8 import AppendFloat8Plugin, EntryShape
from llmc.runtime.plugins.expanded_latent_attention import ExpandedLatentAttentionPlugin, ExpandedShape
from llmc.runtime.plugins.latent_attention import LatentAttentionPlugin, LatentLaunch, LatentShape, plan

HEADS, RANK, ROPE = 128, 512, 64
NOPE, VALUE = 128, 128  # channels of an expanded key beside the rotated ones, and of an expanded value
SCALE = (NOPE + ROPE) ** -0.5
CACHE_SCALE = 0.03125
CAPACITY_BEYOND = 64  # entries that no token sees, full of NaN
TOLERANCE = 2**-6  # relative to the largest number of the output: weights and output are rounded to bfloat16
CHECKED = ((3, 1, 5000), (2, 4, 3000), (70, 2, 200), (1, 600, 2048))  # batch, tokens, longest
DECODED = tuple((batch, 1, context) for batch in (1, 8, 32) for context in (1 << 10, 8 << 10, 32 << 10, 128 << 10))
PREFILLED = ((1, 4096, 4096), (1, 1024, 32 << 10))
EXPANDED_CHECKED = ((1, 600, 600), (2, 200, 6000), (3, 300, 9000))  # the last in several passes
PROMPTS = ((1, 512, 512), (1, 512, 4096), (1, 512, 32 << 10), (1, 2048, 32 << 10), (1, 4096, 4096), (8, 512, 4096))
# With powers of 2 the division is exact, and every code must be torch's. Else its last bit may decide, seldom.
APPENDED = {1.0: 0.0, CACHE_SCALE: 0.0, 0.3: 1e-3}  # scale: share of codes that may differ


@dataclass(frozen=True)
class Problem:
    """query [B, Hq, S, R + P], cache [B, 1, T, R + P] in bfloat16 or as E4M3 codes in int8, cache_position [B]."""

    query: torch.Tensor
    cache: torch.Tensor
    cache_position: torch.Tensor

    @property
    def lengths(self) -> list[int]:
        """Entries that the last token of each sequence sees."""
        return [position + self.query.shape[2] for position in self.cache_position.tolist()]

    def entries(self, sequence: int) -> torch.Tensor:
        """Those of a sequence that are seen, float64."""
        cache = self.cache[sequence, 0, : self.lengths[sequence]]
        return cache.double() if cache.dtype != torch.int8 else cache.view(torch.float8_e4m3fn).double() * CACHE_SCALE


def problem(batch: int, tokens: int, longest: int, shape: LatentShape, shorter: int = 0) -> Problem:
    """Each sequence has so many entries less than the one before; behind them lies NaN."""
    generator = torch.Generator(DEVICE).manual_seed(batch + tokens + longest)
    query = torch.randn(batch, shape.heads, tokens, shape.channels, device=DEVICE, generator=generator).bfloat16()
    capacity = longest + CAPACITY_BEYOND
    kind = torch.int8 if shape.float8 else torch.bfloat16
    cache = torch.empty(batch, 1, capacity, shape.channels, dtype=kind, device=DEVICE)
    lengths = [max(tokens, longest - shorter * sequence) for sequence in range(batch)]
    for sequence, length in enumerate(lengths):
        entries = torch.randn(capacity, shape.channels, device=DEVICE, generator=generator)
        entries[length:] = torch.nan
        cache[sequence, 0] = (entries / CACHE_SCALE).to(torch.float8_e4m3fn).view(kind) if shape.float8 else entries
    return Problem(query, cache, torch.tensor(lengths, device=DEVICE) - tokens)


def read_bytes(lengths: list[int], shape: LatentShape) -> int:
    """Of the cache, each entry once."""
    return sum(lengths) * shape.channels * (1 if shape.float8 else 2)


def flops(lengths: list[int], tokens: int, shape: LatentShape) -> int:
    """Of scores and of weighted sums, for what each token sees alone."""
    seen = sum(tokens * length - tokens * (tokens - 1) // 2 for length in lengths)
    return 2 * shape.heads * seen * (shape.channels + shape.rank)


def difference(given: Problem, output: torch.Tensor, rank: int) -> float:
    """Largest, over the largest number; of four heads of every sequence, against a softmax in float64."""
    _, heads, tokens, _ = given.query.shape
    some, worst = [0, 1, heads // 2, heads - 1], 0.0
    for sequence, position in enumerate(given.cache_position.tolist()):
        entries = given.entries(sequence)
        scores = SCALE * given.query[sequence, some].double() @ entries.mT
        seen = torch.arange(len(entries), device=DEVICE) <= position + torch.arange(tokens, device=DEVICE)[:, None]
        want = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ entries[:, :rank]
        found = (output[sequence, some].double() - want).abs().max() / want.abs().max()
        worst = max(worst, torch.nan_to_num(found, nan=torch.inf).item())
    return worst


def check_attention(attention: dict[str, LatentAttentionPlugin]) -> bool:
    table = Table("cache", "batch", "tokens", "longest", "largest difference", title="attention against float64")
    right = True
    for name, operation in attention.items():
        for shape in CHECKED:
            given = problem(*shape, operation.shape, shorter=37)
            call, output = on_tensors(operation, given.query, given.cache, given.cache_position)
            call()
            found = difference(given, output, operation.shape.rank)
            right &= found <= TOLERANCE
            table.add_row(name, *map(str, shape), judged(found, TOLERANCE))
    show(table)
    return right


def entries_of_all_numbers(channels: int) -> torch.Tensor:
    """[2, 1, S, channels]: every bfloat16 that is no NaN, and a NaN at the end."""
    every = torch.arange(1 << 16, dtype=torch.int32, device=DEVICE).to(torch.int16).view(torch.bfloat16)
    every = every[~every.isnan()]
    padding = torch.full((-len(every) % (2 * channels) or 2 * channels,), torch.nan, device=DEVICE).bfloat16()
    return torch.cat([every, padding]).view(2, 1, -1, channels)


def check_append(operation: AppendFloat8Plugin) -> bool:
    """The last rows of the second sequence do not fit."""
    entries, untouched = entries_of_all_numbers(operation.shape.channels), 0x2B
    _, _, tokens, channels = entries.shape
    capacity, starts = tokens + 5, [2, 8]
    table = Table("cache_scale", "entries", "codes that differ from torch's", title="new entries of an FP8 cache")
    right = True
    for scale, most in APPENDED.items():
        operation.cache_scale = scale
        cache = torch.full((2, 1, capacity, channels), untouched, dtype=torch.int8, device=DEVICE)
        want = cache.clone()
        for row, start in enumerate(starts):
            fits = min(tokens, capacity - start)
            codes = (entries[row, 0, :fits].float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
            want[row, 0, start : start + fits] = codes.view(torch.int8)
        call, output = on_tensors(operation, cache, entries, torch.tensor(starts, device=DEVICE))
        call()
        differ = (output != want).double().mean().item()
        right &= differ <= most
        table.add_row(f"{scale}", f"{entries.numel():,}", judged(differ, most))
    show(table)
    return right


@cache
def peer_milliseconds(batch: int, context: int) -> float | None:
    """Of torch's attention for one token; values are padded to the keys' channels, or no fused kernel takes them."""
    needed = 2 * 2 * batch * HEADS * context * (NOPE + ROPE)
    if needed > 0.9 * torch.cuda.mem_get_info()[0]:
        return None
    key = torch.zeros(batch, HEADS, context, NOPE + ROPE, dtype=torch.bfloat16, device=DEVICE)
    value, query = torch.zeros_like(key), torch.zeros_like(key[:, :, :1])
    return milliseconds(lambda: torch.nn.functional.scaled_dot_product_attention(query, key, value))


def measure(attention: dict[str, LatentAttentionPlugin]) -> None:
    copied, multiplied, gpu = copied_bytes_per_second(), multiplied_flops_per_second(), current()
    table = Table(
        "cache", "batch", "tokens", "context", "workers", "ms", "cache GB/s", "of a copy", "TFLOP/s", "of a matmul",
        "torch ms",
        title=title(f"a copy moves {copied / 1e9:.0f} GB/s", f"a matmul does {multiplied / 1e12:.0f} TFLOP/s"),
    )  # fmt: skip
    for name, operation in attention.items():
        shape, layouts = operation.shape, operation.kernels.layouts
        layout = LatentLaunch(**layouts[operation.kernels.fitting(gpu.sm)])
        for batch, tokens, context in DECODED + PREFILLED:
            row = [name, str(batch), str(tokens), str(context)]
            torch.cuda.empty_cache()
            try:
                given = problem(batch, tokens, context, shape)
                call, _ = on_tensors(operation, given.query, given.cache, given.cache_position)
                seconds = milliseconds(call) / 1e3
            except torch.OutOfMemoryError:
                table.add_row(*row, "out of memory")
                continue
            workers = plan(shape, layout, gpu.multiprocessors, batch, tokens, given.cache.shape[2]).workers
            bandwidth = read_bytes(given.lengths, shape) / seconds
            speed = flops(given.lengths, tokens, shape) / seconds
            del given, call
            torch.cuda.empty_cache()
            peer = peer_milliseconds(batch, context) if tokens == 1 else None
            table.add_row(
                *row, str(workers), f"{1e3 * seconds:.3f}", f"{bandwidth / 1e9:.0f}", f"{bandwidth / copied:.0%}",
                f"{speed / 1e12:.0f}", f"{speed / multiplied:.0%}", "–" if peer is None else f"{peer:.3f}",
            )  # fmt: skip
    show(table)


@dataclass(frozen=True)
class Prompt:
    """A problem in expanded form: query [B, S, H, N], rotated [B, H, S, P] and the halves of kv_b_proj."""

    absorbed: Problem
    query: torch.Tensor
    rotated: torch.Tensor
    key_weight: torch.Tensor
    value_weight: torch.Tensor

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        given = self.absorbed
        return (self.query, self.rotated, given.cache, given.cache_position, self.key_weight, self.value_weight)


def prompt(batch: int, tokens: int, longest: int, shape: ExpandedShape, shorter: int = 0) -> Prompt:
    absorbed = LatentShape(shape.heads, shape.rank, shape.rope, shape.dtype, shape.float8)
    generator = torch.Generator(DEVICE).manual_seed(batch + tokens)

    def random(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, device=DEVICE, generator=generator)

    return Prompt(
        problem(batch, tokens, longest, absorbed, shorter),
        random(batch, tokens, shape.heads, shape.nope).bfloat16(),
        random(batch, shape.heads, tokens, shape.rope).bfloat16(),
        (random(shape.heads, shape.nope, shape.rank) * shape.rank**-0.5).bfloat16(),
        (random(shape.heads, shape.rank, shape.values) * shape.rank**-0.5).bfloat16(),
    )


def prompt_difference(given: Prompt, output: torch.Tensor, shape: ExpandedShape) -> float:
    """Largest, over the largest number; of four heads of every sequence, against a softmax in float64."""
    batch, tokens, heads, _ = given.query.shape
    found = output.view(batch, tokens, heads, shape.values)
    worst = 0.0
    for sequence, position in enumerate(given.absorbed.cache_position.tolist()):
        latent, rope = given.absorbed.entries(sequence).split([shape.rank, shape.rope], dim=-1)
        seen = torch.arange(len(latent), device=DEVICE) <= position + torch.arange(tokens, device=DEVICE)[:, None]
        for head in (0, 1, heads // 2, heads - 1):
            key, value = latent @ given.key_weight[head].double().mT, latent @ given.value_weight[head].double()
            scores = given.query[sequence, :, head].double() @ key.mT
            scores += given.rotated[sequence, head].double() @ rope.mT
            want = (SCALE * scores).masked_fill(~seen, -torch.inf).softmax(-1) @ value
            off = (found[sequence, :, head].double() - want).abs().max() / want.abs().max()
            worst = max(worst, torch.nan_to_num(off, nan=torch.inf).item())
    return worst


def check_prompts(expanded: dict[str, ExpandedLatentAttentionPlugin]) -> bool:
    table = Table("cache", "batch", "tokens", "longest", "largest difference", title="expanded prompts against float64")
    right = True
    for name, operation in expanded.items():
        for sizes in EXPANDED_CHECKED:
            given = prompt(*sizes, operation.shape, shorter=137)
            call, output = on_tensors(operation, *given.inputs)
            call()
            found = prompt_difference(given, output, operation.shape)
            right &= found <= TOLERANCE
            table.add_row(name, *map(str, sizes), judged(found, TOLERANCE))
    show(table)
    return right


def prompt_flops(lengths: list[int], tokens: int, shape: ExpandedShape) -> int:
    """Of scores and averages, for what each token sees alone, and of expanding each entry once."""
    seen = sum(tokens * length - tokens * (tokens - 1) // 2 for length in lengths)
    channels = shape.nope + shape.rope + shape.values
    return 2 * shape.heads * (seen * channels + sum(lengths) * shape.rank * shape.expanded)


def measure_prompts(
    attention: dict[str, LatentAttentionPlugin], expanded: dict[str, ExpandedLatentAttentionPlugin]
) -> None:
    multiplied = multiplied_flops_per_second()
    columns = "cache", "batch", "tokens", "context", "absorbed ms", "expanded ms", "times", "TFLOP/s", "of a matmul"
    table = Table(*columns, title=title(f"a matmul does {multiplied / 1e12:.0f} TFLOP/s"))
    for name, operation in expanded.items():
        for batch, tokens, context in PROMPTS:
            row = [name, str(batch), str(tokens), str(context)]
            torch.cuda.empty_cache()
            try:
                given = prompt(batch, tokens, context, operation.shape)
                same = given.absorbed
                call, _ = on_tensors(attention[name], same.query, same.cache, same.cache_position)
                absorbed = milliseconds(call)
                call, _ = on_tensors(operation, *given.inputs)
                taken = milliseconds(call)
            except torch.OutOfMemoryError:
                table.add_row(*row, "out of memory")
                continue
            speed = 1e3 * prompt_flops(same.lengths, tokens, operation.shape) / taken
            table.add_row(
                *row, f"{absorbed:.3f}", f"{taken:.3f}", f"{absorbed / taken:.2f}",
                f"{speed / 1e12:.0f}", f"{speed / multiplied:.0%}",
            )  # fmt: skip
    show(table)


def main() -> None:
    require_gpu("latent_attention.py")
    shapes = {"bf16": LatentShape(HEADS, RANK, ROPE, "bf16"), "fp8": LatentShape(HEADS, RANK, ROPE, "bf16", True)}
    scales = {"bf16": 1.0, "fp8": CACHE_SCALE}
    wanted = [KernelRequest("LatentAttention", shape) for shape in shapes.values()]
    wanted += [
        KernelRequest("ExpandedLatentAttention", ExpandedShape(HEADS, RANK, NOPE, ROPE, VALUE, "bf16", shape.float8))
        for shape in shapes.values()
    ]
    *found, append = compiled([*wanted, KernelRequest("AppendFloat8", EntryShape(RANK + ROPE, "bf16"))])
    attention = {
        name: LatentAttentionPlugin(kernels, SCALE, scales[name])
        for name, kernels in zip(shapes, found[: len(shapes)], strict=True)
    }
    expanded = {
        name: ExpandedLatentAttentionPlugin(kernels, SCALE, scales[name])
        for name, kernels in zip(shapes, found[len(shapes) :], strict=True)
    }
    for name in shapes:
        for kernels in (attention[name].kernels, expanded[name].kernels):
            console.print(f"{name} cache: registers/spilled bytes: {resources(kernels)}")
    right = check_attention(attention) & check_prompts(expanded) & check_append(AppendFloat8Plugin(append, 1.0))
    measure(attention)
    measure_prompts(attention, expanded)
    if not right:
        raise SystemExit("the kernels are wrong on this GPU")


if __name__ == "__main__":
    main()
