"""Where artifacts may go: never into the place of what somebody still needs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from llmc.errors import InputError
from llmc.job import plan
from llmc.output_path import output_path, refuse_overlap


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "a" / "here"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("given", [".", "", "..", "../..", "/", "../here", "new/..", "./.", "../../a"])
def test_the_current_folder_and_those_around_it(here: Path, given: str) -> None:
    with pytest.raises(InputError, match=r"the folder llmc was started in, or one around it.*such as --output small"):
        output_path("small", Path(given))


def test_folders_beside_the_output_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.work").mkdir()
    monkeypatch.chdir(tmp_path / "x.work")
    with pytest.raises(InputError, match="started in"):
        output_path("small", tmp_path / "x")


def test_every_path_has_a_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here / "home"))
    assert output_path("small", None) == Path("build/small")
    assert output_path("small", Path("new")) == Path("new")
    assert output_path("small", Path("../there/x/..")) == here.parent / "there"
    assert output_path("small", Path("~/x")) == here / "home" / "x"
    with pytest.raises(InputError, match="--output ~nobody-of-that-name"):
        output_path("small", Path("~nobody-of-that-name/x"))
    for length in (300, 250, 240):  # the longest name that a build puts beside it has 40 characters more
        with pytest.raises(InputError, match="too long"):
            output_path("small", Path("x" * length))


def test_places_that_no_build_can_write_to(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "file").touch()
    for given in ("file/x", "file/x/y"):
        with pytest.raises(InputError, match=f"--output {given}: file is not a folder; choose another"):
            output_path("small", Path(given))
    with pytest.raises(InputError, match="is not a name in UTF-8; choose another"):
        output_path("small", Path(os.fsdecode(b"\xff")))
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(InputError, match=r"--output new/x: \. cannot be written to; choose another"):
        output_path("small", Path("new/x"))
    assert output_path("small", None) == Path("build/small")  # a plan says nothing about that


def test_links_in_a_circle(here: Path) -> None:
    (here / "one").symlink_to("two")
    (here / "two").symlink_to("one")
    with pytest.raises(InputError, match="--output one/x: "):
        output_path("small", Path("one/x"))


@pytest.mark.parametrize("arguments", [["plan", "quickstart"], ["inspect", "/"]])
def test_a_current_folder_that_is_gone(llmc, here: Path, arguments: list[str]) -> None:
    os.chdir(here)
    here.rmdir()
    made = llmc(*arguments)
    assert made.exit_code == 2, made.output
    assert "llmc: the current folder was removed; change to one that is there" in made.stderr


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("model", "take the place of"),
        ("all", "take the place of"),  # in which the model lies
        ("model/out", "inside the folder of the model"),
        ("model/a/b", "inside the folder of the model"),
        ("link/out", "inside the folder of the model"),
        ("kept", "take the place of"),  # the model is kept.rejected, which a better one replaces
    ],
)
def test_the_models_own_folder(tmp_path: Path, output: str, said: str) -> None:
    places = {"all": tmp_path / "all" / "model", "kept": tmp_path / "kept.rejected"}
    model = places.get(output, tmp_path / "model")
    model.mkdir(parents=True)
    (tmp_path / "link").symlink_to(model)
    with pytest.raises(InputError, match=said):
        refuse_overlap(tmp_path / output, model)
    refuse_overlap(tmp_path / "other", model)
    refuse_overlap(tmp_path / f"{model.name}2", model)


@pytest.mark.parametrize("command", ["plan", "build"])
@pytest.mark.parametrize("output", [".", "..", "/"])
def test_commands_say_it(llmc, recipe, command: str, output: str) -> None:
    made = llmc(command, recipe(), "--output", output)
    assert made.exit_code == 2, made.output
    assert f"llmc: --output {output}: that is the folder llmc was started in" in made.stderr
    assert not list(Path().iterdir())


def test_plan_refuses_what_build_refuses(llmc, recipe, tmp_path: Path, small_model: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    for output, said in ((tmp_path / "mine", "is not an llmc artifact"), (small_model / "out", "inside the folder")):
        for command in ("plan", "build"):
            made = llmc(command, recipe(), "--output", output)
            assert made.exit_code == 2, made.output
            assert said in made.stderr


def test_a_model_by_the_current_folder(embedded: Path, tmp_path: Path, monkeypatch) -> None:
    """It is called as its folder is."""
    model = Path(shutil.copytree(embedded, tmp_path / "my model"))
    (model / "x").mkdir()
    monkeypatch.chdir(model)
    for argument in (".", "./", "x/..", "../my model"):
        assert plan(argument).name == "my-model"
    monkeypatch.chdir("x")
    assert plan("..").name == "my-model"
    assert [path for path in model.iterdir() if path.name == "build"] == []


def test_a_model_without_a_name(llmc) -> None:
    planned = llmc("plan", "/")
    assert planned.exit_code == 2
    assert "llmc: /config.json: cannot be read" in planned.stderr
