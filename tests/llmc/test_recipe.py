"""A recipe is refused with one line that says where and what, and names what was probably meant."""

from pathlib import Path

import pytest

from llmc.calibration_recipe import PYTHON_DOCS, Gates
from llmc.contracts.manifest import CheckRecord
from llmc.contracts.part import LimitRecord
from llmc.errors import InputError
from llmc.recipe import json_schema, load_recipe, read_recipe


@pytest.mark.parametrize(
    ("text", "line", "parts"),
    [
        ("modle: x", 1, ["modle", "did you mean 'model'?"]),
        ("name: a\ncheck: {}", 1, ["`model` is missing"]),
        ("model: x\nquantize:\n  - {match: experts, shceme: int4-g64}", 3, ["quantize[0].shceme", "'scheme'"]),
        ("model: x\nquantize:\n  - match: expert\n    scheme: int4-g64", 3, ["'expert'", "experts"]),
        ("model: x\nquantize:\n  - match: experts\n    scheme: int4-g63", 4, ["quantize[0].scheme", "int4-g64"]),
        ("model: x\nquantize:\n  - {match: 're:(', scheme: int4-g64}", 3, ["no regular expression"]),
        (
            "model: x\nquantize: [{match: experts, scheme: int4-g64, method: gtpq}]",
            2,
            ["'gptq', 'gptaq', 'yaqa' or 'rtn'"],
        ),
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
        ("model: x\nname: a/b", 2, ["name"]),
        ("model: x\nname: a\nmodel: y", 3, ["there twice"]),
        ("model: [x", 1, ["not valid YAML"]),
        ("- a", 1, ["a recipe is a mapping", "not list"]),
        ("model: x\nname: !!timestamp x", 2, ["name: tags"]),
        ("model: x\nname: 2026-02-30\nquantize: 1:2", 3, ["quantize: must be a valid list"]),
        ("model: x\nname: ..", 2, ["name: must be the name of a folder"]),
        ("model: x\nname: .", 2, ["name: must be the name of a folder"]),
        ("model: x\nname: .hidden", 2, ["name: must be the name of a folder"]),
        ("model: x\nname: nul", 2, ["name: must be the name of a folder"]),
        ("model: x\nname: " + "n" * 101, 2, ["name: must be the name of a folder"]),
        ('model: "a\\0b"', 1, ["model: has the character '\\x00'"]),
        ("\nmodel: " + "a" * 2000, 2, ["model: 'aaa", "is longer than a path"]),
        ("\nmodel: " + "a" * 300, 2, ["model: 'aaa", "is longer than a path"]),
        ("\nmodel: ~nosuchuser/x", 2, ["model: '~nosuchuser' is no user's folder"]),
        ("model: x\ncheck: {text: ~nosuchuser/x}", 2, ["check.text: '~nosuchuser' is no user's folder"]),
        ("model: x\ncalibration: {text: 5}", 2, ["calibration.text: must be a text or a list of texts"]),
        ("model: x\ncalibration: {text: []}", 2, ["calibration.text: must be a text or a list of 1 to 100 texts"]),
        ("model: x\ncalibration:\n  text:\n  - a\n  - a", 5, ["calibration.text[1]: a is named twice"]),
        ("model: x\ncalibration:\n  text:\n  - a\n  - {}", 5, ["calibration.text[1]: `text` is missing"]),
        ("model: x\ncalibration:\n  text:\n  - 5", 4, ["calibration.text[0]: must be a text: `- chats.jsonl`"]),
        (
            "model: x\ncalibration:\n  text:\n  - {text: a, wieght: 2}",
            4,
            ["calibration.text[0].wieght: unknown key 'wieght'", "weight"],
        ),
        ("model: x\ncalibration:\n  text:\n  - {text: a, weight: 0}", 4, ["calibration.text[0].weight", "not 0"]),
        ("model: x\ncalibration: {samples: 1048577}", 2, ["calibration.samples", "not 1048577"]),
        ("model: x\ncalibration: {samples: " + "9" * 39 + "}", 2, ["calibration.samples", "not 999"]),
        ("model: x\ncalibration: {samples: " + "9" * 4299 + "}", 2, ["calibration.samples: a number of 4,299 digits"]),
        ("model: x\ncalibration: {length: 99999999}", 2, ["calibration.length", "16777216"]),
        ("model: x\ncalibration: {seed: 9223372036854775808}", 2, ["calibration.seed", "less than"]),
        ("model: x\ncheck: {tokens: 1e300}", 2, ["check.tokens", "not 1e+300"]),
        ("model: x\ncheck: {tokens: 1073741825}", 2, ["check.tokens"]),
        ("model: x\ncheck: {tokens: 31}", 2, ["check.tokens", "32"]),
        ("model: x\ncheck: {gates: {kl_mean: .inf}}", 2, ["check.gates.kl_mean", "finite"]),
        ("model: x\ncheck: {gates: {top1: .nan}}", 2, ["check.gates.top1"]),
        (
            "model: x\ncheck:\n  gates:\n    kl_mean: 0.1\n    top1: 90% @97",
            5,
            ["check.gates.top1", "'97'", "90, 95, 99"],
        ),
        ("model: x\ncheck: {gates: {top1: 101% @95}}", 2, ["check.gates.top1", "less than or equal to 1"]),
        ("model: x\ncheck: {gates: {kl_mean: nan @95}}", 2, ["check.gates.kl_mean"]),
        ("model: x\ncheck: {gates: {kl_mean: much @95}}", 2, ["check.gates.kl_mean", "number"]),
        ("model: x\ntargets:\n- tensorrt-rtx: {batch: 4097}", 3, ["targets[0].tensorrt-rtx.batch"]),
        ("model: x\ntargets:\n- tensorrt-rtx: {context: 99999999}", 3, ["targets[0].tensorrt-rtx.context"]),
        ("model: x\ntargets:\n- tensorrt-rtx: {prefill: 99999999}", 3, ["targets[0].tensorrt-rtx.prefill"]),
        ("model: x\ntargets:\n- tensorrt-rtx: {timeout: .inf}", 3, ["targets[0].tensorrt-rtx.timeout"]),
        ("model: x\ntargets:\n- 7: {}", 3, ["targets[0].7: unknown target '7'"]),
        ("model: x\ntargets: [" + "{onnx: }, " * 101 + "]", 2, ["targets", "at most 100"]),
        (
            "model: x\nquantize:\n- {match: 're:" + "(" * 3000 + ")" * 3000 + "', scheme: int4-g64}",
            3,
            ["quantize[0].match", "6,000"],
        ),
        (
            "model: x\nquantize:\n- {match: 're:(a{9999}){9999}', scheme: int4-g64}",
            3,
            ["quantize[0].match", "too often"],
        ),
        ("model: x\n" + "k" * 150 + ": 1", 2, ["unknown key 'kkk", "…'"]),
        ("model: x\nname: " + "a b" * 50, 2, ["name: ", "…'"]),
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


def test_files_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes("model: x\n".encode("utf-16"))
    with pytest.raises(InputError, match=r"r\.yaml:1: not UTF-8 text"):
        read_recipe(path)
    path.write_bytes(b"model: x\nname: \xff\n")
    with pytest.raises(InputError, match=r"r\.yaml:2: not UTF-8 text"):
        read_recipe(path)
    path.write_bytes(b"#" * 1_000_000)
    with pytest.raises(InputError, match="larger than the 262,144 bytes"):
        read_recipe(path)


@pytest.mark.parametrize("argument", ["a\0b", "a\x1b", "~nosuchuser/x", "a" * 5000, "a" * 300, "\ud800"])
def test_arguments_that_name_nothing(argument: str) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe(argument)
    assert len(str(caught.value)) < 250 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "name"), [("...yaml", "model"), (".hidden.yaml", "hidden"), ("a b.yaml", "a-b"), ("nul.yaml", "model-nul")]
)
def test_a_recipe_that_has_no_name_is_called_like_its_file(tmp_path: Path, file: str, name: str) -> None:
    (tmp_path / file).write_text("model: x")
    assert load_recipe(str(tmp_path / file))[0].name == name


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
    assert recipe.public()["check"]["gates"] == {"ppl_increase": 0.025}
    assert recipe.targets == [{"onnxruntime": {"accuracy_level": 4, "lm_head_bits": 8}}]
    assert recipe.calibration.text == recipe.check.text == PYTHON_DOCS


