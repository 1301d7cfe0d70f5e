"""config.json → ModelSpec, tensor names → roles; what is unsupported is refused by its field."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from support.architectures import LLAMA3
from support.model_lines import published_config, published_names
from support.random_checkpoint import DEEPSEEK_V3, LLAMA, QWEN2

from llmc.convert.families import families, family_of
from llmc.convert.formats import formats
from llmc.convert.layer_modules import weight_shapes
from llmc.convert.spec import (
    GroupedQueryAttentionSpec,
    LatentAttentionSpec,
    MixtureOfExpertsSpec,
    ModelSpec,
)
from llmc.errors import InputError

# The numbers of DeepSeek-V3's and R1's config.json.
DEEPSEEK_R1: dict[str, Any] = DEEPSEEK_V3 | {
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "first_k_dense_replace": 3,
    "max_position_embeddings": 163840,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
}


SMALL_R1 = DEEPSEEK_V3 | {"rope_scaling": DEEPSEEK_R1["rope_scaling"]}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}


def spec_of(config: dict[str, Any], **changes: Any) -> ModelSpec:
    config = config | changes
    return family_of(config).spec(config)


def test_the_released_model_has_the_parameters_it_is_known_for() -> None:
    spec = spec_of(DEEPSEEK_R1)
    assert spec.num_all_layers == 62
    assert isinstance(spec.attentions[0], LatentAttentionSpec)
    assert sum(isinstance(mlp, MixtureOfExpertsSpec) for mlp in spec.mlps) == 59
    assert spec.attentions[0].softmax_scale == pytest.approx(192**-0.5 * 1.3689**2, rel=1e-4)
    parameters = {False: 0, True: 0}
    for name, shape in weight_shapes(spec).items():
        size = 1
        for side in shape:
            size *= side
        parameters[family_of(DEEPSEEK_R1).role(name, spec) == "mtp"] += size
    assert parameters[False] / 1e9 == pytest.approx(671.0, abs=0.1)
    # The MTP layer's 11.5 B; the "14 B" of the release count its copies of embedding and head.
    assert (parameters[True] + 2 * 129280 * 7168) / 1e9 == pytest.approx(13.4, abs=0.2)


def test_both_spellings_of_rope_are_the_same() -> None:
    old = spec_of(DEEPSEEK_R1)
    scaling = DEEPSEEK_R1["rope_scaling"] | {"rope_theta": 10000, "rope_type": "yarn"}
    new = spec_of(DEEPSEEK_R1, rope_theta=None, rope_scaling=None, rope_parameters=scaling)
    assert old == new


def test_llama_and_qwen2() -> None:
    llama, qwen2 = spec_of(LLAMA), spec_of(QWEN2)
    assert isinstance(llama.attentions[0], GroupedQueryAttentionSpec)
    assert isinstance(qwen2.attentions[0], GroupedQueryAttentionSpec)
    assert (llama.attentions[0].qkv_bias, llama.attentions[0].output_bias) == (False, False)
    assert (qwen2.attentions[0].qkv_bias, qwen2.attentions[0].output_bias) == (True, False)
    assert llama.eos_token_ids == (1, 2)
    assert qwen2.attentions[0].rope.theta == 1e6


ROLES = {
    "model.embed_tokens.weight": "embedding",
    "model.norm.weight": "norm",
    "lm_head.weight": "lm_head",
    "model.layers.0.input_layernorm.weight": "norm",
    "model.layers.0.self_attn.q_a_layernorm.weight": "norm",
    "model.layers.0.self_attn.q_b_proj.weight": "attention",
    "model.layers.0.self_attn.kv_a_proj_with_mqa.bias": "attention",
    "model.layers.0.self_attn.kv_b_proj.weight": "kv_b_proj",
    "model.layers.0.mlp.gate_proj.weight": "dense_mlp",
    "model.layers.1.mlp.gate.weight": "router",
    "model.layers.1.mlp.gate.e_score_correction_bias": "router",
    "model.layers.1.mlp.experts.7.gate_proj.weight": "experts",
    "model.layers.1.mlp.shared_experts.up_proj.weight": "shared_experts",
    "model.layers.3.mlp.experts.7.gate_proj.weight": "mtp",
    "model.layers.3.eh_proj.weight": "mtp",
}


@pytest.mark.parametrize("name", ROLES)
def test_roles(name: str) -> None:
    assert family_of(DEEPSEEK_V3).role(name, spec_of(DEEPSEEK_V3)) == ROLES[name]


def test_a_foreign_tensor_has_no_role() -> None:
    with pytest.raises(InputError, match=r"visual\.patch\.weight is not a tensor of the deepseek_v3 family"):
        family_of(DEEPSEEK_V3).role("visual.patch.weight", spec_of(DEEPSEEK_V3))


def test_pruning_changes_the_expert_count_and_nothing_else() -> None:
    pruned = family_of(DEEPSEEK_V3).pruned_config(DEEPSEEK_V3, 6)
    assert pruned == DEEPSEEK_V3 | {"n_routed_experts": 6}
    with pytest.raises(InputError, match="llama family has no experts to prune"):
        family_of(LLAMA).pruned_config(LLAMA, 6)


REFUSED = {
    "missing": (DEEPSEEK_V3, {"kv_lora_rank": None}, "`kv_lora_rank` is missing"),
    "text": (DEEPSEEK_V3, {"hidden_size": "64"}, "`hidden_size` must be an integer"),
    "boolean": (DEEPSEEK_V3, {"hidden_size": True}, "`hidden_size` must be an integer"),
    "zero": (
        DEEPSEEK_V3,
        {"num_hidden_layers": 0},
        "`num_hidden_layers` must be an integer from 1 to 10000, not 0",
    ),
    "nan": (LLAMA, {"rms_norm_eps": float("nan")}, "`rms_norm_eps` must be a positive number"),
    "eos": (LLAMA, {"eos_token_id": ["a"]}, "`eos_token_id` must be a token id"),
    "activation": (DEEPSEEK_V3, {"hidden_act": "gelu"}, "`hidden_act` is 'gelu', but only 'silu'"),
    "scoring": (DEEPSEEK_V3, {"scoring_func": "softmax"}, "`scoring_func`"),
    "selection": (DEEPSEEK_V3, {"topk_method": "greedy"}, "`topk_method`"),
    "frequency": (DEEPSEEK_V3, {"moe_layer_freq": 2}, "`moe_layer_freq`"),
    "groups": (DEEPSEEK_V3, {"n_group": 3}, "`n_routed_experts` 8 must give each of `n_group` 3"),
    "lonely experts": (DEEPSEEK_V3, {"n_group": 8}, "`n_routed_experts` 8 must give each of `n_group` 8"),
    "top-k": (DEEPSEEK_V3, {"num_experts_per_tok": 5}, "`num_experts_per_tok` 5 does not fit"),
    "odd rope": (DEEPSEEK_V3, {"qk_rope_head_dim": 7}, "`qk_rope_head_dim` must be even"),
    "dynamic": (
        LLAMA,
        {"rope_scaling": {"type": "dynamic", "factor": 2}},
        "`rope_scaling.rope_type` is 'dynamic'",
    ),
    "no factor": (LLAMA, {"rope_scaling": {"type": "linear"}}, "`rope_scaling.factor` is missing"),
    "rope list": (LLAMA, {"rope_scaling": [1]}, "`rope_scaling` must be an object"),
    "partial": (LLAMA, {"partial_rotary_factor": 0.5}, "`partial_rotary_factor` is 0.5"),
    "mlp bias": (LLAMA, {"mlp_bias": True}, "`mlp_bias` is True"),
    "heads": (LLAMA, {"num_key_value_heads": 3}, "is no multiple of `num_key_value_heads` 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_settings_are_refused_by_field(name: str) -> None:
    config, changes, message = REFUSED[name]
    with pytest.raises(InputError) as caught:
        spec_of(config, **changes)
    assert message in str(caught.value)


def fields_of(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict):
        for name in value:
            yield (*path, name)
            yield from fields_of(value[name], (*path, name))


def with_any_value_in_any_field(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    values = (None, True, -1, 0, 1, 1.5, 2**40, 1e300, float("nan"), "x", [], [1], ["x"], {}, {"a": 1})
    for path in fields_of(config):
        for value in values:
            changed = copy.deepcopy(config)
            inner = changed
            for name in path[:-1]:
                inner = inner[name]
            inner[path[-1]] = value
            yield changed


@pytest.mark.parametrize("config", [SMALL_R1 | {"quantization_config": FP8}, QWEN2 | {"rope_scaling": LLAMA3}])
def test_any_value_in_any_field_is_read_or_refused(config: dict[str, Any]) -> None:
    refused = 0
    for changed in with_any_value_in_any_field(config):
        try:
            weight_shapes(family_of(changed).spec(changed))
            formats(changed)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 200


def published_of_each_family() -> Iterator[str]:
    """A published configuration of every family."""
    known = set()
    for name in published_names(additional=True):
        try:
            family = family_of(published_config(name)).name
        except InputError:
            continue
        if family not in known:
            known.add(family)
            yield name


@pytest.mark.parametrize("name", list(published_of_each_family()))
def test_no_value_in_a_published_configuration_is_a_surprise(name: str) -> None:
    config = published_config(name)
    beside = ("quantization_config", "vision_config", "id2label", "_name_or_path")
    small = {key: value for key, value in config.items() if key not in beside}
    for changed in with_any_value_in_any_field(small):
        try:
            family = family_of(changed)
            family.spec(changed)
            assert all("\n" not in note for note in family.notes(changed))
            family.native_config(changed)
        except InputError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("architectures", [None, [], ["FooForCausalLM"], "LlamaForCausalLM"])
def test_unknown_architectures(architectures: Any) -> None:
    with pytest.raises(InputError, match="unknown architecture") as caught:
        family_of({"architectures": architectures, "model_type": "foo"})
    assert all(name in str(caught.value) for family in families.all.values() for name in family.architectures)


def test_model_type_decides_when_no_architecture_is_named() -> None:
    assert family_of({"model_type": "qwen2"}).name == "qwen2"


def test_no_name_is_of_two_families() -> None:
    """What a family derives from another is not its names."""
    every = families.all.values()
    for names in (
        [family.name for family in every],
        [name for family in every for name in family.other_names],
        [name for family in every for name in family.architectures],
    ):
        assert len(names) == len(set(names))
    assert family_of({"model_type": "kimi_k2"}).name == "deepseek_v3"
