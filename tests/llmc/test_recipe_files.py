"""Recipes that ship, and recipes that llmc writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from support.headers_only import headers_only
from support.model_lines import published_config

from llmc.job import plan
from llmc.recipe import read_recipe, shipped
from llmc.recipe_files import new_recipe

CONFIGS = {  # of what the shipped recipes are for
    "deepseek-v3": "deepseek-ai--DeepSeek-V3",
    "llama-3.1-8b": "meta-llama--Meta-Llama-3.1-8B",
    "qwen3-30b-a3b": "Qwen--Qwen3-30B-A3B",
    "r1-distill-qwen-7b": "deepseek-ai--DeepSeek-R1-Distill-Qwen-7B",
}
SHIPPED = [*CONFIGS, "quickstart"]
SIZES = {"llama-3.1-8b": 5.7e9, "qwen3-30b-a3b": 17.1e9}  # of the result; as their comments say


def planned(folder: Path, name: str, tokenizer: Path, **changes: object) -> Path:
    return headers_only(folder / "model", published_config(CONFIGS[name]) | changes, tokenizer)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_planned_as_it_is(name: str, tmp_path: Path, embedded: Path) -> None:
    recipe = read_recipe(shipped()[name])
    if not recipe.model.startswith("builtin:"):
        few = {"num_hidden_layers": 5} if name == "deepseek-v3" else {}  # 3 dense ones, 2 of experts, MTP
        recipe = recipe.model_copy(update={"model": str(planned(tmp_path, name, embedded, **few))})
    made = plan(recipe)
    assert 0 < made.total.after.bytes < made.total.before.bytes
    for rule in recipe.quantize:
        assert rule.scheme in made.schemes[rule.match]
    if name in SIZES:
        assert made.total.after.bytes == pytest.approx(SIZES[name], rel=0.035)
    assert {*shipped()} == {*SHIPPED}


def test_the_plan_in_the_readme(tmp_path: Path, embedded: Path, monkeypatch: pytest.MonkeyPatch, llmc) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = llmc("plan", planned(tmp_path, "qwen3-30b-a3b", embedded)).stdout
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    rows = [line.strip() for line in readme.splitlines() if line.strip().startswith(("│ experts   │", "│ total  "))]
    assert len(rows) == 2 and all(row in text for row in rows)


def test_list_and_show(llmc) -> None:
    listed = llmc("recipe", "list")
    assert listed.exit_code == 0
    assert json.loads(llmc("recipe", "list", "--json").stdout).keys() == shipped().keys()
    assert all(name in listed.stdout for name in shipped()) and "The first build: the small" in listed.stdout
    assert llmc("recipe", "show", "quickstart").stdout == shipped()["quickstart"].read_text()
    refused = llmc("recipe", "show", "quickstrat")
    assert refused.exit_code == 2 and "did you mean 'quickstart'?" in refused.stderr


@pytest.mark.parametrize("name", ["llama-3.1-8b", "deepseek-v3"])
def test_new(llmc, tmp_path: Path, embedded: Path, name: str) -> None:
    few = {"num_hidden_layers": 5} if name == "deepseek-v3" else {}
    model = planned(tmp_path, name, embedded, **few)
    assert llmc("recipe", "new", model, "--output", "mine.yaml").exit_code == 0
    text = Path("mine.yaml").read_text()
    assert llmc("recipe", "new", model).stdout == text
    recipe = read_recipe(Path("mine.yaml"))
    role = "experts" if name == "deepseek-v3" else "dense_mlp"
    assert recipe.model == str(model) and [rule.match for rule in recipe.quantize] == [role]
    assert f"{role} " in text and ("# prune:" in text) == (role == "experts")
    made = llmc("plan", "mine.yaml", "--json")
    assert made.exit_code == 0 and json.loads(made.stdout)["schemes"][role].keys() == {"int4-g128"}
    again = llmc("recipe", "new", model, "--output", "mine.yaml")
    assert again.exit_code == 2 and "mine.yaml: exists" in again.stderr


def test_new_fits_narrow_layers(llmc, small_model: Path) -> None:
    made = yaml.safe_load(llmc("recipe", "new", small_model).stdout)
    assert made["quantize"] == [{"match": "experts", "scheme": "int4-g32"}]


def test_new_takes_fp8_where_no_group_fits(tmp_path: Path, embedded: Path) -> None:
    model = planned(tmp_path, "llama-3.1-8b", embedded, num_hidden_layers=1, hidden_size=4112, intermediate_size=4112)
    text = new_recipe(str(model))
    assert yaml.safe_load(text)["quantize"] == [{"match": "dense_mlp", "scheme": "fp8-channel"}]
    (tmp_path / "mine.yaml").write_text(text)
    assert plan(tmp_path / "mine.yaml").schemes["dense_mlp"].keys() == {"fp8-channel"}


@pytest.mark.parametrize("key", ["calibration", "check"])
def test_plan_tells_of_a_missing_text(llmc, recipe, key: str) -> None:
    path = recipe(**{key: {"text": "nowhere.txt"}})
    for command in ("plan", "build"):
        refused = llmc(command, path)
        assert refused.exit_code == 2
        assert f"{key}.text: there is no file {path.parent / 'nowhere.txt'}; name your own text" in refused.stderr


def test_texts_of_a_recipe_used_by_name_are_looked_for_here(
    llmc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "named.yaml").write_text("model: builtin:tiny-deepseek-v3\ncheck: {text: mine.txt}\n")
    monkeypatch.setattr("llmc.recipe.shipped", lambda: {"named": tmp_path / "named.yaml"})
    assert "check.text: there is no file mine.txt;" in llmc("plan", "named").stderr
    Path("mine.txt").write_text("some text")
    assert llmc("plan", "named").exit_code == 0


def test_targets_are_a_list(llmc, recipe) -> None:
    refused = llmc("plan", recipe(targets={"onnx": {}}))
    assert refused.exit_code == 2 and "targets: must be a list: write `- onnx: {}`" in refused.stderr


def test_the_schema_has_a_title_and_says_what_options_do(llmc) -> None:
    schema = json.loads(llmc("recipe", "schema").stdout)
    assert schema["title"] == "llmc recipe"
    for name, options in schema["properties"]["targets"]["items"]["properties"].items():
        for key, option in options["anyOf"][0].get("properties", {}).items():
            assert option.get("description"), f"{name}.{key}"


def test_schemes_as_other_programs_call_them(llmc, recipe) -> None:
    path = recipe(quantize=[{"match": "attention", "scheme": "FP8_DYNAMIC"}])
    assert json.loads(llmc("plan", path, "--json").stdout)["schemes"]["attention"].keys() == {"fp8-channel-dynamic"}
    refused = llmc("plan", recipe(quantize=[{"match": "experts", "scheme": "awq"}]))
    assert refused.exit_code == 2 and "quantize[0].scheme: scheme 'awq' is a method" in refused.stderr
