"""What config.json does not say is what transformers' class of that architecture says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.gpt_oss import GPT_OSS
from support.model_lines import published_config
from support.random_checkpoint import DEEPSEEK_V3, LLAMA, QWEN2
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llmc.convert.families import family_of
from llmc.convert.families.rope import rope_spec
from llmc.convert.spec import ModelSpec
from llmc.errors import InputError

# Of a size that the defaults fit: eight groups of experts, 32 heads.
CONFIGS: dict[str, dict[str, Any]] = {
    "deepseek_v3": DEEPSEEK_V3 | {"n_routed_experts": 32, "num_hidden_layers": 5},
    "llama": LLAMA | {"hidden_size": 256, "num_attention_heads": 32, "head_dim": 8},
    "qwen2": QWEN2 | {"hidden_size": 256, "num_attention_heads": 32, "head_dim": 8},
    "gpt_oss": GPT_OSS | {"num_attention_heads": 64},
    "qwen3_next": published_config("Qwen--Qwen3-Next-80B-A3B.bridge"),
    "nemotron_h": published_config("nvidia--NVIDIA-Nemotron-3-Super-120B-A12B-FP8"),
}
# Token ids belong to a tokenizer rather than to an architecture: the class's are those of one released model, and to
# stop at another model's token 2 is worse than to have none.
NOT_OURS = {"bos_token_id", "eos_token_id", "model_type", "architectures"}


def spec_of(config: dict[str, Any]) -> ModelSpec:
    return family_of(config).spec(config)


class Watched(dict[str, Any]):
    """Knows which of its fields were asked for."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.asked: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return super().get(name, default)


def fields_with_defaults() -> list[tuple[str, str]]:
    found = []
    for family, config in CONFIGS.items():
        watched = Watched(config)
        spec_of(watched)
        published = AutoConfig.for_model(family)
        found += [(family, name) for name in sorted(watched.asked - NOT_OURS) if hasattr(published, name)]
    return found


@pytest.mark.parametrize(("family", "name"), fields_with_defaults())
def test_an_absent_field_has_the_published_default_or_is_refused(family: str, name: str) -> None:
    without = {key: value for key, value in CONFIGS[family].items() if key != name}
    published = AutoConfig.for_model(family, **{k: v for k, v in without.items() if k != "model_type"})
    try:
        spec = spec_of(without)
    except InputError as error:
        assert f"`{name}` is missing" in str(error)
    else:
        assert spec == spec_of(without | {name: getattr(published, name)})


def test_the_defaults_that_cost_most() -> None:
    names = ("routed_scaling_factor", "n_group", "topk_group", "first_k_dense_replace", "n_shared_experts")
    config = {key: value for key, value in CONFIGS["deepseek_v3"].items() if key not in names}
    spec = spec_of(config)
    assert [type(mlp).__name__ for mlp in spec.mlps] == ["DenseMLPSpec"] * 3 + ["MixtureOfExpertsSpec"] * 3
    experts: Any = spec.mlps[3]
    assert experts.shared_intermediate_size == 48
    router = experts.router
    assert (router.scaling_factor, router.num_groups, router.top_k_groups) == (2.5, 8, 4)


NULLS = [(family, "layer_norm_epsilon" if family == "nemotron_h" else "rms_norm_eps") for family in CONFIGS]
NULLS += [("deepseek_v3", name) for name in ("norm_topk_prob", "rope_interleave", "routed_scaling_factor", "n_group")]


@pytest.mark.parametrize(("family", "name"), NULLS)
def test_null_is_not_absent(family: str, name: str) -> None:
    """To the published class null is false or a mistake, and never its default."""
    with pytest.raises(InputError, match=f"`{name}` is null"):
        spec_of(CONFIGS[family] | {name: None})


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_no_number_of_key_value_heads_is_as_many_as_heads(family: str) -> None:
    attention: Any = spec_of(CONFIGS[family] | {"num_attention_heads": 16, "num_key_value_heads": None}).attentions[0]
    assert attention.num_kv_heads == 16


def test_both_names_of_mtp_layers() -> None:
    config = {key: value for key, value in DEEPSEEK_V3.items() if key != "num_nextn_predict_layers"}
    for number in (0, 1, 2):
        assert AutoConfig.for_model("deepseek_v3", num_mtp_layers=number).num_nextn_predict_layers == number
        assert spec_of(config | {"num_mtp_layers": number}).num_mtp_layers == number
    assert spec_of(config).num_mtp_layers == 1


