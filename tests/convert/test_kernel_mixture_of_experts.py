"""The kernels of a mixture of experts agree with what the function means, and compile for every generation of GPU.

They run in Triton's interpreter, which needs a process of its own: this file, run as a script.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from support.interpreted_kernels import (
    GENERATIONS,
    assert_close_in_all_rows,
    compiled_without_spills,
    let_the_interpreter_multiply_bfloat16,
    let_the_interpreter_round_to_bfloat16,
    run,
)
from support.interpreter_process import results_of
from support.stored_weights import stored

from llmc.convert.bits import unpack_e2m1
from llmc.convert.kernels.kernel_sets import KernelRequest
from llmc.convert.quantized_weight import CodeType, QuantizedWeight, QuantSpec
from llmc.runtime.plugins.mixture_of_experts import (
    FEW,
    HEIGHTS,
    LEAST,
    MANY,
    ExpertsLaunch,
    ExpertsPlan,
    ExpertsShape,
    ExpertWeights,
    MixtureOfExpertsPlugin,
    most_tiles,
)
from llmc.runtime.plugins.operation import Gpu

pytestmark = pytest.mark.slow

pytest.importorskip("triton", reason="Triton, which comes with torch for NVIDIA GPUs, is not installed")

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NAMES = {BF16: "bf16", FP16: "fp16", FP32: "fp32"}
ALPHA, LIMIT = 1.702, 1.5
LARGEST_ERROR = {BF16: 0.007, FP16: 0.001}  # of the whole, relative: weights, inner channels and outputs are rounded


class Case(NamedTuple):
    form: str  # int4 with its group, fp8 with what shares a scale, or plain; behind "+", that of down if it differs
    tokens: int
    top_k: int
    experts: int
    hidden: int
    inner: int
    dtype: torch.dtype = BF16
    scales: torch.dtype = BF16
    hot: bool = False  # the last expert gets everything
    clamped: bool = False  # gpt-oss's: with biases, and gates and ups that reach the limit
    sm: int = 86


CASES = [
    Case("int4-32", 1, 1, 2, 160, 96),
    Case("int4-32", 65, 1, 8, 96, 160, FP16, FP16, hot=True),
    Case("int4-32", 17, 2, 16, 32, 32, FP16, FP32),
    Case("int4-64", 3, 2, 4, 192, 64),
    Case("int4-64", 65, 2, 2, 64, 192, scales=FP32),
    Case("int4-128", 16, 3, 6, 256, 128, scales=FP16),
    Case("int4-128", 65, 3, 5, 128, 256, FP16),
    Case("int4-128", 17, 1, 8, 256, 128, hot=True),
    Case("int4-256", 2, 2, 3, 512, 256, FP16),
    Case("int4-channel", 5, 2, 3, 160, 72, FP16),
    Case("fp4-16", 5, 2, 3, 160, 96),
    Case("fp4-32", 65, 2, 3, 64, 192, FP16),
    Case("fp8-block", 1, 3, 16, 200, 136, FP16),
    Case("fp8-block", 16, 2, 3, 136, 264),
    Case("fp8-block", 65, 2, 3, 72, 200, FP16),
    Case("fp8-block", 17, 1, 4, 264, 64, hot=True),
    Case("fp8-channel", 9, 2, 4, 136, 72, FP16),
    Case("fp8-tensor", 33, 2, 2, 72, 40, FP16),
    Case("int4-32+fp8-block", 5, 2, 3, 160, 136),
    Case("fp8-block+plain", 33, 2, 4, 136, 72, FP16),
    Case("plain", 3, 3, 8, 136, 88),
    Case("plain", 65, 1, 2, 72, 104, FP16, hot=True),
    Case("plain", 2, 2, 1, 64, 32, FP16),  # one expert, chosen twice
    Case("int4-32", 3, 8, 256, 32, 32, FP16, FP16),
    Case("int4-32", 70, 8, 24, 32, 32, FP16, FP16),
    Case("int4-32", 3, 2, 4, 160, 96, clamped=True),
    Case("fp8-block+plain", 65, 2, 3, 72, 200, FP16, clamped=True),
    Case("plain", 33, 2, 5, 136, 88, clamped=True),
    # For many rows, sm_90 has all codes that share a scale in one product.
    Case("int4-128", 33, 2, 3, 256, 136, sm=90),
    Case("int4-256+fp8-block", 33, 2, 3, 512, 256, FP16, sm=90),
    Case("fp8-block+int4-64", 33, 2, 3, 264, 128, sm=90),
    Case("fp8-block", 1, 2, 3, 384, 256),  # 128 inputs in a step
]
ROUTINGS = [
    (1, 1, 2, LEAST),
    (9, 4, 16, LEAST),
    (17, 4, 16, FEW),
    (65, 8, 64, FEW),
    (600, 8, 5, MANY),
    (3, 1, 1, MANY),
]  # N, K, E, rows
R1 = ExpertsShape(256, 8, 7168, 2048, "bf16", "bf16", ExpertWeights("plain"), ExpertWeights("plain"))  # DeepSeek-R1
QWEN3 = replace(R1, experts=128, hidden=2048, inner=768)  # Qwen3-30B-A3B
INT4, FP8 = ExpertWeights("int4", 128, 1, "bf16"), ExpertWeights("fp8", 128, 128, "fp32")
# SwiGLU's products of int4, which need the most registers, are compiled for every generation.
COMPILED = [(replace(R1, gate_up=INT4, down=FP8), sm) for sm in GENERATIONS]
COMPILED += [(replace(QWEN3, gate_up=FP8, down=INT4), 90), (QWEN3, 100)]
INT4_64 = ExpertWeights("int4", 64, 1, "bf16")
GPT_OSS = ExpertsShape(32, 4, 2880, 2880, "bf16", "bf16", INT4_64, INT4_64, True, ALPHA, 7.0)  # gpt-oss-20b
NVFP4, MXFP4 = ExpertWeights("fp4", 16, 1, "bf16"), ExpertWeights("fp4", 32, 1, "bf16")
COMPILED += [(replace(R1, gate_up=NVFP4, down=NVFP4), 90), (replace(GPT_OSS, gate_up=MXFP4, down=MXFP4), 120)]
COMPILED += [(GPT_OSS, 80), (GPT_OSS, 90), (GPT_OSS, 120), (replace(R1, gate_up=FP8, down=INT4), 100)]


def stack(
    case: Case, form: str, out: int, columns: int, generator: torch.Generator
) -> tuple[ExpertWeights, list[Any], torch.Tensor]:
    """How it is stored, as the kernels take it, and float64 [E, out, in]."""
    from llmc.convert.kernels import expert_weights

    if form == "plain":
        plain = (0.1 * torch.randn(case.experts, out, columns, generator=generator)).to(case.dtype)
        return expert_weights.PLAIN, [plain], plain.double()
    experts = [stored(form, out, columns, generator, case.scales) for _ in range(case.experts)]
    like = expert_weights.stored_as(experts[0].kind, columns, experts[0].scales.dtype)
    assert like is not None
    words = torch.stack([expert_weights.words(each, like) for each in experts])
    scales = torch.stack([expert_weights.scales(each, like) for each in experts])
    return like, [words, scales], torch.stack([each.dequantize(torch.float64) for each in experts])


def routing(tokens: int, top_k: int, experts: int, hot: bool = False) -> torch.Tensor:
    if hot:
        return torch.full((tokens, top_k), experts - 1)
    generator = torch.Generator().manual_seed(tokens)
    if experts < top_k:  # more than once
        return torch.randint(0, experts, (tokens, top_k), generator=generator)
    return torch.rand(tokens, experts, generator=generator).topk(top_k).indices


def problem(case: Case) -> tuple[KernelRequest, list[torch.Tensor], torch.Tensor]:
    """The operation's inputs, and its output in float64."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(case.tokens, case.hidden, generator=generator).to(case.dtype)
    index = routing(case.tokens, case.top_k, case.experts, case.hot)
    share = torch.rand(index.shape, generator=generator).to(case.dtype)
    of_gate, _, of_down = case.form.partition("+")
    form, gate, gate_plain = stack(case, of_gate, case.inner, case.hidden, generator)
    _, up, up_plain = stack(case, of_gate, case.inner, case.hidden, generator)
    down_form, down, down_plain = stack(case, of_down or of_gate, case.hidden, case.inner, generator)
    kind = NAMES[case.dtype]
    shape = ExpertsShape(case.experts, case.top_k, case.hidden, case.inner, kind, kind, form, down_form)
    sizes = (case.inner, case.inner, case.hidden)
    biases = [torch.randn(case.experts, size, generator=generator).to(case.dtype) for size in sizes]
    if case.clamped:
        shape = replace(shape, bias=True, alpha=ALPHA, limit=LIMIT)
    want = torch.zeros(case.tokens, case.hidden, dtype=torch.float64)
    for number in range(case.experts):
        row, slot = torch.where(index == number)
        tokens = x[row].double()
        gates, ups = tokens @ gate_plain[number].mT, tokens @ up_plain[number].mT
        if case.clamped:
            gates, ups = (part + bias[number].double() for part, bias in zip((gates, ups), biases, strict=False))
            gates, ups = gates.clamp(max=LIMIT), ups.clamp(-LIMIT, LIMIT)
            outer = ((ups + 1) * gates * (ALPHA * gates).sigmoid()) @ down_plain[number].mT + biases[2][number].double()
        else:
            outer = (torch.nn.functional.silu(gates) * ups) @ down_plain[number].mT
        want.index_add_(0, row, outer * share[row, slot, None].double())
    stacks = [*gate, *up, *down, *(biases if case.clamped else [])]
    return KernelRequest("MixtureOfExperts", shape), [x, index, share, *stacks], want


