"""A recipe is refused with one line that says where and what, and names what was probably meant."""

from pathlib import Path

import pytest

from llmc.errors import InputError
from llmc.recipe import PYTHON_DOCS, json_schema, load_recipe, read_recipe


@pytest.mark.parametrize(
    ("text", "line", "parts"),
    [
        ("modle: x", 1, ["modle", "did you mean 'model'?"]),
        ("name: a\ncheck: {}", 1, ["`model` is missing"]),
        ("model: x\nquantize:\n  - {match: experts, shceme: int4-g64}", 3, ["quantize[0].shceme", "'scheme'"]),
        ("model: x\nquantize:\n  - match: expert\n    scheme: int4-g64", 3, ["'expert'", "experts"]),
        ("model: x\nquantize:\n  - match: experts\n    scheme: int4-g63", 3, ["int4-g64"]),
        ("model: x\nquantize:\n  - {match: 're:(', scheme: int4-g64}", 3, ["not a regular expression"]),
        ("model: x\nquantize: [{match: experts, scheme: int4-g64, method: gtpq}]", 2, ["'gptq', 'gptaq' or 'rtn'"]),
        ("model: x\n\nprune: {keep: 175%}", 3, ["prune.keep", "1.75"]),
        ("model: x\nprune: {keep: most}", 2, ["0.02 or 2%"]),
        ("model: x\nprune: {}", 2, ["prune: `keep` is missing"]),
        ("model: x\ncalibration:\n  samples: -1", 3, ["calibration.samples", "-1"]),
        ("model: x\ncalibration:\n  samples: true", 3, ["calibration.samples", "True"]),
        ("model: x\ncheck:\n  gates:\n    kl: 1", 4, ["check.gates.kl", "kl_mean"]),
        ("model: x\ncheck: {gates: {ppl_increase: 2}}", 2, ["less than 1"]),
        ("model: x\ntargets:\n  - onnxruntim: {}", 3, ["did you mean 'onnxruntime'?"]),
        ("model: x\ntargets:\n  - onnxruntime: {accuracy_levl: 4}", 3, ["did you mean 'accuracy_level'?"]),
        ("model: x\ntargets:\n  - onnxruntime: {accuracy_level: 3}", 3, ["must be 1 or 4, not 3"]),
        ("model: x\ntargets:\n  - onnxruntime", 3, ["targets[0]", "'onnxruntime'"]),
        ("model: x\ntargets:\n  - onnx: {}\n  - onnx: {}", 4, ["named twice"]),
        ("model: x\ntargets:\n  - tensorrt-rtx: {sm: [42]}", 3, ["42"]),
        ("model: x\ntargets: [{onnx: {}}]\ncheck: {gates: {top1: 90%}}", 3, ["add `- onnxruntime: {}`"]),
        ("model: x\nname: a/b", 2, ["name"]),
        ("model: x\nname: a\nmodel: y", 3, ["there twice"]),
        ("model: [x", 1, ["not valid YAML"]),
    ],
)
def test_refused(tmp_path: Path, text: str, line: int, parts: list[str]) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_recipe(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: ")
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("text", ["- a", "just text", "", "a: &x 1\nb: *x"])
def test_not_a_recipe(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=str(path)):
        read_recipe(path)


def test_defaults_and_percents(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model: x\nprune: {keep: 75%}\ntargets: [{onnxruntime: }]\ncheck: {gates: {ppl_increase: 2.5%}}")
    recipe, base = load_recipe(str(path))
    assert (recipe.name, base) == ("mine", tmp_path)
    assert recipe.prune and recipe.prune.keep == 0.75
    assert recipe.check.gates.limits() == {"ppl_increase": 0.025}
    assert recipe.targets == [{"onnxruntime": {"accuracy_level": 4, "lm_head_bits": 8}}]
    assert recipe.calibration.text == recipe.check.text == PYTHON_DOCS


def test_windows_fit_the_context(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: x\ncalibration: {samples: 3, length: 64}\ncheck: {tokens: 100}")
    recipe = read_recipe(path)
    assert recipe.calibration.windows(128) == (3, 64)
    assert recipe.check.windows(48) == (2, 48)
    with pytest.raises(InputError, match="context of 32"):
        recipe.calibration.windows(32)
    with pytest.raises(InputError, match="less than one window of 128"):
        recipe.check.windows(128)


def test_shipped_recipes_are_valid() -> None:
    for path in sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml")):
        by_name, _ = load_recipe(path.stem)
        assert by_name == load_recipe(str(path))[0]


def test_unknown_recipe() -> None:
    with pytest.raises(InputError, match="quickstart"):
        load_recipe("nowhere/quickstrat.yaml")


def test_schema_names_schemes_and_targets() -> None:
    schema = json_schema()
    assert "int4-g128" in schema["$defs"]["Quantize"]["properties"]["scheme"]["enum"]
    assert schema["properties"]["targets"]["items"]["properties"]["onnxruntime"]
    assert schema["properties"]["layout"]["enum"] == ["compressed-tensors", "gptq", "native-fp8"]
    assert set(schema["required"]) == {"model"}