YARN = {"rope_type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1}
# theta, channels, positions, scaling; of released models, and of each kind of option.
ROPES: dict[str, tuple[float, int, int, dict[str, Any]]] = {
    "DeepSeek-V3": (10000, 64, 163840, YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}),
    "DeepSeek-V2-Lite": (10000, 64, 163840, YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}),
    "DeepSeek-V3.1": (10000.0, 64, 163840, {**YARN, "type": "yarn", "mscale": 1.0, "mscale_all_dim": 1.0}),
    "Kimi-K2": (50000.0, 64, 131072, YARN | {"factor": 32.0, "beta_fast": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}),
    "Qwen2.5, long": (
        1000000.0,
        128,
        32768,
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    ),
    "Qwen2.5-1M": (10000000.0, 128, 1010000, {}),
    "Yarn-Llama-2-13b-128k": (
        10000,
        128,
        131072,
        {"type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "finetuned": True},
    ),
    "YaRN, not truncated": (150000, 64, 131072, YARN | {"factor": 32.0, "truncate": False}),
    "YaRN, null": (150000, 64, 131072, YARN | {"beta_fast": None, "attention_factor": None, "truncate": None}),
    "YaRN, no length": (10000, 96, 8192, {"rope_type": "yarn", "factor": 3.7}),
    "YaRN, one channel": (10000, 64, 4096, YARN | {"beta_fast": 1.0, "beta_slow": 1.0, "truncate": False}),
    "YaRN, attention factor": (10000, 80, 65536, YARN | {"attention_factor": 0.9}),
    "Llama-3.1": (
        500000.0,
        128,
        131072,
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        | {"original_max_position_embeddings": 8192},
    ),
    "Llama-3.2": (
        500000.0,
        64,
        131072,
        {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        | {"original_max_position_embeddings": 8192},
    ),
    "deepseek-coder": (100000, 128, 16384, {"type": "linear", "factor": 4.0}),
    "Vicuna-16k": (10000.0, 128, 4096, {"type": "linear", "factor": 4.0}),
    "Llama-2": (10000.0, 128, 4096, {}),
}


@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
def test_rotary_frequencies_to_the_last_bit(name: str, spelling: str) -> None:
    theta, dim, positions, scaling = ROPES[name]
    config: dict[str, Any] = {"rope_theta": theta, "max_position_embeddings": positions, spelling: scaling or None}
    ours = rope_spec(config, dim, interleaved=False, max_positions=positions)
    published = AutoConfig.for_model("llama", head_dim=dim, hidden_size=dim, num_attention_heads=1, **config)
    kind = published.rope_parameters["rope_type"]
    if kind == "default":
        expected, factor = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float) / dim)), 1.0
    else:
        expected, factor = ROPE_INIT_FUNCTIONS[kind](published)
    assert ours.inverse_frequencies == tuple(expected.tolist())
    assert ours.attention_factor == factor


def test_the_outer_original_length_wins_as_in_transformers() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    config = {"rope_scaling": scaling, "original_max_position_embeddings": 32, "max_position_embeddings": 256}
    ours = rope_spec(config, 64, interleaved=False, max_positions=256)
    published = AutoConfig.for_model("llama", head_dim=64, hidden_size=64, num_attention_heads=1, **config)
    expected, _ = ROPE_INIT_FUNCTIONS["yarn"](published)
    assert ours.inverse_frequencies == tuple(expected.tolist())


SLIDING = ["full_attention", "sliding_attention"]
WINDOWS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "qwen2, no window": (QWEN2, {"layer_types": SLIDING}, "`layer_types` makes layer 1"),
    "qwen2, list of numbers": (QWEN2, {"layer_types": [1, 2]}, "`layer_types` must be a list of strings"),
    "llama, layer_types": (LLAMA, {"layer_types": SLIDING}, "`layer_types` makes layer 1"),
    "llama, as mistral": (LLAMA, {"sliding_window": 4096}, "`sliding_window` is 4096"),
    "deepseek_v3": (DEEPSEEK_V3, {"layer_types": ["chunked_attention"] * 3}, "`layer_types` makes layer 0"),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_are_refused_by_field(name: str) -> None:
    config, changes, said = WINDOWS[name]
    with pytest.raises(InputError) as caught:
        spec_of(config | changes)
    assert said in str(caught.value)


WINDOWED: dict[str, dict[str, Any]] = {
    "layer_types": {"layer_types": SLIDING, "use_sliding_window": True, "max_window_layers": 2},
    "from a layer on": {"use_sliding_window": True, "max_window_layers": 1},
    "of the context": {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 256},
    "default window": {"use_sliding_window": True, "max_window_layers": 0, "max_position_embeddings": 8192},
}


@pytest.mark.parametrize("name", WINDOWED)
def test_windows_are_those_of_the_published_class(name: str) -> None:
    config = {key: value for key, value in (QWEN2 | WINDOWED[name]).items() if key != "model_type"}
    if name == "default window":
        del config["sliding_window"]
    published = AutoConfig.for_model("qwen2", **config)
    window = published.sliding_window if published.sliding_window < published.max_position_embeddings else None
    expected = [window if kind == "sliding_attention" else None for kind in published.layer_types]
    assert [attention.window for attention in spec_of(config | {"model_type": "qwen2"}).attentions] == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
        {"use_sliding_window": True, "max_window_layers": 0, "layer_types": ["full_attention"] * 2},
        {"use_sliding_window": True, "max_window_layers": 2},
    ],
)
def test_windows_that_no_layer_has_are_welcome(changes: dict[str, Any]) -> None:
    published = AutoConfig.for_model("qwen2", **{k: v for k, v in (QWEN2 | changes).items() if k != "model_type"})
    assert published.layer_types == ["full_attention"] * 2
    assert spec_of(QWEN2 | changes) == spec_of(QWEN2)