def in_kernels(case: Case, index: torch.Tensor | None = None) -> tuple[torch.Tensor, list[str]]:
    wanted, inputs, want = problem(case)
    if index is not None:
        inputs[1] = index
    return run(MixtureOfExpertsPlugin, wanted, inputs, want.shape, Gpu(case.sm, 84))


def grouped(index: torch.Tensor, experts: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """tile_choices and tile_expert."""
    from llmc.convert.kernels.token_groups import group_constants, group_tokens

    choices = index.numel()
    tiles = most_tiles(choices, experts, rows)
    tile_choices, tile_expert = torch.full((tiles, rows), -7, dtype=torch.int32), torch.empty(tiles, dtype=torch.int32)
    group_tokens[experts, 1, 1](index, tile_choices, tile_expert, choices, tiles, **group_constants(experts, rows))
    return tile_choices, tile_expert


def every_code(form: str) -> torch.Tensor:
    """[in, out]: at input i and output o, code i + o; each input has all codes."""
    inputs, codes = (64, 256) if form == "fp8" else (128, 16)
    return (torch.arange(inputs)[:, None] + torch.arange(codes)) % codes


KINDS: dict[str, CodeType] = {"int4": "int4", "fp4": "float4_e2m1fn", "fp8": "float8_e4m3fn"}


def value_of(codes: torch.Tensor, form: str) -> torch.Tensor:
    """As `QuantizedWeight` has them."""
    if form == "int4":
        return (codes - 8).to(torch.int8)
    bits = codes.to(torch.uint8)
    return unpack_e2m1(bits[..., 0::2] | bits[..., 1::2] << 4) if form == "fp4" else bits.view(torch.float8_e4m3fn)


def decoded(form: str, rows: int) -> torch.Tensor:
    """`every_code`, times 2: the outputs for inputs that are one at one place."""
    from llmc.convert.kernels import expert_weights
    from llmc.convert.kernels.grouped_product import Tile, multiply, product_constants

    codes = every_code(form).mT
    (out, columns), kind = codes.shape, KINDS[form]
    weight = QuantizedWeight(value_of(codes, form), torch.full((out, 1), 2.0), (1, columns), kind)
    like = expert_weights.stored_as(weight.kind, columns, weight.scales.dtype)
    assert like is not None
    x = torch.eye(columns, dtype=FP16)
    y = x.new_empty(len(x), out)
    tile_choices, tile_expert = grouped(torch.zeros(len(x), 1, dtype=torch.int64), 1, rows)
    words, scales = expert_weights.words(weight, like), expert_weights.scales(weight, like)
    constants = product_constants(like, Tile(rows, 64, 4, 3), False)
    multiply[-(-out // 64), len(tile_expert), 1](
        x=x, weight=words, scales=scales, y=y, tile_choices=tile_choices, tile_expert=tile_expert,
        inputs=columns, outputs=out, choices=len(x), choices_of_row=1, **constants,
    )  # fmt: skip
    return y


results = results_of(__file__)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)).replace("torch.", ""))
def test_agrees_with_the_function(results: dict[Any, Any], case: Case) -> None:
    _, _, want = problem(case)
    found, launched = results[tuple(case)]
    rows = height(case)
    assert launched == [f"group_{rows}", f"gate_up_{rows}", f"down_{rows}", "combine"]
    assert found.dtype == case.dtype
    assert_close_in_all_rows(found, want, LARGEST_ERROR[case.dtype])


