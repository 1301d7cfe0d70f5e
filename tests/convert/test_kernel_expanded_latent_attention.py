"""The kernels of expanded latent attention agree with a softmax in float64, and compile for every generation of GPU.

They run in Triton's interpreter, which needs a process of its own: this file, run as a script.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from support.interpreted_kernels import (
    compiled_without_spills,
    layouts_alone,
    let_the_interpreter_multiply_bfloat16,
    run,
    run_all,
)
from support.interpreter_process import results_of

from llmc.convert.kernels.expanded_latent_attention_tiles import SMS, columns_for
from llmc.convert.kernels.kernel_sets import KernelRequest
from llmc.runtime.plugins import expanded_latent_attention as plugin
from llmc.runtime.plugins.expanded_latent_attention import (
    ExpandedLatentAttentionPlugin,
    ExpandedLaunch,
    ExpandedShape,
    plan,
)
from llmc.runtime.plugins.operation import Gpu
from llmc.runtime.plugins.phased_latent_attention import PhasedLatentAttentionPlugin, PhasedShape

pytestmark = pytest.mark.slow

pytest.importorskip("triton", reason="Triton, which comes with torch for NVIDIA GPUs, is not installed")

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
CODE_OF_NAN, SPARE = 0x7F, 3  # entries that nothing was written to
SCALE, CACHE_SCALE = 0.2, 0.046875
NAMES = ["expand", "attend"]


SMALL = ExpandedShape(2, 24, 16, 8, 16, "bf16")
DEEPSEEK, GLM = ExpandedShape(128, 512, 128, 64, 128, "bf16"), ExpandedShape(20, 512, 192, 64, 256, "bf16")


@dataclass(frozen=True)
class Case:
    """lengths: of each sequence, with the new tokens; most: bytes that are expanded at a time; passes: that it takes"""

    lengths: tuple[int, ...]
    tokens: int
    most: int = 1 << 28
    passes: int = 1
    shape: ExpandedShape = SMALL
    sm: int = 86
    multiprocessors: int = 84

    @property
    def cache_scale(self) -> float:
        return CACHE_SCALE if self.shape.float8 else 1.0


BLOCK_BYTES = 2 * 128 * 32  # of one head, at the sizes above
CASES = (
    Case((70,), 70),
    Case((300, 130, 7), 5, 2 * 2 * BLOCK_BYTES, 5),  # sequences that begin or end within a pass
    Case((300, 131), 70, 2 * BLOCK_BYTES, 6),  # a block at a time
    Case((200, 140), 9, 6 * BLOCK_BYTES, 4, replace(SMALL, heads=5), 90, 1),  # three heads, then two
    Case((150, 40), 33, 2 * BLOCK_BYTES, 4, replace(SMALL, dtype="fp16", float8=True)),
    Case((150,), 20, 1, 2, ExpandedShape(3, 64, 24, 5, 40, "bf16", True), sm=80),  # odd channels, in two parts
)


@dataclass(frozen=True)
class Inputs:
    """query [B, S, Hq, N], rotated [B, Hq, S, P], cache [B, 1, T, R + P] as codes or numbers, position [B], key weight
    [Hq, N, R], value weight [Hq, R, V]."""

    query: torch.Tensor
    rotated: torch.Tensor
    cache: torch.Tensor
    position: torch.Tensor
    key_weight: torch.Tensor
    value_weight: torch.Tensor


def inputs(case: Case) -> Inputs:
    """Cache entries that no token may see are NaN."""
    shape, batch, kind = case.shape, len(case.lengths), DTYPES[case.shape.dtype]
    generator = torch.Generator().manual_seed(sum(case.lengths) + case.tokens)

    def random(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator)

    cache = random(batch, 1, max(case.lengths) + SPARE, shape.channels)
    if shape.float8:
        cache = (cache / CACHE_SCALE).to(torch.float8_e4m3fn).view(torch.int8)
    else:
        cache = cache.to(kind)
    for row, length in enumerate(case.lengths):
        cache[row, :, length:] = CODE_OF_NAN if shape.float8 else torch.nan
    return Inputs(
        random(batch, case.tokens, shape.heads, shape.nope).to(kind),
        random(batch, shape.heads, case.tokens, shape.rope).to(kind),
        cache,
        torch.tensor(case.lengths) - case.tokens,
        (random(shape.heads, shape.nope, shape.rank) / shape.rank**0.5).to(kind),
        (random(shape.heads, shape.rank, shape.values) / shape.rank**0.5).to(kind),
    )


def in_float64(case: Case, given: Inputs) -> torch.Tensor:
    """[B, S, Hq * V]: attention to keys and values of each head, over the entries t <= position[b] + s."""
    shape, cache = case.shape, given.cache[:, 0]
    cache = cache.view(torch.float8_e4m3fn).double() * CACHE_SCALE if shape.float8 else cache.double()
    latent, rope = cache.split([shape.rank, shape.rope], dim=-1)
    key = torch.einsum("btr,hnr->bhtn", latent, given.key_weight.double())
    value = torch.einsum("btr,hrv->bhtv", latent, given.value_weight.double())
    scores = torch.einsum("bshn,bhtn->bhst", given.query.double(), key)
    scores += torch.einsum("bhsp,btp->bhst", given.rotated.double(), rope)
    last = given.position[:, None] + torch.arange(case.tokens)
    seen = torch.arange(cache.shape[1]) <= last[:, None, :, None]
    weights = (SCALE * scores).masked_fill(~seen, -torch.inf).softmax(-1)
    mixed = torch.einsum("bhst,bhtv->bshv", weights, value.nan_to_num(0.0))
    return mixed.flatten(2)


results = results_of(__file__)


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: str(CASES[number]))
def test_agrees_with_a_softmax_in_float64(results: dict[Any, Any], number: int) -> None:
    case = CASES[number]
    found, launched = results[number]
    assert launched == NAMES * case.passes
    want = in_float64(case, inputs(case))
    # Keys, values, weights and output are rounded: to 8 bits in bfloat16, to 11 in float16.
    tolerance = 2**-6 if case.shape.dtype == "bf16" else 2**-9
    torch.testing.assert_close(found.double(), want, rtol=tolerance, atol=tolerance)


def test_nan_that_is_seen_is_not_hidden(results: dict[Any, Any]) -> None:
    """Nor carried back to tokens that do not see it, of earlier tiles."""
    found, _ = results["nan"]
    assert found[:, 128:].isnan().all() and not found[:, :64].isnan().any()


# All tiles, each once. The other pairs have been seen to fit, too.
@pytest.mark.parametrize(
    ("sm", "shape"),
    [
        (80, DEEPSEEK),
        (80, replace(GLM, float8=True)),
        (86, GLM),
        (89, replace(DEEPSEEK, float8=True)),
        (90, DEEPSEEK),
        (100, replace(DEEPSEEK, float8=True)),
        (120, GLM),
    ],
)
def test_compiles_without_spills(
    sm: int, shape: ExpandedShape, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """At the sizes of DeepSeek-V3 and GLM-4.7-Flash. Shared memory's limit is asserted where kernels are compiled."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # what is cached is not compiled
    found = compiled_without_spills(KernelRequest("ExpandedLatentAttention", shape), sm)
    assert list(found) == NAMES
    for name, kernel in found.items():
        assert kernel.description.registers > 100, f"{name} holds no values: it was optimized away"


