"""Files of the source that change while a build reads them."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from llmc.errors import InputError
from llmc.pipeline import build
from llmc.progress import Display


def other_bytes(path: Path) -> None:
    """In place, with the time of modification put back, as `rsync --inplace --times` does."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-64:] = bytes(64)
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def renamed_over(path: Path) -> None:
    new = path.with_name("new")
    shutil.copy2(path, new)
    other_bytes(new)
    new.replace(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "other bytes": other_bytes,
    "renamed over": renamed_over,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "longer": lambda path: path.open("ab").write(b"more"),
    "gone": lambda path: path.unlink(),
}


class At(Display):
    """Does something once, when the build comes to a phase."""

    def __init__(self, phase: str, do: Callable[[], object]) -> None:
        super().__init__(Console(quiet=True))
        self.at, self.do = phase, do

    def update(self, phase: str, *rest: float | None) -> None:
        if phase.startswith(self.at) and self.at:
            self.at = ""
            self.do()


@pytest.fixture
def model(small_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_model, tmp_path / "model"))


def run(
    recipe: Path, output: Path, phase: str = "", do: Callable[[], object] = lambda: None, fresh: bool = False
) -> Path:
    return build(recipe, output, fresh=fresh, progress=At(phase, do)).path


AT_WORK = [("model.safetensors", "layer 2/3 forward", change) for change in CHANGES]
OTHERWISE = [
    (name, phase, change)
    for name, phase in (
        ("model.safetensors", "sha256"),
        ("model.safetensors", "layer 3/3 reference"),
        ("tokenizer.json", "layer 2/3 forward"),
    )
    for change in ("other bytes", "gone")
]


@pytest.mark.parametrize(("name", "phase", "change"), AT_WORK + OTHERWISE)
def test_a_file_that_changes_ends_the_build_and_is_named(
    recipe, model: Path, tmp_path: Path, name: str, phase: str, change: str
) -> None:
    path, kept = recipe(model=str(model)), (model / name).read_bytes()
    with pytest.raises(InputError, match=r"was changed while the build read it|is gone since|cannot be read") as error:
        run(path, tmp_path / "out", phase, lambda: CHANGES[change](model / name))
    assert str(model / name) in str(error.value)
    assert not (tmp_path / "out").exists()
    if phase != "sha256":  # what was finished before is good for the old content only
        assert list(tmp_path.glob("out.work/*/scratch/layer-00000.json"))
        (model / name).write_bytes(kept)
        run(path, tmp_path / "out")
        assert (tmp_path / "out.log").read_text().count("resumed: ") == 1


def test_the_next_build_is_one_of_the_new_files(recipe, model: Path, tmp_path: Path) -> None:
    path, file = recipe(model=str(model)), model / "model.safetensors"
    with pytest.raises(InputError):
        run(path, tmp_path / "out", "layer 2/3", lambda: other_bytes(file))
    with pytest.raises(InputError, match="interrupted build with another model"):
        run(path, tmp_path / "out")
    run(path, tmp_path / "out", fresh=True)
    manifest = json.loads((tmp_path / "out" / "llmc.json").read_text())
    assert manifest["source"]["files"][file.name] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_bytes_decide_and_not_times(recipe, model: Path, tmp_path: Path) -> None:
    """A hard link more, other times, the same file copied there again; and a file that is new and was not hashed."""
    file = model / "model.safetensors"

    def touch() -> None:
        os.link(file, tmp_path / "link")
        shutil.copy(file, model / "new")
        (model / "new").replace(file)
        (model / "chat_template.jinja").write_text("{{ 'not hashed' }}")

    made = run(recipe(model=str(model)), tmp_path / "out", "layer 2/3", touch)
    assert not (made / "chat_template.jinja").exists()