def height(case: Case) -> int:
    choices = case.tokens * case.top_k
    return LEAST if choices <= 4 * case.experts else FEW if choices <= 8 * case.experts else MANY


def test_tiles_of_every_height_are_tried() -> None:
    assert {height(case) for case in CASES} == set(HEIGHTS)


def test_two_runs_agree_bit_for_bit(results: dict[Any, Any]) -> None:
    assert torch.equal(results["again"][0], results[tuple(CASES[4])][0])


def test_choices_of_no_expert_count_nothing(results: dict[Any, Any]) -> None:
    got, _ = results["unknown"]
    assert got[0].isfinite().all() and not got[1].any()  # the second token chose none that there is
    assert torch.equal(got[2], results[tuple(CASES[3])][0][2])


@pytest.mark.parametrize("form", KINDS)
@pytest.mark.parametrize("rows", HEIGHTS)
def test_codes_are_exact(results: dict[Any, Any], form: str, rows: int) -> None:
    codes = every_code(form)
    want = value_of(codes, form).float()
    known = ~want.isnan()
    # A code that is NaN spoils nothing else: there is one for each input and output, and other inputs are zero.
    assert torch.equal(results[form, rows].float()[known], 2 * want[known])


@pytest.mark.parametrize("case", ROUTINGS, ids=str)
@pytest.mark.parametrize("hot", [False, True])
def test_groups_tokens_as_sorting_does(results: dict[Any, Any], case: tuple[int, int, int, int], hot: bool) -> None:
    tokens, top_k, experts, rows = case
    tile_choices, tile_expert = (x.numpy() for x in results[case, hot])
    index = routing(tokens, top_k, experts, hot).flatten().numpy()
    tile = 0
    for expert in range(experts):
        (mine,) = (index == expert).nonzero()
        for start in range(0, len(mine), rows):
            part = mine[start : start + rows].tolist()
            assert tile_expert[tile] == expert
            assert tile_choices[tile].tolist() == part + [len(index)] * (rows - len(part))
            tile += 1
    assert (tile_expert[tile:] == -1).all()


