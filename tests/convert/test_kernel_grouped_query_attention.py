"""The kernels of grouped-query attention agree with a softmax in float64, and compile for every generation of GPU.

They run in Triton's interpreter, which needs a process of its own: this file, run as a script.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
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

from llmc.convert.kernels.grouped_query_attention_tiles import SMS
from llmc.convert.kernels.kernel_sets import KernelRequest
from llmc.runtime.plugins.grouped_query_attention import (
    AT_ONCE,
    MOST_SEQUENCES,
    GroupedQueryAttentionPlugin,
    GroupedQueryLaunch,
    GroupedQueryShape,
    plan,
)
from llmc.runtime.plugins.operation import Gpu

pytestmark = pytest.mark.slow

pytest.importorskip("triton", reason="Triton, which comes with torch for NVIDIA GPUs, is not installed")

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SPARE = 3  # entries that nothing was written to
FULL = 1  # a GPU of one multiprocessor has enough programs, and nothing is cut


@dataclass(frozen=True)
class Case:
    """lengths: of each sequence, with the new tokens; multiprocessors: for which parts are made."""

    lengths: tuple[int, ...]
    tokens: int = 1
    multiprocessors: int = 16
    heads: int = 6
    groups: int = 2
    channels: int = 24
    values: int = 24
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    dtype: str = "bf16"
    scale: float = 0.2
    sm: int = 86

    @property
    def shape(self) -> GroupedQueryShape:
        return GroupedQueryShape(
            self.heads, self.groups, self.channels, self.values, self.dtype, self.window, self.softcap > 0, self.sinks
        )


CASES = [Case((length,), multiprocessors=n) for length in (1, 130) for n in (FULL, 16)]
CASES += [
    Case((150, 5, 70), tokens, heads=h, groups=g) for tokens, h, g in ((1, 4, 4), (2, 8, 1), (3, 20, 4), (5, 6, 2))
]
CASES += [Case((260, 1, 64), window=w, multiprocessors=40, heads=2) for w in (1, 50, 64, 200)]
# Of a prompt, heads=2 and groups=1: every line of the output is a program of the kernel that joins.
CASES += [Case((170, 40), 7, window=20), Case((150, 60), 40, heads=2, groups=1, window=70)]
CASES += [Case((90,), 70, heads=2, groups=1, window=9)]
CASES += [Case((150, 60), sinks=True, window=window) for window in (0, 30)]
CASES += [Case((150,), 40, heads=2, groups=1, sinks=True, window=30)]
CASES += [Case((150, 60), softcap=2.0, scale=1.5), Case((150,), 40, heads=2, groups=1, softcap=2.0, scale=1.5)]
CASES += [Case((150, 6), 2, softcap=1.0, scale=90.0, sinks=True)]  # scores far beyond the cap
CASES += [Case((150, 60), channels=48, values=32, sinks=True), Case((150, 60), channels=20, values=40)]
CASES += [Case((90,), 40, heads=2, groups=1, channels=a, values=b) for a, b in ((48, 32), (20, 40))]
# Prompts, whole and behind a cache; by programs of many rows alone or with parts.
CASES += [Case((n + before,), n, m) for n, before, m in ((16, 0, 1), (70, 61, 1))]
CASES += [Case((n + before,), n, 16, heads=2, groups=1) for n, before in ((70, 61), (100, 0))]
CASES += [Case((140, 71), 40, 4, 4, dtype="fp16"), Case((65, 20), 2, 30, dtype="fp16")]
CASES += [Case((40,), 2, channels=channels, values=channels) for channels in (64, 80, 96, 128, 192, 256)]
CASES += [Case((70,), 40, FULL, 4, channels=channels, values=channels, sm=90) for channels in (64, 256)]
CASES += [Case((130, 7), 2, scale=40.0)]  # nearly all weight on one entry
CASES += [Case((5,) * (MOST_SEQUENCES + 1), heads=1, groups=1)]  # more than a program looks among
CASES += [Case((200, 10, 10, 10), multiprocessors=1, heads=3, groups=3)]  # one portion, and yet cut


def inputs(case: Case) -> list[torch.Tensor]:
    """Cache entries that no token may see are NaN."""
    generator = torch.Generator().manual_seed(sum(case.lengths) + case.tokens)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(DTYPES[case.dtype])

    batch, capacity = len(case.lengths), max(case.lengths) + SPARE
    query = random(batch, case.heads, case.tokens, case.channels)
    key, value = (random(batch, case.groups, capacity, size) for size in (case.channels, case.values))
    for row, length in enumerate(case.lengths):
        key[row, :, length:] = value[row, :, length:] = torch.nan
        if case.window:
            hidden = max(0, length - case.tokens - case.window + 1)
            key[row, :, :hidden] = value[row, :, :hidden] = torch.nan
    position = torch.tensor(case.lengths) - case.tokens
    return [query, key, value, position] + [random(case.heads)] * case.sinks


def in_float64(case: Case) -> torch.Tensor:
    """[B, Hq, S, V]"""
    query, key, value, position, *sinks = inputs(case)
    output = torch.empty(*query.shape[:3], case.values, dtype=torch.float64)
    times = case.heads // case.groups
    for b, before in enumerate(position.tolist()):
        for s in range(case.tokens):
            end = before + s + 1
            seen = slice(max(0, end - case.window) if case.window else 0, end)
            k, v = (x[b, :, seen].double().repeat_interleave(times, 0) for x in (key, value))
            scores = case.scale * (k @ query[b, :, s].double()[..., None])[..., 0]
            if case.softcap:
                scores = case.softcap * (scores / case.softcap).tanh()
            if sinks:
                scores = torch.cat([scores, sinks[0].double()[:, None]], 1)
            weights = scores.softmax(-1)[:, : v.shape[1]]
            output[b, :, s] = (weights[:, None] @ v)[:, 0]
    return output


results = results_of(__file__)


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: str(CASES[number]))
def test_agrees_with_a_softmax_in_float64(results: dict[Any, Any], number: int) -> None:
    case = CASES[number]
    # Weights and output are rounded: to 8 bits in bfloat16, to 11 in float16.
    tolerance = 2**-6 if case.dtype == "bf16" else 2**-9
    torch.testing.assert_close(results[number][0].double(), in_float64(case), rtol=tolerance, atol=tolerance)


def test_all_ways_were_taken(results: dict[Any, Any]) -> None:
    taken = {tuple(results[number][1]) for number in range(len(CASES))}
    assert taken == {("whole_few",), ("split_few", "join_few"), ("whole_many",), ("split_many", "join_many")}


@pytest.mark.parametrize("way", ["whole", "split"])
def test_nan_that_is_seen_is_not_hidden(results: dict[Any, Any], way: str) -> None:
    """Neither by the sums of a part nor where parts are joined."""
    found, launched = results[f"nan {way}"]
    assert launched[0] == f"{way}_few" and found.isnan().all()


@pytest.mark.parametrize("position", [-(2**62), -5, 2**62])
def test_any_position_stays_inside_of_the_cache(results: dict[Any, Any], position: int) -> None:
    """TensorRT times plugins on numbers that mean nothing; the interpreter refuses addresses that are in no tensor."""
    found, _ = results[f"position {position}"]
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("sm", "channels"),
    [
        *((sm, channels) for sm in GENERATIONS for channels in (128, 256)),
        (80, 64),
        (120, 64),
        (80, 80),
        (90, 96),
        (89, 192),
    ],
)
def test_compiles_without_spills(sm: int, channels: int) -> None:
    """With all there is to a shape, or nothing. Shared memory's limit is asserted where kernels are compiled."""
    more = {"window": 1024, "softcap": True, "sinks": True} if channels in (80, 256) else {}
    shape = GroupedQueryShape(32, 8, channels, channels, "bf16", **more)
    found = compiled_without_spills(KernelRequest("GroupedQueryAttention", shape), sm)
    assert list(found) == [f"{way}_{tile}" for tile in ("few", "many") for way in ("whole", "split", "join")]
    for name, kernel in found.items():
        assert kernel.description.registers > (24 if "join" in name else 60), f"{name} was optimized away"
        assert str(Path.home()).encode() not in kernel.cubin and b"grouped_query_attention.py" not in kernel.cubin


