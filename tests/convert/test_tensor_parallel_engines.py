"""Engines of the ranks of a divided model: what is compiled into each, and what is said of it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.quantized_checkpoint import DEEPSEEK, quantized_checkpoint
from support.random_checkpoint import LLAMA
from typer.testing import CliRunner

from llmc.cli import app
from llmc.contracts.engine import EngineDescription
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.engines.tensor_parallel import rank_of, repeated_bytes
from llmc.convert.targets import TargetResult, target
from llmc.errors import InputError
from llmc.quant.layerwise import QuantizeOptions

pytestmark = pytest.mark.slow

rtx = target("tensorrt-rtx")
RANKS, CONTEXT = 2, 32
LATENT = DEEPSEEK | {"num_hidden_layers": 2, "moe_intermediate_size": 256, "intermediate_size": 256}
MOE = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "head_dim": 32, "num_experts": 8}
GROUPED = LLAMA | MOE | {"hidden_size": 128, "moe_intermediate_size": 256, "num_experts_per_tok": 2}
CASES: dict[str, tuple[Any, ...]] = {
    "deepseek": (LATENT, {"experts": "int4-g32", "attention": "fp8-block"}, QuantizeOptions(fp8_cache=True)),
    "qwen3-moe": (GROUPED, {"experts": "int4-g32"}),
    "llama": (LLAMA | {"hidden_size": 128, "intermediate_size": 256}, {"dense_mlp": "int4-g64"}),
}


@pytest.fixture(scope="module", params=CASES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, TargetResult]:
    pytest.importorskip("triton", reason="Triton, which comes with torch for NVIDIA GPUs, is not installed")
    checkpoint = quantized_checkpoint(tmp_path_factory.mktemp("engines"), *CASES[request.param])
    options = rtx.Options(sm=[89, 120], context=CONTEXT, tensor_parallel=RANKS)
    return checkpoint, rtx.build(checkpoint, options, checkpoint.path, lambda *_: None)


def descriptions(built: tuple[Checkpoint, TargetResult], role: str) -> list[tuple[Path, EngineDescription]]:
    """By rank."""
    suffix = "" if role == "main" else f"-{role}"
    stems = [f"rtx-sm89-sm120-rank{rank}of{RANKS}{suffix}" for rank in range(RANKS)]
    files = [built[0].path / f"engines/{stem}.json" for stem in stems]
    return [(each, EngineDescription.model_validate_json(each.read_bytes())) for each in files]


def roles(checkpoint: Checkpoint) -> dict[str, int]:
    """With their numbers of layers."""
    spec = checkpoint.spec
    return {"main": spec.num_layers} | ({"mtp": spec.num_mtp_layers} if spec.num_mtp_layers else {})


def test_every_rank_sums_twice_a_layer(built: tuple[Checkpoint, TargetResult]) -> None:
    for role, layers in roles(built[0]).items():
        for file, said in descriptions(built, role):
            text = file.with_suffix(".engine").read_bytes()
            for operation, times in (("comm_allreduce", 2 * layers), ("comm_allgather", 1)):
                # One program for each profile.
                found = re.findall(rb"^  %s=\{ name=" % operation.encode(), text, re.MULTILINE)
                assert len(found) == times * len(said.profiles), operation
            assert said.ops["DistCollective"] == 2 * layers + 1


def test_ranks_are_told_and_of_one_size(built: tuple[Checkpoint, TargetResult]) -> None:
    for role in roles(built[0]):
        both = descriptions(built, role)
        assert [(said.rank, said.ranks, said.graph) for _, said in both] == [(0, 2, role), (1, 2, role)]
        first, second = (said for _, said in both)
        assert first.weight_bytes == second.weight_bytes and first.inputs == second.inputs
        assert first.kernels == second.kernels and first.kernel_sets == second.kernel_sets
        assert first.sha256 != second.sha256
        caches = {each.name: each.shape for each in first.inputs if each.name.startswith("past.")}
        part = rank_of(built[0], 0, RANKS).spec
        for name, shape in caches.items():
            _, layer, kind = name.split(".")
            heads, channels = part.attentions[int(layer)].cache_entry()[kind]
            assert shape == [-1, heads, CONTEXT, channels]
        logits = next(each for each in first.outputs if each.name == "logits")
        assert logits.shape[-1] in (-1, built[0].spec.vocab_size)
    names = {path for path in built[1].files if path.endswith(".engine")}
    assert len(names) == RANKS * len(roles(built[0]))
    assert "2 GPUs together take these engines, each that of its rank" in "\n".join(built[1].notes)


def test_sizes_add_up(built: tuple[Checkpoint, TargetResult], tmp_path: Path) -> None:
    """The ranks' codes together are those of one engine, and what is there once more is what each of them has."""
    checkpoint = built[0]
    whole = rtx.build(checkpoint, rtx.Options(sm=[89, 120], context=CONTEXT), tmp_path, lambda *_: None)
    held, parts = (sum_by_type(each) for each in (whole, built[1]))
    experts = "int32" if "int32" in held else "int4"  # plugins take codes in words
    assert parts[experts] == held[experts] > 0
    if checkpoint.spec.family == "llama":
        assert built[1].weight_bytes - whole.weight_bytes == repeated_bytes(checkpoint.spec, RANKS) > 0
    assert held["bfloat16"] < parts["bfloat16"] < RANKS * held["bfloat16"]