def test_no_routing_needs_more_tiles() -> None:
    for choices in range(1, 9):
        for experts in range(1, 5):
            counts = torch.cartesian_prod(*[torch.arange(choices + 1)] * experts).reshape(-1, experts)
            counts = counts[counts.sum(1) == choices]
            for rows in (1, 2, 3, 8):
                assert most_tiles(choices, experts, rows) == int((-(-counts // rows)).sum(1).max())


@pytest.mark.parametrize("shape", [R1, QWEN3, replace(R1, experts=3, top_k=8)], ids=["R1", "Qwen3", "3 experts"])
def test_the_workspace_suffices_for_fewer_tokens(shape: ExpertsShape) -> None:
    from support.interpreted_kernels import InterpretedKernels

    operation = MixtureOfExpertsPlugin(InterpretedKernels(KernelRequest("MixtureOfExperts", shape), 80))
    layout = ExpertsLaunch(**operation.kernels.layouts[80])
    for most in (1, 2, 7, 256, 300, 512):
        asked = operation.workspace_bytes([(most, shape.hidden)])
        assert all(sum(ExpertsPlan(shape, layout, n).workspace.values()) <= asked for n in range(1, most + 1))
    assert operation.workspace_bytes([(512, shape.hidden)]) < 2 * 512 * shape.top_k * (shape.hidden + shape.inner) * 1.1


def test_artifacts_built_earlier_have_fewer_heights() -> None:
    earlier = ExpertsLaunch({"16": 32, "64": 64}, {"16": 64, "64": 128}, 1024)
    now = ExpertsLaunch({"8": 32, "16": 32, "64": 64}, {"8": 64, "16": 64, "64": 128}, 1024)
    for tokens, old, new in ((1, 16, 8), (32 * 4, 16, 8), (32 * 4 + 1, 16, 16), (32 * 8, 16, 16), (32 * 8 + 1, 64, 64)):
        assert ExpertsPlan(R1, earlier, tokens).rows == old and ExpertsPlan(R1, now, tokens).rows == new


def test_what_there_is_no_kernel_for() -> None:
    from llmc.convert.kernels.expert_weights import stored_as

    def form(**changes: Any) -> ExpertWeights | None:
        return stored_as(QuantSpec("int4", (1, 16), False, False, None)._replace(**changes), 96, torch.float32)

    assert form(block=(1, 32)) == ExpertWeights("int4", 32, 1, "fp32")
    assert form(block=(1, 96)) == ExpertWeights("int4", 128, 1, "fp32")  # one for each channel
    assert form(block=(1, 48)) is None
    assert form(code_type="int8") is None
    assert form(zero_points=True) is None


@pytest.mark.parametrize(
    ("shape", "sm"), COMPILED, ids=lambda x: x.gate_up.form if isinstance(x, ExpertsShape) else str(x)
)
def test_compiles_without_spills(shape: ExpertsShape, sm: int) -> None:
    made = compiled_without_spills(KernelRequest("MixtureOfExperts", shape), sm)
    assert len(made) == 10
    for name, kernel in made.items():
        assert kernel.description.registers > 20, name
        assert str(Path.home()).encode() not in kernel.cubin


if __name__ == "__main__":
    let_the_interpreter_multiply_bfloat16()
    let_the_interpreter_round_to_bfloat16()
    made: dict[Any, Any] = {tuple(each): in_kernels(each) for each in CASES}
    made["again"] = in_kernels(CASES[4])
    chosen = routing(3, 2, 4)
    chosen[0, 1], chosen[1] = 4, torch.tensor([-1, 1 << 40])
    made["unknown"] = in_kernels(CASES[3], chosen)
    for counts in ROUTINGS:
        for is_hot in (False, True):
            made[counts, is_hot] = grouped(routing(*counts[:3], is_hot), *counts[2:])
    for name in KINDS:
        for tile_rows in HEIGHTS:
            made[name, tile_rows] = decoded(name, tile_rows)
    torch.save(made, sys.argv[1])
