"""Which room may import what, read from the sources; and that the light parts stay light."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.source_files import EVERYWHERE, REPOSITORY, imported_modules, sources

FORBIDDEN = {
    "runtime": ("llmc.convert", "llmc.quant", "torch", "transformers"),
    "convert": ("llmc.quant", "llmc.runtime"),
    "quant": ("llmc.runtime",),
}
# Both who builds an engine and who runs it need these.
ALLOWED = {"convert": ("llmc.runtime.plugins",)}
# Leaf modules of the folder llmc/, which every room may import.
FRONT = {
    "llmc.contracts",
    "llmc.errors",
    "llmc.extras",
    "llmc.file_names",
    "llmc.files",
    "llmc.hub",
    "llmc.lazy",
    "llmc.patterns",
    "llmc.registry",
    "llmc.tensorrt_package",
    "llmc.visible",
}


def imported(path: Path) -> set[str]:
    """Absolute names: `from llmc.convert import spec` is llmc.convert and llmc.convert.spec."""
    found = imported_modules(path)
    return {module for module, _ in found} | {f"{module}.{name}" for module, names in found for name in names}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_rooms_import_only_what_they_may(room: str) -> None:
    rooms = ("llmc.convert", "llmc.quant", "llmc.runtime")
    for path in sources(room):
        for name in imported(path):
            if not f"{name}.".startswith(tuple(f"{allowed}." for allowed in ALLOWED.get(room, ()))):
                for forbidden in FORBIDDEN[room]:
                    assert not f"{name}.".startswith(f"{forbidden}."), f"{path} imports {name}"
            if name.startswith("llmc.") and not name.startswith(rooms):
                assert any(f"{name}.".startswith(f"{front}.") for front in FRONT), f"{path} imports {name}"


def test_checkpoints_are_read_without_the_model() -> None:
    """No circle: the model is built from a checkpoint, and what a checkpoint must hold is said by its spec alone."""
    waiting, seen = ["llmc.convert.checkpoint"], set[str]()
    while waiting:
        name = waiting.pop()
        path = REPOSITORY.joinpath(*name.split(".")[1:])
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in seen or not name.startswith("llmc.convert") or not path.exists():
            continue
        seen.add(name)
        waiting += imported(path)
    assert {"llmc.convert.layer_modules", "llmc.convert.families.family"} <= seen
    assert not [name for name in seen if f"{name}.".startswith("llmc.convert.model.")]


def test_no_file_without_a_subject() -> None:
    for path in sources(*EVERYWHERE):
        assert path.stem not in {"utils", "helpers", "misc", "common"}, path
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 500, f"{path} is too long"


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("llmc.cli", ("torch", "transformers", "onnx", "onnx_ir", "onnxruntime", "numpy")),
        ("llmc.runtime", ("torch", "transformers", "onnx", "onnx_ir")),
        ("llmc.tables", ("torch", "psutil")),
    ],
)
def test_light_imports(module: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