def sum_by_type(result: TargetResult) -> Counter[str]:
    return sum((Counter(each["weight_bytes"]) for each in result.details.values()), Counter())


def test_engines_without_plugins_sum_too(built: tuple[Checkpoint, TargetResult], tmp_path: Path) -> None:
    checkpoint = built[0]
    if checkpoint.spec.num_mtp_layers:  # half as many engines, for steps of fewer widths; of drafts is said above
        _, *rest = CASES["deepseek"]
        checkpoint = quantized_checkpoint(tmp_path / "model", LATENT | {"num_nextn_predict_layers": 0}, *rest)
    options = rtx.Options(sm=[89], context=CONTEXT, tensor_parallel=RANKS, plugins=False)
    result = rtx.build(checkpoint, options, tmp_path, lambda *_: None)
    layers = checkpoint.spec.num_layers
    for rank in range(RANKS):
        said = EngineDescription.model_validate_json(
            (tmp_path / f"engines/rtx-sm89-rank{rank}of{RANKS}.json").read_bytes()
        )
        assert said.plugins == [] and said.ops["DistCollective"] == 2 * layers + 1
        text = (tmp_path / "engines" / said.engine).read_bytes()
        assert len(re.findall(rb"^  comm_allreduce=\{ name=", text, re.MULTILINE)) == 2 * layers * len(said.profiles)
    assert result.weight_bytes > 0


def test_inspect_names_the_rank(built: tuple[Checkpoint, TargetResult]) -> None:
    file, _ = descriptions(built, "main")[1]
    shown = CliRunner().invoke(app, ["inspect", str(file.with_suffix(".engine"))])
    assert shown.exit_code == 0 and "1 of 2 GPUs that hold the model together" in shown.stdout


@pytest.mark.parametrize(
    ("ranks", "schemes", "message"),
    [
        (3, {}, "target tensorrt-rtx: tensor_parallel: 4 attention heads cannot be divided among 3 GPUs; choose"),
        (4, {"model.layers.0.mlp.down_proj": "int4-g32"}, "target tensorrt-rtx: .*down_proj.weight: is quantized, and"),
    ],
)
def test_refused_before_any_work(ranks: int, schemes: dict[str, str], message: str, tmp_path: Path) -> None:
    spec = quantized_checkpoint(tmp_path, DEEPSEEK | {"intermediate_size": 208}, {}).spec
    with pytest.raises(InputError, match=f"^{message}"):
        rtx.check(spec, rtx.Options(tensor_parallel=ranks), schemes)
    rtx.check(spec, rtx.Options(tensor_parallel=2), {})
