"""What is quantized without a recipe follows the model's own widths, and every account of the build says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.headers_only import headers_only
from support.random_checkpoint import DEEPSEEK_V3, LLAMA, random_checkpoint

from llmc.convert.families import family_of
from llmc.convert.spec import ModelSpec
from llmc.default_rules import default_rules, rules_of
from llmc.errors import InputError
from llmc.job import plan
from llmc.quant.assign import Rule
from llmc.recipe import Recipe

CONFIGS = Path(__file__).parents[1] / "data/configs"
MLP = r"re:model\.layers\.\d+\.mlp\."


def spec(config: dict[str, Any], **changes: Any) -> ModelSpec:
    return family_of(config).spec(config | changes)


@pytest.mark.parametrize(
    ("hidden", "intermediate", "rules"),
    [
        (128, 256, [Rule("dense_mlp", "int4-g128")]),
        (960, 2560, [Rule(f"{MLP}(down_proj)", "int4-g128"), Rule(f"{MLP}(gate_proj|up_proj)", "int4-g64")]),
        (2880, 2880, [Rule("dense_mlp", "int4-g64")]),
        (96, 160, [Rule("dense_mlp", "int4-g32")]),
        (128, 1000, [Rule(f"{MLP}(gate_proj|up_proj)", "int4-g128")]),
        (80, 1000, []),
    ],
)
def test_widest_groups_of_each_projection(hidden: int, intermediate: int, rules: list[Rule]) -> None:
    found = default_rules(spec(LLAMA, hidden_size=hidden, intermediate_size=intermediate))
    assert found.rules == rules
    assert bool(found.notes) == (rules != [Rule("dense_mlp", "int4-g128")])


def test_notes_say_why() -> None:
    found = default_rules(spec(LLAMA, hidden_size=576, intermediate_size=1000))
    assert found.notes == [
        "default recipe: gate_proj and up_proj in groups of 64 instead of 128, since 576 inputs are no multiple of 128",
        "default recipe: down_proj stay as they are, since 1,000 inputs are no multiple of 32, the smallest group",
    ]


def test_experts_of_a_layer_have_one_size_of_group() -> None:
    found = default_rules(spec(DEEPSEEK_V3, hidden_size=128, moe_intermediate_size=96))
    assert found.rules == [Rule("experts", "int4-g32")]
    assert default_rules(spec(DEEPSEEK_V3, moe_intermediate_size=40)).rules == []


def dense(folder: Path, small_model: Path, **changes: Any) -> Path:
    model = random_checkpoint(folder / "dense", LLAMA, vocab_size=260, **changes)
    shutil.copy(small_model / "tokenizer.json", model)
    return model


def test_plan_and_build_without_rules(llmc, recipe, small_model: Path, tmp_path: Path) -> None:
    """Plan, progress, report, JSON and card tell it; the recipe in the manifest builds the same again."""
    model = dense(tmp_path, small_model, hidden_size=64, intermediate_size=128)
    note = "gate_proj and up_proj in groups of 64 instead of 128, since 64 inputs are no multiple of 128"
    assert note in llmc("plan", model).stdout
    planned = json.loads(llmc("plan", model, "--json").stdout)
    assert planned["notes"] == [f"default recipe: {note}"]
    assert planned["schemes"] == {"dense_mlp": {"int4-g64": 2 * 2 * 64 * 128, "int4-g128": 2 * 64 * 128}}

    mine = {"model": str(model), "prune": None, "targets": []}
    made = llmc("build", recipe(**mine, quantize=None), "-o", "one", "--json")
    assert made.exit_code == 0, made.output
    manifest = json.loads(made.stdout)["manifest"]
    assert note in made.stderr and manifest["notes"] == planned["notes"]
    assert note in (Path("one") / "README.md").read_text()
    rules = manifest["recipe"]["quantize"]
    assert [rule["scheme"] for rule in rules] == ["int4-g128", "int4-g64"]
    assert manifest["tensors"]["model.layers.0.mlp.up_proj"]["scheme"] == "int4-g64"

    again = llmc("build", recipe(**mine, quantize=rules), "-o", "two", "--json")
    assert again.exit_code == 0, again.output
    spelled_out = json.loads(again.stdout)["manifest"]
    assert spelled_out["notes"] == [] and spelled_out["stages"]["quantize"] == manifest["stages"]["quantize"]


def test_a_recipe_that_names_groups_means_them(llmc, recipe, small_model: Path, tmp_path: Path) -> None:
    model = dense(tmp_path, small_model, hidden_size=64, intermediate_size=128)
    rules = [{"match": "dense_mlp", "scheme": "int4-g128"}]
    refused = llmc("plan", recipe(model=str(model), prune=None, quantize=rules))
    assert refused.exit_code == 2 and "has 64 inputs, no multiple of 128; use int4-g32 or int4-g64" in refused.stderr


def test_nothing_fits(llmc, recipe, small_model: Path, tmp_path: Path) -> None:
    """The build goes on, keeps all of the model as it is, and says so."""
    model = dense(tmp_path, small_model, intermediate_size=80, hidden_size=80, head_dim=16)
    made = llmc("build", recipe(model=str(model), prune=None, quantize=None), "-o", "out")
    assert made.exit_code == 0, made.output
    assert "stay as they are, since 80 inputs are no multiple of 32" in made.stderr
    assert "quantization_config" not in json.loads((Path("out") / "config.json").read_text())


def test_layouts_without_a_place_for_the_default_scheme() -> None:
    """One that only keeps what is there quantizes nothing; another is refused before any work."""
    model = spec(LLAMA, hidden_size=128, intermediate_size=256)
    assert rules_of(Recipe(model="m", layout="mxfp4"), model).rules == []
    assert rules_of(Recipe(model="m", layout="gptq"), model).rules == [Rule("dense_mlp", "int4-g128")]
    with pytest.raises(InputError, match="layout native-fp8 has no place for int4-g128"):
        rules_of(Recipe(model="m", layout="native-fp8"), model)


def test_plan_says_what_a_family_has_to_say(tmp_path: Path, embedded: Path) -> None:
    config = json.loads((CONFIGS / "deepseek-ai--DeepSeek-V3.2.json").read_text())
    few = {"num_hidden_layers": 4, "num_nextn_predict_layers": 0}
    found = plan(headers_only(tmp_path / "model", config | few, embedded))
    assert any("the context is 2,048 tokens" in note for note in found.notes)