def layout_for(shape: GroupedQueryShape, sm: int) -> GroupedQueryLaunch:
    from llmc.convert.kernels.grouped_query_attention import layout_for

    return layout_for(shape, sm)


LLAMA = GroupedQueryShape(32, 8, 128, 128, "bf16")


def test_parts_fill_the_gpu_and_no_more() -> None:
    layout = layout_for(LLAMA, 90)
    decode = plan(LLAMA, layout, 132, 1, 1)
    assert (decode.tile, decode.portions, decode.grid) == ("few", 33, (8, 33, 1))
    assert decode.join_grid == (32, 1, 1) and decode.workspace_bytes == 4 * 33 * 32 * (128 + 1)
    assert plan(LLAMA, layout, 132, 8, 1).grid == (8, 33 + 7, 1)
    assert plan(LLAMA, layout, 132, MOST_SEQUENCES + 1, 1).grid == (8 * (MOST_SEQUENCES + 1), 1, 1)
    prefill = plan(LLAMA, layout, 132, 1, 4096)
    assert (prefill.tile, prefill.portions, prefill.grid) == ("many", 0, (4096 * 4 // layout.many * 8, 1, 1))
    assert prefill.workspace_bytes == 0
    short = plan(LLAMA, layout, 132, 1, 32)  # a prompt's end behind a long cache
    assert (short.tile, short.portions) == ("many", 132 // 8)
    with pytest.raises(ValueError, match="SM 75"):
        layout_for(LLAMA, 75)
    with pytest.raises(ValueError, match="256"):
        layout_for(replace(LLAMA, channels=288), 80)


@pytest.mark.parametrize("values", [96, 128])
@pytest.mark.parametrize("groups", [1, 8, 32])
def test_the_workspace_suffices_on_every_gpu(groups: int, values: int) -> None:
    """It is asked for where engines are compiled, which need not have the GPU that they run on."""
    shape = replace(LLAMA, groups=groups, values=values)
    operation = GroupedQueryAttentionPlugin(layouts_alone(KernelRequest("GroupedQueryAttention", shape), SMS), 1.0)
    for most_batch, most_tokens in ((1, 1), (8, 2), (300, 1), (4, 512)):
        most = operation.workspace_bytes([(most_batch, 32, most_tokens, 128)])
        for layout in (layout_for(shape, sm) for sm in SMS):
            for multiprocessors in (1, 16, 84, 132, 170, 600):
                for batch in {1, 2, min(most_batch, MOST_SEQUENCES), most_batch}:
                    for tokens in {1, 2, 3, 4, 7, 16, 33, 64, 100, most_tokens}:
                        if batch <= most_batch and tokens <= most_tokens:
                            chosen = plan(shape, layout, multiprocessors, batch, tokens)
                            assert chosen.workspace_bytes <= most, (chosen, most)
                            assert chosen.portions <= AT_ONCE * multiprocessors


if __name__ == "__main__":
    let_the_interpreter_multiply_bfloat16()

    def launched(case: Case, tensors: list[torch.Tensor]) -> tuple[torch.Tensor, list[str]]:
        wanted = KernelRequest("GroupedQueryAttention", case.shape)
        shape = (len(case.lengths), case.heads, case.tokens, case.values)
        gpu, scalars = Gpu(case.sm, case.multiprocessors), {"scale": case.scale, "softcap": case.softcap}
        return run(GroupedQueryAttentionPlugin, wanted, tensors, shape, gpu, **scalars)

    made: dict[Any, Any] = {number: launched(case, inputs(case)) for number, case in enumerate(CASES)}
    for name, case in (("whole", Case((15,), multiprocessors=FULL)), ("split", Case((150,)))):
        spoilt = inputs(case)
        spoilt[1][:, :, 2] = torch.nan
        made[f"nan {name}"] = launched(case, spoilt)
    for start in (-(2**62), -5, 2**62):
        case = Case((150, 70), window=40)
        tensors = [x.nan_to_num() for x in inputs(case)[:3]]
        made[f"position {start}"] = launched(case, [*tensors, torch.tensor([start, 69])])
    torch.save(made, sys.argv[1])
