"""llmc from Python, as a program uses it: build from a dictionary, load, check; what it is told, and what it shows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import llmc
from llmc.convert import Checkpoint
from llmc.job import Limits, prepare
from llmc.quant import Scheme, round_to_nearest, scheme, solve


@pytest.fixture(scope="module")
def contents(small_model: Path, text_file: Path) -> dict[str, Any]:
    return {
        "model": str(small_model),
        "calibration": {"text": str(text_file), "samples": 4, "length": 32},
        "prune": {"keep": 0.75},
        "quantize": [{"match": "experts", "scheme": "int4-g32", "method": "gptq"}],
        "check": {"text": str(text_file), "tokens": 128, "length": 32, "gates": {"kl_mean": 9.0}},
    }


class Heard(llmc.Progress):
    """A program's own display."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.shares: dict[str, list[float]] = {}
        self.layers: set[int] = set()
        self.lines: list[str] = []

    def __call__(self, phase: str, done: float, total: float = 1.0, layer: int = 0, layers: int = 1) -> None:
        assert 0 <= done <= total and 0 <= layer < layers
        self.shares.setdefault(self.stages[-1], []).append(done / total if total else 1.0)
        self.layers.add(layer)

    def stage(self, name: str, weights: Sequence[int] = ()) -> AbstractContextManager[None]:
        @contextmanager
        def entered() -> Iterator[None]:
            self.stages.append(name)
            yield

        assert not weights or len(weights) == 3  # two layers and one for multi-token prediction
        return entered()

    def line(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize(
    ("targets", "negative"),
    [(["onnxruntime"], True), ([], True), (["tensorrt"], False), (["onnxruntime", "tensorrt-rtx"], False)],
)
def test_scales_may_be_negative_if_all_targets_take_that(
    contents: dict[str, Any], tmp_path: Path, targets: list[str], negative: bool
) -> None:
    wanted = contents | {"targets": [{name: {}} for name in targets]}
    job, _ = prepare(wanted, tmp_path / "out", Limits(), Heard())
    assert job.options.negative_scales == negative
    assert job.fingerprint()["negative scales, by targets"] == negative


@pytest.fixture(scope="module")
def heard() -> Heard:
    return Heard()


@pytest.fixture(scope="module")
def built(
    contents: dict[str, Any], heard: Heard, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[llmc.BuildResult]:
    yield llmc.build(contents, tmp_path_factory.mktemp("library") / "small", progress=heard)


def test_a_model_is_built_from_a_dictionary_loaded_and_checked(built: llmc.BuildResult) -> None:
    manifest = built.manifest
    assert built.path.name == "small" and not built.up_to_date and not built.missed_gates
    assert manifest.pruned and manifest.pruned.experts_after == 6
    assert manifest.quantized["experts"].quantized == manifest.quantized["experts"].expected > 0
    assert manifest.checks
    told: list[tuple[str, float, float]] = []

    class Told(llmc.Progress):
        def __call__(self, phase: str, done: float, total: float = 1.0, layer: int = 0, layers: int = 1) -> None:
            told.append((phase, done, total))

    with llmc.load(built.path) as model:
        report = model.check(Told())
        assert len(model.generate("a", max_new_tokens=3).token_ids) <= 3
    assert report.kl_mean == pytest.approx(manifest.checks.kl_mean, rel=1e-6) and report.passed
    assert [done for _, done, _ in told] == [31, 62, 93, 124] and {total for _, _, total in told} == {124}


def test_progress_comes_from_every_stage(built: llmc.BuildResult, heard: Heard) -> None:
    assert heard.stages == ["read the checkpoint", "quantize", "target onnxruntime", "check"]
    assert heard.layers == {0, 1, 2}
    assert heard.shares.keys() == set(heard.stages) and all(max(shares) > 0.5 for shares in heard.shares.values())
    read = [
        "calibration: words.txt: 128 tokens of 1 of 11 documents",
        "check: words.txt: 128 tokens of 1 of 3 documents",
    ]
    assert heard.lines == [*read, f"building {built.path}"]


def test_silent_by_default(contents: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "small"
    made = llmc.build(contents | {"prune": None}, str(output))
    assert made.path == output and capfd.readouterr() == ("", "")
    again = llmc.build(llmc.Recipe.model_validate(contents | {"prune": None}), output)
    assert again.up_to_date and again.manifest == made.manifest


def test_a_missed_gate_is_in_the_result(contents: dict[str, Any], tmp_path: Path) -> None:
    check = contents["check"] | {"gates": {"kl_mean": 1e-9}}
    made = llmc.build(contents | {"check": check, "prune": None}, tmp_path / "small")
    assert [gate.name for gate in made.missed_gates] == ["kl_mean"] and made.path.name == "small.rejected"


def test_a_plan_of_the_same(contents: dict[str, Any], built: llmc.BuildResult) -> None:
    plan = llmc.plan(contents)
    assert plan.name == "small" and plan.total.after.bytes == built.manifest.sizes.artifact
    assert llmc.plan("quickstart").name == "quickstart"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle": "x"}, "recipe: modle: unknown key 'modle'; did you mean 'model'?"),
        ({"check": {"gates": {"kl_mean": -1}}}, "recipe: check.gates.kl_mean: must be greater than 0, not -1"),
        ({"quantize": [{"match": "experts", "scheme": 4}]}, r"recipe: quantize\[0\].scheme: must be a valid string"),
        ({"model": None}, "recipe: model: must be"),
    ],
)
def test_what_a_dictionary_has_wrong(contents: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(llmc.InputError, match=f"^{message}"):
        llmc.plan(contents | change)


def test_what_is_no_recipe() -> None:
    with pytest.raises(llmc.InputError, match="recipe is int; give a Recipe, a mapping, a path or a name"):
        llmc.plan(3)  # type: ignore[arg-type]


def test_objects_say_what_they_are(built: llmc.BuildResult, contents: dict[str, Any], small_model: Path) -> None:
    with llmc.load(built.path, backend="onnxruntime") as model:
        text = f"Model({str(built.path)!r}, backend='onnxruntime', context=128, mtp=1)"
        assert repr(model) == text
        session = model.session([2, 3, 4])
        assert repr(session) == f"Session({text}, tokens=3)"
        stream = session.stream([2, 3, 4, 5], max_new_tokens=2)
        assert repr(stream) == "Stream('')"
        said = "".join(stream)
        assert repr(stream) == f"Stream({said!r}, ended)"
    source = repr(Checkpoint.open(small_model))
    assert source.startswith(f"Checkpoint({str(small_model)!r}, family='deepseek_v3', layers=2+1, bytes=")
    assert repr(scheme("int4-g128")) == "Scheme('int4-g128')"
    recipe = llmc.Recipe(model="x", prune={"keep": 0.5})  # type: ignore[arg-type]
    assert repr(recipe) == "Recipe(model='x', prune=Prune(keep=0.5))"


def test_the_solver_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 64, generator=generator) @ torch.randn(64, 64, generator=generator)
    weight, chosen = torch.randn(32, 64, generator=generator), scheme("int4-g32")
    assert isinstance(chosen, Scheme)
    hessian = inputs.mT @ inputs
    solved = solve(weight[None], hessian[None], chosen).weight().dequantize()
    rounded = round_to_nearest(weight, chosen).dequantize()
    lost, lost_rounded = ((inputs @ (each - weight).mT).square().sum() for each in (solved, rounded))
    assert lost < 0.8 * lost_rounded


def test_importing_costs_nothing() -> None:
    code = (
        "import sys; before = set(sys.modules); import llmc, llmc.quant, llmc.convert; "
        "heavy = {'torch', 'numpy', 'pydantic', 'rich', 'typing', 'collections'} & (set(sys.modules) - before); "
        "print(heavy, all(hasattr(llmc, name) for name in llmc.__all__), hasattr(llmc, 'nothing'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split(" ", 1)[0] == "set()" and done.stdout.endswith("True False\n")
