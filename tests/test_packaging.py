"""What pyproject.toml packs, and that type checkers see it: as a wheel, as an editable install, as a bare tree."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[1]
ROOMS = ("llmc", "convert", "quant", "runtime", "recipes")
PACKAGING = Path("ci/packaging")
OPTIMUM = "optimum.commands.optimum_cli"
PROGRAM = """
from pathlib import Path
from typing import assert_type

import torch

import llmc
from llmc.contracts.manifest import Checks, GateRecord, Manifest
from llmc.convert import Checkpoint
from llmc.quant import Quantized, QuantizedWeight, Scheme, round_to_nearest, scheme, solve
from llmc.runtime import CheckReport, Generation, SamplingParams, Session, Stream, load

with load("artifact") as model:
    assert_type(model.generate("a"), Generation)
    assert_type(model.generate(["a", "b"], SamplingParams(seed=1)), list[Generation])
    assert_type(model.stream("a"), Stream)
    messages = [{"role": "user", "content": "Hi"}]
    assert_type(model.chat(messages, seed=1), Generation)
    assert_type(model.generate(messages), Generation)
    assert_type(model.generate([[1, 2], [3]]), list[Generation])
    assert_type(model.session(), Session)


class Bar(llmc.Progress):
    def __call__(self, phase: str, done: float, total: float = 1.0, layer: int = 0, layers: int = 1) -> None:
        print(phase, done / total)


result = llmc.build({"model": "builtin:tiny-deepseek-v3", "prune": {"keep": 0.5}}, "out", memory=1 << 30)
assert_type(result, llmc.BuildResult)
assert_type(result.path, Path)
assert_type(result.manifest, Manifest)
assert_type(result.missed_gates, list[GateRecord])
assert_type(result.manifest.quantized["experts"].quantized, int)
if result.manifest.checks:
    assert_type(result.manifest.checks, Checks)
if result.manifest.pruned:
    assert_type(result.manifest.pruned.super_experts, dict[str, list[int]])
llmc.build(llmc.Recipe(model="builtin:tiny-deepseek-v3"), Path("out"), fresh=True, progress=Bar())
assert_type(llmc.plan("quickstart"), llmc.Plan)
assert_type(llmc.plan("quickstart").total.after.bytes, int)
with llmc.load(result.path) as loaded:
    assert_type(loaded.check(Bar()), CheckReport)
try:
    llmc.plan("nothing")
except llmc.InputError as error:
    assert_type(error.exit_code, int)

int4 = scheme("int4-g128")
assert_type(int4, Scheme)
solved = solve(torch.zeros(1, 8, 128), torch.zeros(1, 128, 128), int4)
assert_type(solved, Quantized)
assert_type(solved.weight(), QuantizedWeight)
assert_type(round_to_nearest(torch.zeros(8, 128), int4).dequantize(), torch.Tensor)
checkpoint = Checkpoint.open("model", headers_only=True)
assert_type(checkpoint, Checkpoint)
assert_type(checkpoint.tensor("lm_head.weight"), torch.Tensor)
assert_type(llmc.__version__, str)
"""
# What must not pass: a wrong type of each package's.
WRONG = {
    "SamplingParams(seed=1)), list[Generation]": "SamplingParams(seed=1)), list[str]",
    "assert_type(result.path, Path)": "assert_type(result.path, str)",
    "assert_type(solved, Quantized)": "assert_type(solved, Scheme)",
    "assert_type(checkpoint, Checkpoint)": "llmc.nothing",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone without a history; setuptools leaves build/ and egg-info behind."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ROOMS:
        shutil.copytree(REPOSITORY / name, tree / name, True, shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for weights in (REPOSITORY / "recipes").rglob("*.safetensors"):
        (tree / weights.relative_to(REPOSITORY)).symlink_to(weights)
    shutil.copytree(REPOSITORY / PACKAGING, tree / PACKAGING, True, shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tree / name)
    return tree


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = "import setuptools.build_meta as backend, sys; print(backend.build_wheel(sys.argv[1]))"
    made = subprocess.run([sys.executable, "-c", build, folder], cwd=tree, check=True, capture_output=True, text=True)
    assert "Warning" not in made.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_wheel_carries_code_recipes_and_checkpoint(tree: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
    expected = {"llmc/py.typed", "llmc/review_sheet.html", "optimum/commands/register/llmc_export.py"}
    for room in ROOMS:
        inside = room if room == "llmc" else f"llmc/{room}"
        sources = list((tree / room).rglob("*.py"))
        assert all((source.parent / "__init__.py").exists() for source in sources)
        expected |= {f"{inside}/{source.relative_to(tree / room)}" for source in sources}
    data = [
        *(tree / "recipes").glob("*.yaml"),
        *(tree / "recipes/mixes").glob("*.yaml"),
        *(tree / "recipes/suites").glob("*.yaml"),
        *(tree / "recipes/checkpoints").rglob("tiny-deepseek-v3/*"),
    ]
    page = tree / "llmc/page"
    expected |= {f"llmc/page/{path.name}" for path in (*page.glob("*.jinja"), *page.glob("*.css"))}
    expected |= {f"llmc/{path.relative_to(tree)}" for path in (*data, tree / "recipes/checkpoints/README.md")}
    assert {name for name in names if ".dist-info/" not in name} == expected


@pytest.fixture(scope="module")
def torch_types(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mypy's cache of torch, which takes longer than all else; of llmc there is nothing in it."""
    folder = tmp_path_factory.mktemp("types")
    (folder / "use.py").write_text("import torch\n")
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", sys.executable, "--cache-dir", "cache"]
    subprocess.run([*mypy, "use.py"], cwd=folder, check=True, capture_output=True)
    return folder / "cache"


