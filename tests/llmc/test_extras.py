"""What is told where a package is missing: never an internal error, and always the extra that has it."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.source_files import REPOSITORY, ROOMS, imported_modules, sources

from llmc import extras

pytestmark = pytest.mark.slow

# Every package that an import statement names and the base install does not have, with the extra a user is sent to.
OPTIONAL = {
    "torch": "build",
    "onnx": "build",
    "onnx_ir": "build",
    "ml_dtypes": "build",
    "psutil": "build",
    "xxhash": "build",
    "in_toto_attestation": "build",
    "cyclonedx": "build",
    "packageurl": "build",
    "triton": "build",
    "onnxruntime": "cpu",
    "tensorrt_rtx": "rtx",
    "tensorrt": "tensorrt",
    "cuda": "rtx",
    "nccl": "ranks",
    "PIL": "images",
    "huggingface_hub": "hub",
    "pyarrow": "parquet",
    "tiktoken": "tokenizers",
    "sentencepiece": "tokenizers",
    "google": "tokenizers",
    "gguf": "gguf",
    "lm_eval": "eval",
    "optimum": "optimum",
    "model_signing": "sign",
    "oras": "oci",
    "requests": "oci",
    "fastapi": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
}
# Runs `llmc` as if the modules in HIDDEN were not installed.
WITHOUT = """
import os, sys
hidden = os.environ["HIDDEN"].split(",")
class Without:
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, *rest):
        return None if name.split(".")[0] in hidden else self.finder.find_spec(name, *rest)
sys.meta_path[:] = map(Without, sys.meta_path)
from llmc.cli import main
main()
"""


def without(hidden: str, *arguments: str | Path, cwd: Path) -> tuple[int, str]:
    environment = os.environ | {"HIDDEN": hidden, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", WITHOUT, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("recipe", "schema"),
        ("plan", "quickstart"),
        ("build", "quickstart"),
        ("sweep", "quickstart"),
        ("inspect", "MODEL"),
    ],
    ids=" ".join,
)
def test_the_base_install_says_what_a_command_needs(arguments: tuple[str, ...], embedded: Path, tmp_path: Path) -> None:
    given = [embedded if each == "MODEL" else each for each in arguments]
    code, error = without(",".join(OPTIONAL), *given, cwd=tmp_path)
    assert code == 4, error
    assert re.fullmatch(r"llmc: this needs \w+, which is not installed; pip install .*\[build\]'\n", error)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("hidden", ["onnx_ir", "psutil"])
def test_one_package_is_missing(hidden: str, tmp_path: Path) -> None:
    code, error = without(hidden, "plan", "quickstart", cwd=tmp_path)
    assert code == 4, error
    assert re.search(rf"^llmc: this needs {hidden}, which is not installed; pip install .*\[build\]'\n$", error)


def test_the_hub_is_missing(tmp_path: Path) -> None:
    code, error = without("huggingface_hub", "plan", "org/model", cwd=tmp_path)
    assert code == 4 and re.search(r"pip install .*\[hub\]'\n$", error), error


def test_the_harness_is_missing(tmp_path: Path) -> None:
    program = WITHOUT.replace("from llmc.cli import main\nmain()", "import llmc.runtime.lm_eval")
    environment = os.environ | {"HIDDEN": "lm_eval"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    said = r"MachineError: this needs lm_eval, which is not installed; pip install .*\[eval\]'\n$"
    assert re.search(said, done.stderr), done.stderr


def test_an_artifact_without_a_backend(recipe, llmc, tmp_path: Path) -> None:
    """The base install looks at artifacts; for what runs one it says what is missing."""
    assert llmc("build", recipe(), "--output", tmp_path / "artifact").exit_code == 0
    for command in (("run", "-p", "a"), ("check",), ("bench",)):
        code, error = without(",".join(OPTIONAL), command[0], tmp_path / "artifact", *command[1:], cwd=tmp_path)
        assert code == 4 and re.search(
            r"onnxruntime: the package is not installed; pip install .*\[cpu\]'\n$", error
        ), error
    assert without(",".join(OPTIONAL), "inspect", tmp_path / "artifact", cwd=tmp_path) == (0, "")


def test_serving_without_its_extra(tmp_path: Path) -> None:
    code, error = without(",".join(OPTIONAL), "serve", "artifact", cwd=tmp_path)
    assert code == 4 and re.search(r"this needs \w+, which is not installed; pip install .*\[serve\]'\n$", error), error


@pytest.mark.parametrize(("module", "extra"), OPTIONAL.items())
def test_the_extra_of_every_package(module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert extras.install(module) == f"pip install -e '{REPOSITORY}[{extra}]'"
    monkeypatch.chdir(REPOSITORY)
    assert extras.install(module) == f"pip install -e '.[{extra}]'"


def test_no_optional_import_is_forgotten() -> None:
    """Every package that a room imports is of the base install, of Python, or has its extra above."""
    listed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    base = {re.split(r"[^\w-]", each)[0].lower() for each in listed} | {"yaml", "pydantic_core", "llmc"}
    base |= {"tqdm", "datasets"}  # come with lm_eval, and are imported behind it
    for path in sources(*ROOMS):
        for name in (name.partition(".")[0] for name, _ in imported_modules(path)):
            assert name in base | OPTIONAL.keys() | sys.stdlib_module_names, f"{path} imports {name}"


class Distribution:
    """A wheel, under another name, of which pip knows where it came from."""

    metadata = {"Name": "llmc-toolchain"}  # noqa: RUF012
    requires = ['torch<3,>=2; extra == "build"', "onnxruntime; extra == 'cpu' and sys_platform == 'linux'"]  # noqa: RUF012

    def __init__(self, origin: str | None) -> None:
        self.origin = origin

    def read_text(self, name: str) -> str | None:
        return self.origin


@pytest.mark.parametrize(
    ("origin", "where"),
    [
        (None, ""),
        ("{", ""),
        ('{"url": "file:///a/llmc.whl", "archive_info": {}}', " @ file:///a/llmc.whl"),
        ('{"url": "https://h/x", "vcs_info": {"vcs": "git", "commit_id": "abc"}}', " @ git+https://h/x@abc"),
    ],
)
def test_a_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, origin: str | None, where: str) -> None:
    monkeypatch.setattr(extras.llmc, "__file__", str(tmp_path / "site-packages" / "llmc" / "__init__.py"))
    command = SimpleNamespace(value="llmc.cli:main", dist=Distribution(origin))
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: [command])
    assert extras.install("torch") == f"pip install 'llmc-toolchain[build]{where}'"
    assert extras.install("onnxruntime") == f"pip install 'llmc-toolchain[cpu]{where}'"
    assert extras.install("unheard_of") == "pip install unheard_of"


def test_other_modules_are_not_ours_to_explain() -> None:
    assert extras.missing(ModuleNotFoundError("No module named 'nothing'", name="nothing")) is None
    assert extras.missing(ImportError("cannot import name")) is None
    broken = extras.missing(ImportError("libc10.so: cannot open", name="torch._C"))
    assert broken and "the installed torch cannot be used (libc10.so: cannot open); install it again" in str(broken)
