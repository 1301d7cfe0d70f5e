"""Every scheme of the table from plan to answer: planned, built, checked in ONNX Runtime, read back, asked.

Rounded to nearest, in the dense MLP, the experts and attention of a model whose inputs every group size divides.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from support.random_checkpoint import DEEPSEEK_V3, random_checkpoint

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.quantized_weight import QuantSpec
from llmc.quant.assign import linear_modules
from llmc.quant.schemes import scheme, schemes
from llmc.runtime import load

pytestmark = pytest.mark.slow

# Not kv_b_proj: schemes that round inputs have no place there.
ROLES = ("dense_mlp", "experts", "shared_experts", "attention")
DRAWN: dict[str, Any] = {"max_new_tokens": 4, "temperature": 1.0, "seed": 0}  # the likeliest token may be an end


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    path = random_checkpoint(
        tmp_path_factory.mktemp("models") / "wide",
        DEEPSEEK_V3,
        vocab_size=260,
        hidden_size=256,
        intermediate_size=256,
        moe_intermediate_size=256,
        num_hidden_layers=2,
        num_nextn_predict_layers=0,
        num_attention_heads=2,
        q_lora_rank=256,
        kv_lora_rank=32,
        v_head_dim=128,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
    )
    (path / "tokenizer.json").write_bytes((small_model / "tokenizer.json").read_bytes())
    return path


# Nats that rounding to this many bits may cost in a model of random weights; a wrong code or scale costs more.
LIMITS = {
    "int2": 1.0,
    "int3": 0.4,
    "int4": 0.12,
    "float4_e2m1fn": 0.12,
    "int5": 0.06,
    "int6": 0.03,
    "int8": 0.02,
    "float8_e4m3fn": 0.03,
}


def expected(name: str, shape: tuple[int, int]) -> QuantSpec:
    """Of the codes that are read back. The channels of a single group have no order."""
    given = scheme(name)
    activations = None if given.activations is None else given.activations.per
    groups = given.dynamic_groups and given.block(shape)[1] < shape[1]
    return QuantSpec(given.code_type, given.block(shape), not given.symmetric, groups, activations)


@pytest.mark.parametrize("name", sorted(schemes.all))
def test_plan_build_check_and_answer(name: str, llmc, recipe, wide_model: Path) -> None:
    dynamic = scheme(name).dynamic_groups  # only calibration scatters groups, and only one layout has a place for them
    path = recipe(
        model=str(wide_model),
        prune=None,
        layout="gptq" if dynamic else "compressed-tensors",
        quantize=[{"match": role, "scheme": name, "method": "gptq" if dynamic else "rtn"} for role in ROLES],
    )
    planned = llmc("plan", path, "--json")
    assert planned.exit_code == 0, planned.output
    made = llmc("build", path, "-o", "out")
    assert made.exit_code == 0, made.output

    manifest = json.loads(Path("out/llmc.json").read_text())
    assert json.loads(planned.stdout)["total"]["after"]["bytes"] == manifest["sizes"]["artifact"]
    rounded_inputs = scheme(name).spec.activations is not None
    assert manifest["checks"]["kl_mean"] < LIMITS[scheme(name).code_type] * (2 if rounded_inputs else 1)
    artifact = Checkpoint.open("out")
    stored = dict.fromkeys(ROLES, 0)
    for module in linear_modules(artifact):
        if (role := artifact.role(f"{module}.weight")) in ROLES:
            weight = artifact.quantized(module)
            assert weight is not None and weight.kind == expected(name, weight.shape), module
            stored[role] += 1
    assert stored == {"dense_mlp": 3, "experts": 12, "shared_experts": 3, "attention": 8}
    with load("out") as model:
        assert model.generate("the cat", **DRAWN).token_ids


def test_experts_in_nvfp4_beside_fp8_are_one_recipe(llmc, recipe) -> None:
    """By GPTAQ, MTP included; what is stored is what was asked for, and what was planned."""
    rules = {"experts": "nvfp4", "attention": "fp8-block", "mtp": "fp8-block"}
    path = recipe(prune=None, quantize=[{"match": role, "scheme": name} for role, name in rules.items()])
    planned = llmc("plan", path, "--json")
    made = llmc("build", path, "-o", "out")
    assert made.exit_code == 0, made.output
    assert "drops a scale of experts in NVFP4" in made.output
    manifest = json.loads(Path("out/llmc.json").read_text())
    assert json.loads(planned.stdout)["total"]["after"]["bytes"] == manifest["sizes"]["artifact"]
    assert manifest["checks"]["kl_mean"] < LIMITS["float4_e2m1fn"]
    artifact, found = Checkpoint.open("out"), dict[str, set[str]]()
    for module in linear_modules(artifact):
        if (role := artifact.role(f"{module}.weight")) in rules:
            kind = artifact.kind(f"{module}.weight")
            found.setdefault(role, set()).add(kind.code_type if kind else "plain")
    assert found == {"experts": {"float4_e2m1fn"}, "attention": {"float8_e4m3fn"}, "mtp": {"float8_e4m3fn"}}
    with load("out") as model:
        assert model.generate("the cat", **DRAWN).token_ids


def test_embedding_and_head_from_plan_to_answer(llmc, recipe, wide_model: Path) -> None:
    rules = {"embedding": "int8-g64", "lm_head": "int4-g64"}
    path = recipe(
        model=str(wide_model), prune=None, quantize=[{"match": role, "scheme": name} for role, name in rules.items()]
    )
    planned = json.loads(llmc("plan", path, "--json").stdout)
    made = llmc("build", path, "-o", "out")
    assert made.exit_code == 0, made.output
    assert "transformers will not load the result: it has no quantized embeddings" in made.output
    manifest = json.loads(Path("out/llmc.json").read_text())
    assert planned["total"]["after"]["bytes"] == manifest["sizes"]["artifact"]
    assert 0 < manifest["checks"]["kl_mean"] < LIMITS["int4"]
    for role, name in rules.items():
        found = manifest["quantized"][role]
        assert found["schemes"] == [name]
        assert found["quantized"] == found["expected"] == found["parameters"] == 260 * 256
        assert planned["schemes"][role] == {name: 260 * 256}
    assert "lm_head" in llmc("inspect", "out").output
    with load("out") as model:
        assert model.generate("the cat", **DRAWN).token_ids


def test_mtp_layers_do_not_repeat_ends_that_are_quantized(llmc, recipe) -> None:
    """Their copies of embedding and head would be another embedding and head: they are left out, and so planned."""
    rules = [{"match": "embedding", "scheme": "int8-g64"}, {"match": "lm_head", "scheme": "int4-g64", "method": "rtn"}]
    path = recipe(model="builtin:tiny-deepseek-v3", prune=None, quantize=rules)
    planned = llmc("plan", path, "--json")
    made = llmc("build", path, "-o", "out")
    assert made.exit_code == 0, made.output
    bytes_after = json.loads(planned.stdout)["total"]["after"]["bytes"]
    assert bytes_after == json.loads(Path("out/llmc.json").read_text())["sizes"]["artifact"]
    names = Checkpoint.open("out").names()
    assert not [name for name in names if name.startswith("model.layers.4.") and "embed_tokens" in name]
    with load("out") as model:
        assert model.generate("def ", max_new_tokens=8).drafted