@pytest.mark.parametrize("way", ["wheel", "editable", "tree"])
def test_type_checkers_see_the_package(
    way: str, tree: Path, torch_types: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    site_packages = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    (site_packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    environment = {**os.environ, "MYPYPATH": "", "PYTHONPATH": ""}
    if way == "wheel":
        with zipfile.ZipFile(request.getfixturevalue("wheel")) as packed:
            packed.extractall(site_packages)
    elif way == "editable":
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-build-isolation"]
        subprocess.run([*pip, "--ignore-installed", "-e", tree], check=True, capture_output=True)
    else:
        environment |= {"MYPYPATH": str(tree), "PYTHONPATH": str(tree)}

    def run(*command: str | Path) -> str:
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    if way != "tree":  # where nothing is installed, optimum finds nothing
        assert "usage: optimum-cli export llmc" in run(python, "-m", OPTIMUM, "export", "llmc", "--help")
    found = run(python, "-c", "import llmc.runtime, llmc.convert as a, llmc.quant as b; print(a.__file__, b.__file__)")
    assert all(str(tmp_path if way == "wheel" else tree) in path for path in found.split())
    wrong = functools.reduce(lambda text, change: text.replace(*change), WRONG.items(), PROGRAM)
    (tmp_path / "use.py").write_text(PROGRAM)
    (tmp_path / "wrong.py").write_text(wrong)
    lines = zip(PROGRAM.splitlines(), wrong.splitlines(), strict=True)
    changed = {number for number, (right, line) in enumerate(lines, 1) if right != line}
    assert len(changed) == len(WRONG)
    cache = shutil.copytree(torch_types, tmp_path / "cache")
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "--cache-dir", cache]
    pyright = {"typeCheckingMode": "strict", "extraPaths": [str(tree)] if way == "tree" else []}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(pyright))
    basedpyright = [sys.executable, "-m", "basedpyright", "--pythonpath", python]
    for checker in (mypy, basedpyright):
        ran = subprocess.run(
            [*checker, "use.py", "wrong.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        told = re.findall(r"([\w.-]+\.py):(\d+)(?::|:\d+ -) error:", ran.stdout)
        assert ran.returncode == 1 and {file for file, _ in told} == {"wrong.py"}, ran.stdout + ran.stderr
        assert changed <= {int(line) for _, line in told}, ran.stdout


def test_one_name_of_the_distribution() -> None:
    """`llmc` on the package index is somebody else's: nothing here sends anybody there."""
    name = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["name"]
    files = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("not a clone")
    wrong = re.compile(
        r"pip install\S*\s+(?:-\S+\s+)*['\"]?llmc(?:\[|['\"\s`])|(?<![\w-])llmc\[(?:cpu|gpu|build|hub|eval|rtx|dev)"
    )
    found = []
    for path in files.stdout.split():
        if (REPOSITORY / path).suffix in {".py", ".md", ".toml", ".yaml", ".sh"} and path != "tests/test_packaging.py":
            text = (REPOSITORY / path).read_text()
            found += [f"{path}: {match[0]}" for match in wrong.finditer(text)]
    assert not found and name == "llmc-toolchain"


def test_templates_cannot_leave_their_sandbox() -> None:
    """jinja2 before 3.1.6 lets `|attr` reach str.format (CVE-2025-27516)."""
    listed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    (jinja2,) = [each for each in listed if each.startswith("jinja2")]
    assert tuple(map(int, jinja2.removeprefix("jinja2>=").split("."))) >= (3, 1, 6)