def layout_for(shape: ExpandedShape, sm: int) -> ExpandedLaunch:
    from llmc.convert.kernels.expanded_latent_attention import layout_for

    return layout_for(shape, sm)


@pytest.mark.parametrize(
    ("tokens", "capacity", "heads", "entries", "passes"),
    [
        (512, 4096, 128, 4096, 1),
        (512, 131072, 128, 4096, 32),
        (2048, 131072, 32, 16384, 8),
        (8192, 131072, 9, 58240, 3),
    ],
)
def test_few_heads_of_many_entries_fill_the_gpu(
    tokens: int, capacity: int, heads: int, entries: int, passes: int
) -> None:
    """DeepSeek-R1 on an H100, in 256 MB. What is left from pass to pass is little next to what is expanded."""
    chosen = plan(DEEPSEEK, layout_for(DEEPSEEK, 90), 132, 1, tokens, capacity)
    assert (chosen.heads, chosen.entries, chosen.passes) == (heads, entries, passes)
    assert chosen.keys_bytes + chosen.values_bytes <= 256 << 20
    assert chosen.attend_grid[0] * chosen.heads >= 3 * 132
    assert chosen.mixed_bytes + chosen.sums_bytes <= 0.15 * (256 << 20)


def test_what_there_are_no_kernels_for() -> None:
    with pytest.raises(ValueError, match="SM 75"):
        layout_for(DEEPSEEK, 75)
    with pytest.raises(ValueError, match="256 channels"):
        layout_for(replace(DEEPSEEK, values=264), 80)
    assert [columns_for(width) for width in (32, 64, 128, 192, 256)] == [64, 64, 128, 64, 128]


