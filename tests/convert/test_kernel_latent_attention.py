"""The kernels of latent attention agree with a softmax in float64, and compile for every generation of GPU.

They run in Triton's interpreter, which needs a process of its own: this file, run as a script.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support.interpreted_kernels import (
    GENERATIONS,
    compiled_without_spills,
    layouts_alone,
    let_the_interpreter_multiply_bfloat16,
    run,
)
from support.interpreter_process import results_of

from llmc.convert.kernels.kernel_sets import KernelRequest
from llmc.convert.kernels.latent_attention_tiles import FEW_HEADS, LARGEST_RANK, LARGEST_ROPE, SMS
from llmc.runtime.plugins.latent_attention import LatentAttentionPlugin, LatentLaunch, LatentShape, plan
from llmc.runtime.plugins.operation import Gpu

pytestmark = pytest.mark.slow

pytest.importorskip("triton", reason="Triton, which comes with torch for NVIDIA GPUs, is not installed")

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
CODE_OF_NAN = 0x7F
CACHE_SCALE = 0.046875
SPARE = 3  # entries that nothing was written to


@dataclass(frozen=True)
class Case:
    """lengths: of each sequence, with the new tokens; sm: whose tiles, and whose way to read FP8."""

    lengths: tuple[int, ...]
    tokens: int = 1
    workers: int = 1
    dtype: str = "bf16"
    float8: bool = False
    sm: int = 86
    heads: int = 5
    rank: int = 24
    rope: int = 8
    scale: float = 0.2

    @property
    def shape(self) -> LatentShape:
        return LatentShape(self.heads, self.rank, self.rope, self.dtype, self.float8)


CASES = [Case((length,)) for length in (1, 15, 17, 64, 257)]
CASES += [
    Case((257, 3, 64, 40), tokens, workers=2, heads=heads) for tokens, heads in ((1, 5), (2, 17), (3, 5), (3, 20))
]
CASES += [Case((70, 8), 8, workers=3, heads=16, rank=16, rope=16)]
CASES += [Case((113,), workers=workers) for workers in range(2, 8)]
CASES += [Case((15, 1), workers=7), Case((33, 18), 2, workers=7)]  # most workers have no entries
CASES += [Case((4097, 1025), workers=4, heads=2, rank=5, rope=3), Case((4097,), heads=1, rank=1, rope=1)]
CASES += [
    Case((tokens + before,), tokens) for tokens, before in ((1, 30), (5, 0), (16, 17), (33, 1), (70, 0), (70, 61))
]
CASES += [Case((90, 71), 70, dtype="fp16", heads=3), Case((20, 9), 7, heads=33)]
CASES += [Case((65, 20), 2, workers, "fp16") for workers in (1, 3)]
FLOAT8 = ((1, "bf16", 86, 5), (3, "fp16", 86, 18), (3, "bf16", 120, 18), (1, "fp16", 120, 5))
CASES += [Case((65, 20), 3, workers, dtype, True, sm, heads) for workers, dtype, sm, heads in FLOAT8]
CASES += [Case((40, 9), 2, workers=2, sm=90, heads=40, rank=48, rope=20)]  # tiles of several heads and tokens
CASES += [Case((40, 9), 2, workers=2, heads=3, rank=512, rope=64)]
CASES += [Case((200, 7), 2, workers=3, scale=40.0)]  # nearly all weight on one entry
CASES += [Case((600, *[17] * 9, 33), workers=workers) for workers in (2, 5, 16)]  # one is much longer than the others
CASES += [Case((3,) * 150 + (400,) + (20,) * 20, workers=7, heads=2, rank=16)]  # more than are looked at in one go
CASES += [Case((200, 7), 2, 3, "bf16", float8, sm, 40) for float8 in (False, True) for sm in (80, 90, 120)]
CASES += [Case((32,) * 6, workers=3), Case((32, 16, 48), workers=6)]  # workers that begin where sequences do


LAUNCHED = (Case((200, 7), 2, heads=17), Case((90, 71, 3), 2, float8=True))


@dataclass(frozen=True)
class Inputs:
    """query [B, Hq, S, R + P], cache [B, 1, T, R + P] as codes or numbers, cache_position [B]."""

    query: torch.Tensor
    cache: torch.Tensor
    cache_position: torch.Tensor


def inputs(case: Case) -> Inputs:
    """Cache entries that no token may see are NaN."""
    generator = torch.Generator().manual_seed(sum(case.lengths) + case.tokens)
    batch, channels = len(case.lengths), case.rank + case.rope
    query = torch.randn(batch, case.heads, case.tokens, channels, generator=generator).to(DTYPES[case.dtype])
    cache = torch.randn(batch, 1, max(case.lengths) + SPARE, channels, generator=generator)
    if case.float8:
        cache = (cache / CACHE_SCALE).to(torch.float8_e4m3fn).view(torch.uint8)
    else:
        cache = cache.to(DTYPES[case.dtype])
    for row, length in enumerate(case.lengths):
        cache[row, :, length:] = CODE_OF_NAN if case.float8 else torch.nan
    return Inputs(query, cache, torch.tensor(case.lengths) - case.tokens)


def every_code() -> tuple[Case, Inputs]:
    """Sequences of one entry, which attention returns as it is; together they hold all finite numbers of E4M3."""
    codes = torch.tensor([code for code in range(256) if code & CODE_OF_NAN != CODE_OF_NAN], dtype=torch.uint8)
    case = Case((1,) * 11, float8=True, heads=1, rank=24)
    cache = torch.zeros(11, 1, 1, 32, dtype=torch.uint8)
    cache[..., :24] = torch.cat([codes, codes[:10]]).view(11, 1, 1, 24)
    return case, Inputs(torch.zeros(11, 1, 1, 32, dtype=torch.bfloat16), cache, torch.zeros(11, dtype=torch.int64))


def in_kernel(case: Case, given: Inputs, cache_scale: float) -> torch.Tensor:
    """[B, Hq, S, R]. Nothing that the kernels do not write is left to chance: it is NaN."""
    from llmc.convert.kernels import latent_attention as kernels

    batch, _, tokens, _ = given.query.shape
    capacity, rows = given.cache.shape[2], tokens * case.heads
    constants = kernels.attend_constants(case.shape, case.sm)
    output = torch.full((batch, case.heads, tokens, case.rank), torch.nan, dtype=given.query.dtype)
    mixed = torch.full((case.workers, 2, rows, case.rank), torch.nan)
    logsum = torch.full((case.workers, 2, rows), torch.nan)
    kernels._attend[-(-rows // constants["ROWS"]), case.workers](
        given.query, given.cache, given.cache_position, output, mixed, logsum, case.scale, cache_scale,
        batch, tokens, capacity, **constants,
    )  # fmt: skip
    if case.workers > 1:
        kernels._join[rows, -(-case.rank // kernels.JOINED_CHANNELS), batch](
            mixed, logsum, given.cache_position, output, batch, tokens, capacity, case.workers,
            **kernels.join_constants(case.shape, case.sm),
        )  # fmt: skip
    return output


def in_float64(case: Case, given: Inputs) -> torch.Tensor:
    """softmax(scale * query @ cache^T) @ cache[..., :R] over the entries t <= cache_position[b] + s."""
    cache = given.cache
    if case.float8:
        cache = cache.view(torch.float8_e4m3fn).double() * CACHE_SCALE
    output = torch.empty(*given.query.shape[:3], case.rank, dtype=torch.float64)
    for b, position in enumerate(given.cache_position.tolist()):
        for s in range(case.tokens):
            seen = cache[b, 0, : position + s + 1].double()
            weights = (case.scale * given.query[b, :, s].double() @ seen.T).softmax(-1)
            output[b, :, s] = weights @ seen[:, : case.rank]
    return output


results = results_of(__file__)


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: str(CASES[number]))
def test_agrees_with_a_softmax_in_float64(results: dict[Any, torch.Tensor], number: int) -> None:
    case = CASES[number]
    want = in_float64(case, inputs(case))
    # Weights and output are rounded: to 8 bits in bfloat16, to 11 in float16.
    tolerance = 2**-6 if case.dtype == "bf16" else 2**-9
    torch.testing.assert_close(results[number].double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("sm", [86, 89])
def test_reads_every_code_of_fp8(results: dict[Any, torch.Tensor], sm: int) -> None:
    _, given = every_code()
    want = given.cache[..., :24].view(torch.float8_e4m3fn).bfloat16()
    assert torch.equal(results[f"codes {sm}"], want)


@pytest.mark.parametrize("number", range(2))
@pytest.mark.parametrize("multiprocessors", [1, 84])
def test_is_launched_as_planned(results: dict[Any, Any], number: int, multiprocessors: int) -> None:
    """As a plugin launches it: joined where a tile of rows has several workers."""
    case = LAUNCHED[number]
    found, launched = results[f"launched {number} {multiprocessors}"]
    assert launched == (["attend"] if multiprocessors == 1 else ["attend", "join"])
    torch.testing.assert_close(found.double(), in_float64(case, inputs(case)), rtol=2**-6, atol=2**-6)


def test_nan_that_is_seen_is_not_hidden(results: dict[Any, torch.Tensor]) -> None:
    """Neither by the sums of a part nor where parts are joined."""
    assert results["nan"].isnan().all()


@pytest.mark.parametrize("float8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize(
    ("sm", "heads"),
    [*((sm, 128) for sm in GENERATIONS), *((sm, heads) for sm in (86, 90) for heads in (FEW_HEADS, 20))],
)
def test_compiles_without_spills(sm: int, heads: int, float8: bool) -> None:
    """At the size of DeepSeek-V3, and V2-Lite's and GLM-4.7-Flash's heads. Shared memory's limit is asserted where
    kernels are compiled.
    """
    found = compiled_without_spills(
        KernelRequest("LatentAttention", LatentShape(heads, LARGEST_RANK, LARGEST_ROPE, "bf16", float8)), sm
    )
    assert list(found) == ["attend", "join"]
    for name, kernel in found.items():
        assert kernel.description.registers > (32 if name == "join" else 100), (
            f"{name} holds no values: it was optimized away"
        )
        assert str(Path.home()).encode() not in kernel.cubin and b"latent_attention.py" not in kernel.cubin


def layout_for(shape: LatentShape, sm: int) -> LatentLaunch:
    from llmc.convert.kernels.latent_attention import layout_for

    return layout_for(shape, sm)


def test_workers_fill_the_gpu_and_no_more() -> None:
    deepseek = LatentShape(128, 512, 64, "bf16")
    layout = layout_for(deepseek, 90)
    assert [plan(deepseek, layout, 132, batch, 1, 32768).workers for batch in (1, 8, 32, 128)] == [66] * 4
    assert plan(deepseek, layout, 132, 1, 1, 100).workers == 2  # tiles of entries that there can be
    assert plan(deepseek, layout, 132, 1, 4096, 32768).workers == 1
    decode, prefill = plan(deepseek, layout, 132, 8, 2, 32768), plan(deepseek, layout, 132, 1, 4096, 32768)
    assert decode.grid == (4, 33, 1) and decode.join_grid == (256, 4, 8)
    assert decode.workspace_bytes == 4 * 33 * 2 * 256 * (512 + 1) and prefill.workspace_bytes == 0
    odd = LatentShape(1, 5, 3, "fp16")
    chosen = plan(odd, layout_for(odd, 90), 132, 1, 1, 256)
    assert (chosen.workers, chosen.mixed_bytes, chosen.workspace_bytes) == (8, 320, 384)
    with pytest.raises(ValueError, match="32 bits"):
        plan(deepseek, layout, 132, 1, 32768, 32768)
    with pytest.raises(ValueError, match="SM 75"):
        layout_for(deepseek, 75)
    with pytest.raises(ValueError, match="512"):
        layout_for(LatentShape(128, 576, 64, "bf16"), 80)


@pytest.mark.parametrize("lengths", [(131072, *[1024] * 31), (32768,) * 40, (32768,) * 67, (8192,), (70, 131000, 5)])
def test_no_worker_has_more_to_do_than_the_others(lengths: tuple[int, ...]) -> None:
    """DeepSeek-R1 on an H100: what the last to end has read is hardly more than an even part of everything."""
    deepseek = LatentShape(128, 512, 64, "bf16")
    layout = layout_for(deepseek, 90)
    chosen = plan(deepseek, layout, 132, len(lengths), 1, 131072)
    tiles, _, _ = chosen.grid
    share = -(-sum(-(-length // layout.entries) for length in lengths) // chosen.workers) * layout.entries
    assert share <= 1.03 * sum(lengths) * tiles / 132 + 2 * layout.entries


def test_the_workspace_suffices_on_every_gpu() -> None:
    """It is asked for where engines are compiled, which need not have the GPU that they run on."""
    for shape in (LatentShape(128, 512, 64, "bf16"), LatentShape(5, 24, 8, "bf16", True)):
        kernels = layouts_alone(KernelRequest("LatentAttention", shape), SMS)
        most = LatentAttentionPlugin(kernels, 1.0).workspace_bytes([])
        for layout in (layout_for(shape, sm) for sm in SMS):
            for multiprocessors in (1, 16, 84, 132, 170, 600):
                for batch, tokens in ((1, 1), (1, 2), (3, 5), (8, 1), (32, 2), (1, 70), (200, 1)):
                    assert plan(shape, layout, multiprocessors, batch, tokens, 1 << 17).workspace_bytes <= most


if __name__ == "__main__":
    let_the_interpreter_multiply_bfloat16()
    made: dict[Any, Any] = {
        number: in_kernel(case, inputs(case), CACHE_SCALE if case.float8 else 1.0) for number, case in enumerate(CASES)
    }
    one_entry, codes = every_code()
    for way in (86, 89):
        made[f"codes {way}"] = in_kernel(Case(**vars(one_entry) | {"sm": way}), codes, 1.0)
    spoilt = inputs(CASES[1])
    spoilt.cache[:, :, 2] = torch.nan
    made["nan"] = in_kernel(Case((15,), workers=2), spoilt, 1.0)
    for index, each in enumerate(LAUNCHED):
        data, wanted = inputs(each), KernelRequest("LatentAttention", each.shape)
        cache = data.cache.view(torch.int8) if each.float8 else data.cache
        scales = {"scale": each.scale, "cache_scale": CACHE_SCALE if each.float8 else 1.0}
        shape = (len(each.lengths), each.heads, each.tokens, each.rank)
        for count in (1, 84):
            tensors = [data.query, cache.contiguous(), data.cache_position]
            made[f"launched {index} {count}"] = run(
                LatentAttentionPlugin, wanted, tensors, shape, Gpu(86, count), **scales
            )
    torch.save(made, sys.argv[1])
