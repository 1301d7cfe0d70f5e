"""What llmc did not make, it neither empties nor removes."""

import os
import re
from pathlib import Path

import pytest
from support.folder_contents import contents

from llmc.errors import InputError
from llmc.output import OutputFolder
from llmc.reference import Reference
from llmc.work_folder import LOCK, README, WorkFolder


@pytest.mark.parametrize("name", ["notes.txt", "lock", "README", "replaced/chapter.tex", "0123456789abcdef/a/thesis"])
def test_somebodys_folder_of_that_name_is_left_alone(tmp_path: Path, name: str) -> None:
    work = tmp_path / "small.work"
    theirs = work / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text("three years")
    with pytest.raises(InputError, match="is not a work folder of llmc; it is left alone"):
        OutputFolder(tmp_path / "small")
    with pytest.raises(InputError), WorkFolder(work, re.compile(".*")).lock():
        pass
    assert contents(work) == {name: b"three years"}


def test_commands_leave_somebodys_folder_alone(llmc, recipe) -> None:
    path = recipe(prune=None)
    for command, name in (("build", "small.work"), ("sweep", "sweep.sweep")):
        theirs = Path("build") / name / "thesis"
        theirs.parent.mkdir(parents=True)
        theirs.write_text("three years")
        made = llmc(command, path)
        assert made.exit_code == 2, made.output
        assert f"build/{name}: exists and is not a work folder of llmc; it is left alone" in made.stderr
        assert contents(theirs.parent) == {"thesis": b"three years"}
        theirs.unlink()


def test_a_file_or_a_link_of_that_name_is_left_alone(llmc, recipe, tmp_path: Path) -> None:
    work = Path("build/small.work")
    work.parent.mkdir()
    work.write_text("mine")
    assert llmc("build", recipe()).exit_code == 2
    assert work.read_text() == "mine"
    work.unlink()
    (tmp_path / "elsewhere").mkdir()
    work.symlink_to(tmp_path / "elsewhere")
    assert llmc("build", recipe()).exit_code == 2
    assert work.is_symlink()


@pytest.mark.parametrize("name", ["out.log", "out.reference.safetensors", "out.rejected.reference.safetensors"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("mine")])
def test_what_lies_beside_the_output_and_is_no_file_is_left_alone(tmp_path: Path, name: str, make) -> None:
    (tmp_path / "mine").write_text("precious")
    make(tmp_path / name)
    with pytest.raises(InputError, match=f"{name}: exists and is no file; it is left alone"):
        OutputFolder(tmp_path / "out")
    assert (tmp_path / "mine").read_text() == "precious"


def test_what_is_left_out_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "reference.safetensors").write_text("said")
    (tmp_path / "out.reference.safetensors.partial").symlink_to("mine")
    Reference(tmp_path / "artifact", tmp_path).set_apart(tmp_path / "out")
    assert (tmp_path / "mine").read_text() == "precious"
    assert (tmp_path / "out.reference.safetensors").read_text() == "said"


def test_what_is_put_into_the_work_folder_survives_the_build(llmc, recipe) -> None:
    work = Path("build/small.work")
    with OutputFolder(Path("build/small")).lock():
        (work / "notes.txt").write_text("mine")
    assert llmc("build", recipe()).exit_code == 0
    assert sorted(contents(work)) == ["README", "lock", "notes.txt"]


def test_what_comes_to_the_place_of_the_output_during_a_build_survives_it(
    llmc, recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmc import pipeline

    def card(manifest: object) -> str:
        Path("build/small").mkdir()
        Path("build/small/thesis").write_text("three years")
        return "a card"

    monkeypatch.setattr(pipeline, "model_card", card)
    made = llmc("build", recipe())
    assert made.exit_code == 2
    assert "build/small: exists and is not an llmc artifact" in made.stderr
    assert contents(Path("build/small")) == {"thesis": b"three years"}


@pytest.mark.parametrize("damage", [b"", b"\0" * 20, None])
@pytest.mark.parametrize("name", [LOCK, README])
def test_a_work_folder_is_known_again_by_either_of_its_two_marks(
    tmp_path: Path, name: str, damage: bytes | None
) -> None:
    folder = WorkFolder(tmp_path / "work", re.compile("here"))
    with folder.lock():
        (folder.path / "here").mkdir()
        (folder.path / "here" / "file").write_text("work")
    if damage is None:
        (folder.path / name).unlink()
    else:
        (folder.path / name).write_bytes(damage)
    with folder.lock():
        folder.clear()
    assert not folder.path.exists()


def test_a_folder_that_was_made_but_not_marked_yet(tmp_path: Path) -> None:
    folder = WorkFolder(tmp_path / "work", re.compile("here"))
    folder.path.mkdir()
    (folder.path / LOCK).touch()
    with folder.lock():
        pass
    assert not folder.path.exists()
    folder.path.mkdir()
    (folder.path / README).write_text("my own notes")
    with pytest.raises(InputError), folder.lock():
        pass