def test_gates_on_the_end_of_an_interval(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model: x\ncheck: {gates: {ppl_increase: 2% @95, kl_mean: 0.05@99, top1: 0.9 @ 90%}}")
    recipe, _ = load_recipe(str(path))
    limits = recipe.check.gates.limits()
    assert limits == {
        "ppl_increase": LimitRecord(limit=0.02, confidence=95),
        "kl_mean": LimitRecord(limit=0.05, confidence=99),
        "top1": LimitRecord(limit=0.9, confidence=90),
    }
    written = recipe.public()["check"]["gates"]
    assert written["kl_mean"] == {"limit": 0.05, "confidence": 99}
    assert Gates.model_validate(written).limits() == limits, "what llmc.json says can be built again"
    assert CheckRecord.model_validate({"gates": written}).gates == limits


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
    assert "int4-g128" in schema["$defs"]["Quantize"]["properties"]["scheme"]["anyOf"][0]["enum"]
    assert schema["properties"]["targets"]["items"]["properties"]["onnxruntime"]
    assert schema["properties"]["layout"]["enum"] == ["compressed-tensors", "gptq", "modelopt", "mxfp4", "native-fp8"]
    assert set(schema["required"]) == {"model"}


def test_recipe_for_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its texts are where it says, the model where its user says; so a recipe need not name one."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "models/mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "models")
    path = tmp_path / "recipes/any.yaml"
    path.write_text("calibration: {text: text.txt}\n")
    found, base = load_recipe(str(path), "mine")
    assert (found.model, found.name, base) == (str(tmp_path / "models/mine"), "mine", path.parent)
    path.write_text("model: other\nname: other\n")
    for given in (str(path), {"model": "other"}, load_recipe(str(path))[0]):
        found, _ = load_recipe(given, "me/model@main")
        assert found.model == "me/model@main" and found.name == "model-main"
    with pytest.raises(InputError, match=r"^mine: a model, and me/model is another"):
        load_recipe("mine", "me/model")