def test_the_workspace_suffices_on_every_gpu() -> None:
    """It is asked for where engines are compiled, which need not have the GPU that they run on."""
    for shape in (DEEPSEEK, GLM, ExpandedShape(5, 24, 16, 8, 16, "bf16", True)):
        kernels = layouts_alone(KernelRequest("ExpandedLatentAttention", shape), SMS)
        operation = ExpandedLatentAttentionPlugin(kernels, 1.0)
        for most_batch, most_tokens, capacity in ((1, 512, 64), (1, 8192, 1 << 17), (32, 512, 4096), (2, 300, 1 << 15)):
            given = [(most_batch, most_tokens, shape.heads, shape.nope), (), (most_batch, 1, capacity, shape.channels)]
            most = operation.workspace_bytes(given)
            for layout in (layout_for(shape, sm) for sm in SMS):
                for multiprocessors in (1, 16, 132, 170, 600):
                    for batch, tokens in ((most_batch, most_tokens), (1, 171), (most_batch, 200), (1, most_tokens)):
                        chosen = plan(shape, layout, multiprocessors, batch, tokens, capacity)
                        assert chosen.workspace_bytes <= most


def test_a_step_is_absorbed_or_expanded(results: dict[Any, Any]) -> None:
    """By the plugin that engines hold: whichever its program asks for. The other output is not written."""
    case = CASES[4]
    (latent, values), launched = results["expanded"]
    assert launched == ["expanded_expand", "expanded_attend"] and not latent.numel()
    assert torch.equal(values, results["expanded alone"][0])
    (latent, values), launched = results["absorbed"]
    assert launched == ["absorbed_attend", "absorbed_join"] and values.isnan().all()
    given = inputs(case)
    mixed = torch.einsum("bhsr,hrv->bshv", latent.double(), given.value_weight.double()).flatten(2)
    torch.testing.assert_close(mixed, in_float64(case, given), rtol=2**-8, atol=2**-8)


def run_phased(case: Case, given: Inputs, tokens: int) -> tuple[list[torch.Tensor], list[str]]:
    """With so many tokens absorbed."""
    shape, batch = case.shape, len(case.lengths)
    absorbed = torch.einsum("bshn,hnr->bhsr", given.query.float(), given.key_weight.float()).to(given.query.dtype)
    absorbed = torch.cat([absorbed, given.rotated], -1)[:, :, :tokens].contiguous()
    tensors = [absorbed, given.cache, given.position, given.query, given.rotated, given.key_weight, given.value_weight]
    return run_all(
        PhasedLatentAttentionPlugin,
        KernelRequest("PhasedLatentAttention", PhasedShape(**vars(shape))),
        tensors,
        [(batch, shape.heads, tokens, shape.rank), (batch, case.tokens, shape.heads * shape.values)],
        Gpu(case.sm, case.multiprocessors),
        scale=SCALE,
        cache_scale=case.cache_scale,
    )


def run_case(case: Case, given: Inputs) -> tuple[torch.Tensor, list[str]]:
    shape = case.shape
    size = (len(case.lengths), case.tokens, shape.heads * shape.values)
    with patch.object(plugin, "MOST_EXPANDED", case.most):
        return run(
            ExpandedLatentAttentionPlugin,
            KernelRequest("ExpandedLatentAttention", shape),
            list(vars(given).values()),
            size,
            Gpu(case.sm, case.multiprocessors),
            scale=SCALE,
            cache_scale=case.cache_scale,
        )


if __name__ == "__main__":
    let_the_interpreter_multiply_bfloat16()
    made: dict[Any, Any] = {number: run_case(case, inputs(case)) for number, case in enumerate(CASES)}
    spoilt = inputs(Case((150,), 150))
    spoilt.cache[:, :, 128] = torch.nan
    made["nan"] = run_case(Case((150,), 150), spoilt)
    one_pass, codes = replace(CASES[4], most=1 << 28), inputs(CASES[4])
    made["expanded alone"] = run_case(one_pass, codes)
    made["expanded"] = run_phased(one_pass, codes, 0)
    made["absorbed"] = run_phased(one_pass, codes, one_pass.tokens)
    torch.save(made, sys.argv[1])
