"""A model that no graph can be made of is planned and built as a checkpoint, and every account of it says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.byte_tokenizer import byte_tokenizer
from support.model_lines import published_config
from support.small_config import small_config
from support.small_model import save, witness

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.spec import StateSpec, state_bytes
from llmc.job import plan
from llmc.recipe import Recipe
from llmc.recipe_files import new_recipe

OBSTACLE = "no graph of Gated DeltaNet layers is made yet"


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_config(published_config("Qwen--Qwen3-Next-80B-A3B.bridge")) | {"vocab_size": 260}
    folder = save(witness(config), config, tmp_path_factory.mktemp("hybrid") / "model")
    byte_tokenizer(folder)
    return folder


def test_plan_says_why_there_are_no_targets(hybrid: Path, tmp_path: Path) -> None:
    planned = plan(str(hybrid), tmp_path / "out")
    assert planned.target_bytes == {}
    assert f"no targets: {OBSTACLE}; the quantized checkpoint is the result" in planned.notes
    # Of one layer: keys and values of one head of 64 channels in bfloat16.
    assert planned.cache_bytes == 2 * 2 * 64
    spec = Checkpoint.open(hybrid).spec
    # Four states of 32 x 32 in float32, and three tokens of 256 channels in bfloat16, in three layers.
    remembered = 3 * (4 * 4 * 32 * 32 + 2 * 3 * 256)
    assert sum(state_bytes(each) for each in spec.attentions if isinstance(each, StateSpec)) == remembered
    assert any(note.startswith("of 4 layers 1 have a cache that grows; 3 others remember") for note in planned.notes)


def test_plan_counts_what_a_state_takes(hybrid: Path, tmp_path: Path) -> None:
    """Of 8,192 tokens, in float32: more than the MLPs of this model."""
    planned = plan(str(hybrid), tmp_path / "out")
    # 256 channels are convolved; 4 heads of 32 channels have queries, keys, values and gates.
    assert planned.memory - (490 << 20) > 4 * 8192 * (3 * 256 + 3 * 128 + 5 * 128 + 4 * 128)


def test_plan_of_an_fp8_cache_counts_scales_of_attention(hybrid: Path, tmp_path: Path) -> None:
    recipe: dict[str, Any] = {
        "model": str(hybrid),
        "name": "x",
        "quantize": [{"match": "experts", "scheme": "int4-g32"}],
    }
    plain, fp8 = (plan(recipe | {"kv_cache": kind}, tmp_path / "out") for kind in ("bf16", "fp8"))
    assert fp8.total.after.parameters - plain.total.after.parameters == 2
    assert fp8.cache_bytes == plain.cache_bytes / 2


def test_targets_that_are_asked_for(llmc: Callable[..., Any], hybrid: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"model": str(hybrid), "targets": [{"onnxruntime": {}}]}))
    for command in ("plan", "build"):
        said = llmc(command, recipe)
        assert said.exit_code == 2
        assert f"targets: onnxruntime cannot be made of qwen3_next: {OBSTACLE}; write `targets: []`" in " ".join(
            said.stderr.split()
        )


@pytest.mark.parametrize("passes", [True, False])
def test_build_is_gated_by_the_pass_itself(
    llmc: Callable[..., Any], hybrid: Path, tmp_path: Path, passes: bool
) -> None:
    recipe, text = tmp_path / "recipe.yaml", tmp_path / "text.txt"
    text.write_text("What is forgotten is not lost, as long as somebody wrote it down. " * 200)
    parts = {"text": "text.txt", "length": 64}
    recipe.write_text(
        yaml.safe_dump(
            {
                "model": str(hybrid),
                "quantize": [{"match": "experts", "scheme": "int4-g32"}, {"match": "attention", "scheme": "int8-g32"}],
                "calibration": {**parts, "samples": 8},
                "check": {**parts, "tokens": 256, "gates": {"kl_mean": 5.0 if passes else 1e-6}},
            }
        )
    )
    said = llmc("build", recipe, "--output", tmp_path / "out")
    assert said.exit_code == (0 if passes else 3), said.output
    folder = tmp_path / ("out" if passes else "out.rejected")
    manifest = json.loads((folder / "llmc.json").read_text())
    assert manifest["checks"]["computed_by"] == "torch" and manifest["checks"]["kl_mean"] > 1e-6
    assert [gate["passed"] for gate in manifest["checks"]["gates"]] == [passes]
    assert manifest["targets"] == {} and manifest["recipe"]["targets"] == []
    assert any(OBSTACLE in note for note in manifest["notes"])
    assert Checkpoint.open(folder).quantized("model.layers.0.self_attn.out_proj") is not None


def test_infinity_in_a_published_config(llmc: Callable[..., Any], tmp_path: Path) -> None:
    """Nemotron-H's config.json holds Python's `Infinity`; it is read, and written again for transformers."""
    config = small_config(published_config("nvidia--Nemotron-H-56B-Base-8K")) | {"vocab_size": 260}
    folder = save(witness(config), config, tmp_path / "model")
    byte_tokenizer(folder)
    assert "Infinity" in (folder / "config.json").read_text()
    (tmp_path / "text.txt").write_text("What is forgotten is not lost, as long as somebody wrote it down. " * 200)
    parts = {"text": str(tmp_path / "text.txt"), "length": 64}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {"model": str(folder), "calibration": {**parts, "samples": 4}, "check": {**parts, "tokens": 128}}
        )
    )
    planned = plan(recipe, tmp_path / "planned")
    assert any("no graph of Mamba-2 layers is made yet" in note for note in planned.notes)
    assert any(note.startswith("of 8 layers 1 have a cache that grows; 4 others remember") for note in planned.notes)
    said = llmc("build", recipe, "--output", tmp_path / "out")
    assert said.exit_code == 0, said.output
    text = (tmp_path / "out" / "config.json").read_text()
    assert "Infinity" in text and json.loads(text)["time_step_limit"][1] == float("inf")
    assert "Infinity" not in (tmp_path / "out" / "llmc.json").read_text()


def test_a_new_recipe_has_none(hybrid: Path) -> None:
    text = new_recipe(str(hybrid))
    assert f"targets: []  # {OBSTACLE}\n" in text
    assert yaml.safe_load(text)["targets"] == []
    recipe = Recipe.model_validate(yaml.safe_load(text) | {"name": "new"})
    assert recipe.check.gates.limits() and recipe.targets == []
