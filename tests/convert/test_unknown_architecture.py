"""What is said of models that llmc does not read: the part that is missing, the nearest family, and what to do."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from support.random_checkpoint import LLAMA, QWEN2, random_checkpoint

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.families import families, family_of
from llmc.convert.families.family import Family
from llmc.convert.unknown_architecture import FEATURES, describe
from llmc.errors import InputError

CONFIGS = Path(__file__).parents[1] / "data" / "configs"
FEW = [
    families.all[name] for name in ("llama", "qwen2", "qwen3", "qwen3_moe", "minimax_m2", "gemma3_text", "deepseek_v3")
]


def published(name: str) -> dict[str, Any]:
    return dict(json.loads((CONFIGS / f"{name}.json").read_text()))


@pytest.mark.parametrize(
    ("name", "lacks", "nearest"),
    [
        ("deepseek-ai--DeepSeek-V4-Pro", "hyper-connections (`hc_mult`), compressed keys and values", "deepseek_v3"),
        ("MiniMaxAI--MiniMax-M3", "block-sparse attention (`sparse_attention_config`)", "minimax_m2"),
        ("nvidia--Nemotron-H-56B-Base-8K", "Mamba's state-space layers (`ssm_state_size`)", "llama"),
        ("Qwen--Qwen3-Next-80B-A3B.bridge", "gated delta net layers (`linear_num_value_heads`)", "qwen3_moe"),
        ("nvidia--Llama-3_3-Nemotron-Super-49B-v1", "layers that were pruned one by one (`block_configs`)", None),
        ("moonshotai--Kimi-K3", "Kimi delta attention (`linear_attn_config`)", "deepseek_v3"),
        ("google--gemma-4-26B-A4B", "a vision tower of this kind (`vision_config`)", "gemma3_text"),
        ("meta-llama--Llama-4-Scout-17B-16E-Instruct", "attention in chunks (`attention_chunk_size`)", "llama"),
    ],
)
def test_published_ones(name: str, lacks: str, nearest: str | None) -> None:
    """Against few families, so that it does not matter which of them llmc has by now."""
    said = describe(published(name), FEW)
    assert lacks in said and ", which llmc does not have" in said
    assert nearest is None or f"the nearest family is '{nearest}'" in said
    assert "choose a model of that, or write a family" in said and "\n" not in said


def test_every_published_config_that_is_unknown_gets_advice() -> None:
    told = []
    for path in CONFIGS.rglob("*.json"):
        config = json.loads(path.read_text())
        try:
            family_of(config)
        except InputError as error:
            assert "the nearest family is" in str(error) or "correct `model_type`" in str(error), path.name
            told.append(str(error))
    assert all("\n" not in each and len(each) < 700 for each in told)


def test_another_name_for_what_is_known() -> None:
    """Fine-tunes that were given a name of their own, and models that are a family in all but name."""
    config = QWEN2 | {"architectures": ["MyTuneForCausalLM"], "model_type": "qwen2_tuned"}
    with pytest.raises(InputError, match=r"'MyTuneForCausalLM' .*nearest family is 'qwen2' \(Qwen2ForCausalLM\): if"):
        family_of(config)
    assert "the nearest family is 'qwen2'" in describe(QWEN2 | {"architectures": ["X"], "model_type": "x"}, FEW)


def test_what_a_family_brings_is_missing_no_longer() -> None:
    config = published("Qwen--Qwen3-Next-80B-A3B.bridge")
    newer: Family = copy.copy(families.all["qwen3_moe"])
    newer.name = "qwen3_5_moe"
    assert "gated delta net" not in describe(config, [*FEW, newer])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer_types": ["full_attention", "mamba"]}, "Mamba's state-space layers (`layer_types`)"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "gated delta net layers (`layer_types`)"),
        ({"attention_chunk_size": 128, "sliding_window": 128}, None),
        ({"hc_mult": 0, "vision_config": None}, None),
        ({"audio_config": {"layers": 2}}, "an encoder of sound (`audio_config`)"),
    ],
)
def test_features_by_field(changes: dict[str, Any], said: str | None) -> None:
    found = describe(LLAMA | {"architectures": ["X"], "model_type": "x"} | changes, FEW)
    assert ("which llmc does not have" in found) == (said is not None) and (said or "") in found


@pytest.mark.parametrize("value", [None, 3, "x" * 100_000, [], {"a": {}}, [[None]]])
def test_whatever_the_fields_hold(value: Any) -> None:
    """A line for any JSON at the place of any field that is looked at."""
    for name in (
        "model_type",
        "text_config",
        "layer_types",
        *(field for feature in FEATURES for field in feature.fields),
    ):
        said = describe({"architectures": ["X"], name: value}, FEW)
        assert said.startswith("unknown architecture 'X'") and len(said) < 700


def test_models_that_see_are_told_what_is_missing(tmp_path: Path) -> None:
    path = random_checkpoint(tmp_path, LLAMA)
    config = {"architectures": ["XForConditionalGeneration"], "model_type": "x", "vision_config": {"depth": 2}}
    (path / "config.json").write_text(json.dumps(config | {"text_config": LLAMA}))
    with pytest.raises(InputError, match=r"vision tower of this kind \(`vision_config`\).* nearest family is 'llama'"):
        Checkpoint.open(path)
