"""Whatever happens to the work folder of an interrupted build: the next run ends in the same bytes."""

import shutil
from pathlib import Path

import pytest
from rich.console import Console
from support.damaged_files import DAMAGES, flip
from support.folder_contents import contents
from support.layerwise_pass import Stop

from llmc.errors import InputError
from llmc.pipeline import _Build, build
from llmc.progress import Display

pytestmark = pytest.mark.slow


def run(recipe: Path, output: Path) -> str:
    build(recipe, output, progress=Display(Console(quiet=True)))
    return output.with_name(f"{output.name}.log").read_text()


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the builds are that all tests begin with."""
    return tmp_path_factory.mktemp("builds")


@pytest.fixture
def stopped(
    recipe, builds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path, dict[str, bytes]]:
    """A recipe, the work folder of a build that was stopped when its check was done, and what an uninterrupted build
    makes of the recipe."""
    path = recipe(targets=[{"onnxruntime": {}}])
    whole, halted = builds / "whole" / "small", builds / "stopped" / "small"

    def stop(*_: object) -> None:
        raise Stop

    if not builds.joinpath("stopped").exists():
        run(path, whole)
        with monkeypatch.context() as patch, pytest.raises(Stop):
            patch.setattr("llmc.pipeline.model_card", stop)
            run(path, halted)
    work = shutil.copytree(halted.with_name("small.work"), tmp_path / "stopped" / "small.work")
    return path, work, contents(whole)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_of_the_work_folder(stopped, tmp_path: Path, damage: str) -> None:
    """Each kind of file once; layers' own files are in tests/quant/test_resume.py."""
    path, work, expected = stopped
    (home,) = (each for each in work.iterdir() if each.is_dir())
    artifact = home / "artifact"
    quantized = sorted(artifact.glob("model-*"))[1]
    kinds = {
        work / "lock": False,
        work / "README": False,
        home / "fingerprint.json": False,
        home / "stages" / "quantize.json": True,
        home / "stages" / "onnxruntime.json": True,
        home / "stages" / "check.json": True,
        quantized: True,
        artifact / "config.json": True,
        artifact / "model.safetensors.index.json": True,
        artifact / "reference.safetensors": True,
        artifact / "model.onnx": True,
        artifact / "model.onnx.data": True,
        artifact / "tokenizer.json": False,
        artifact / "llmc.json": False,
    }
    for number, (file, told) in enumerate(kinds.items()):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(work, copy / "small.work")
        DAMAGES[damage](copy / "small.work" / file.relative_to(work))
        log = run(path, copy / "small")
        assert contents(copy / "small") == expected, file
        assert (f"{file.name} " in log and "done again" in log) == (
            told and (damage, file.parent.name) != ("missing", "stages")
        )
        assert not (copy / "small.work").exists()


def test_an_undamaged_work_folder_is_believed(stopped, monkeypatch: pytest.MonkeyPatch) -> None:
    path, work, expected = stopped

    def never(*_: object) -> None:
        raise AssertionError("done twice")

    for work_of_a_stage in ("_quantize", "_check"):
        monkeypatch.setattr(_Build, work_of_a_stage, never)
    monkeypatch.setattr("llmc.convert.targets.onnxruntime.TARGET.build", never)
    run(path, work.with_name("small"))
    assert contents(work.with_name("small")) == expected


def test_damage_to_everything_at_once(stopped, tmp_path: Path) -> None:
    path, work, expected = stopped
    for file in [file for file in work.rglob("*") if file.is_file() and file.name != "lock"]:
        flip(file)
    run(path, work.with_name("small"))
    assert contents(work.with_name("small")) == expected


def test_an_interrupted_build_that_cannot_be_told_from_another(recipe, stopped) -> None:
    """Its layers are not thrown away for that, and it is no internal error."""
    _, work, _ = stopped
    (record,) = work.glob("*/fingerprint.json")
    record.write_bytes(b"")
    with pytest.raises(InputError, match="of what; give --fresh"):
        run(recipe(prune=None), work.with_name("small"))
    assert list(work.glob("*/stages/quantize.json"))
