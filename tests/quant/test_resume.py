"""Whatever happens to the files of an interrupted pass: the next one notices, and ends in the same bytes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.damaged_files import DAMAGES, flip
from support.layerwise_pass import Stop, files, random_ids, run_pass

from llmc.contracts.progress import ProgressFunction
from llmc.quant.assign import Rule

pytestmark = pytest.mark.slow

RULES = [
    Rule("experts", "int4-g32"),
    Rule(r"re:model\.layers\.3\.mlp\..*", "int4-g32"),
    Rule("attention", "fp8-block", "rtn"),
]


def run(
    source: Path,
    directory: Path,
    progress: ProgressFunction = lambda *_: None,
    unchanged: Callable[[], object] = lambda: None,
) -> list[str]:
    """What is said about damage."""
    said: list[str] = []
    ids, others = (random_ids(8, 16), random_ids(2, 16, 1)), {"progress": progress, "unchanged": unchanged}
    run_pass(source, directory, RULES, *ids, 2 / 3, **others, tell=said.append)
    return said


@pytest.fixture(scope="module")
def expected(prunable: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    directory = tmp_path_factory.mktemp("finished")
    assert run(prunable, directory) == []
    return files(directory)


@pytest.fixture(scope="module")
def stopped(prunable: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A pass that was stopped inside of a layer."""
    made: dict[int, Path] = {}

    def stopped_in(stop: int) -> Path:
        def progress(phase: str, done: float, total: float, layer: int, layers: int) -> None:
            if layer == stop:
                raise Stop

        if stop not in made:
            made[stop] = tmp_path_factory.mktemp(f"stopped-{stop}")
            with pytest.raises(Stop):
                run(prunable, made[stop], progress)
        return made[stop]

    return stopped_in


# Layers are numbered from 0: 0 to 2, and the MTP layer 3. What is damaged, and the first layer that is done again.
LAST_BUT_ONE, MTP = 2, 3
FILES = {
    "newest record": (LAST_BUT_ONE, "work/layer-00001.json", 1),
    "older record": (LAST_BUT_ONE, "work/layer-00000.json", 0),
    "newest shard": (LAST_BUT_ONE, "out/model-00003-of-00005.safetensors", 1),
    "older shard": (LAST_BUT_ONE, "out/model-00002-of-00005.safetensors", 0),
    "calibration": (LAST_BUT_ONE, "work/calibration-00002.f32", 1),
    "calibration, original": (LAST_BUT_ONE, "work/calibration-original-00002.f32", 1),
    "check": (LAST_BUT_ONE, "work/check-00002.f32", 1),
    "original": (LAST_BUT_ONE, "work/original-00002.f32", 1),
    "inputs of a finished layer": (LAST_BUT_ONE, "work/calibration-00001.f32", None),
    "what the reference is made of": (MTP, "work/original-00003.f32", 2),
    "what the MTP layer reads": (MTP, "work/calibration-00003.f32", 2),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damage_to_any_file_ends_in_the_same_bytes(
    prunable: Path, expected: dict[str, bytes], stopped: Callable[[int], Path], tmp_path: Path, name: str, damage: str
) -> None:
    layer, file, again = FILES[name]
    shutil.copytree(stopped(layer), tmp_path, dirs_exist_ok=True)
    DAMAGES[damage](tmp_path / file)
    if name == "newest record" and damage == "missing":
        again = 1  # a pass that was killed before it was written leaves the same
    layers: list[int] = []
    said = run(prunable, tmp_path, lambda phase, done, total, layer, _: layers.append(layer))
    assert files(tmp_path) == expected
    assert layers[0] == (layer if again is None else again)
    if damage != "missing" and again is not None:
        assert len(said) == 1 and Path(file).name in said[0]
        assert f"layer {again + 1} and what is behind it" in said[0] if again else "all layers" in said[0]


def test_damage_to_everything_at_once(
    prunable: Path, expected: dict[str, bytes], stopped: Callable[[int], Path], tmp_path: Path
) -> None:
    shutil.copytree(stopped(MTP), tmp_path, dirs_exist_ok=True)
    for path in [*(tmp_path / "work").iterdir(), *(tmp_path / "out").iterdir()]:
        flip(path)
    run(prunable, tmp_path)
    assert files(tmp_path) == expected


def test_a_layer_made_of_changed_files_is_not_kept(prunable: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    """`unchanged` is asked after each layer, before it counts."""
    asked: list[bool] = []

    def unchanged() -> None:
        asked.append((tmp_path / "work" / "layer-00001.json").exists())
        if len(asked) == 2:
            raise Stop

    with pytest.raises(Stop):
        run(prunable, tmp_path, unchanged=unchanged)
    assert asked == [False, False]
    assert [path.name for path in (tmp_path / "work").glob("layer-*")] == ["layer-00000.json"]
    assert run(prunable, tmp_path) == []
    assert files(tmp_path) == expected
