"""What pyproject.toml packs: every package folder, the recipes and the embedded checkpoint."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
ROOMS = ("llmc", "convert", "quant", "runtime", "recipes")


def test_no_package_is_missing_from_the_list() -> None:
    listed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {"llmc.recipes.checkpoints"}  # scripts and data, no __init__.py
    for room in ROOMS:
        for init in (REPOSITORY / room).rglob("__init__.py"):
            parts = init.parent.relative_to(REPOSITORY).parts
            found.add(".".join(parts if room == "llmc" else ("llmc", *parts)))
        for source in (REPOSITORY / room).rglob("*.py"):
            inside = (source.parent / "__init__.py").exists() or "checkpoints" in source.parts
            assert inside, f"{source.parent} has no __init__.py"
    assert sorted(listed) == sorted(found)


def test_wheel_carries_recipes_and_checkpoint(tmp_path: Path) -> None:
    build = "import setuptools.build_meta as backend, sys; print(backend.build_wheel(sys.argv[1]))"
    tree = tmp_path / "tree"  # setuptools leaves build/ and egg-info behind
    tree.mkdir()
    for name in (*ROOMS, "pyproject.toml", "README.md", "LICENSE"):
        (tree / name).symlink_to(REPOSITORY / name)
    command = [sys.executable, "-c", build, str(tmp_path)]
    made = subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True)
    assert "Warning" not in made.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
    for room in ROOMS:
        for source in (REPOSITORY / room).rglob("*.py"):
            path = source.relative_to(REPOSITORY).as_posix()
            assert (path if room == "llmc" else f"llmc/{path}") in names
    for recipe in (REPOSITORY / "recipes").glob("*.yaml"):
        assert f"llmc/recipes/{recipe.name}" in names
    for file in (REPOSITORY / "recipes" / "checkpoints" / "tiny-deepseek-v3").iterdir():
        assert f"llmc/recipes/checkpoints/tiny-deepseek-v3/{file.name}" in names
    assert "llmc/py.typed" in names


def test_templates_cannot_leave_their_sandbox() -> None:
    """jinja2 before 3.1.6 lets `|attr` reach str.format (CVE-2025-27516)."""
    listed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    (jinja2,) = [each for each in listed if each.startswith("jinja2")]
    assert tuple(map(int, jinja2.removeprefix("jinja2>=").split("."))) >= (3, 1, 6)
