"""Plug-ins of every kind are found in one way, and unknown names are answered by one sentence."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from support.source_files import ROOMS, sources

from llmc.convert.families import families
from llmc.convert.formats import layouts
from llmc.convert.targets import targets
from llmc.errors import InputError
from llmc.quant.schemes import schemes
from llmc.registry import Registry, unknown
from llmc.runtime.backends import backends
from llmc.runtime.plugins.tensorrt import operations


@pytest.mark.parametrize(
    ("registry", "some"),
    [
        (families, {"deepseek_v3", "llama", "qwen2"}),
        (schemes, {"int4-g128", "int2-channel", "fp8-block-dynamic"}),
        (layouts, {"compressed-tensors", "gptq", "native-fp8"}),
        (targets, {"genai", "onnx", "onnxruntime", "tensorrt", "tensorrt-rtx"}),
        (backends, {"onnxruntime", "tensorrt", "tensorrt-rtx"}),
        (operations, {"LatentAttention", "AppendFloat8", "MixtureOfExperts"}),
    ],
)
def test_every_kind_of_plugin_is_found(registry: Registry[Any], some: set[str]) -> None:
    assert some <= registry.all.keys()
    assert all(registry.get(name).name == name for name in registry.all)


def test_a_plugin_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found without an edit elsewhere; what a module holds besides is nobody's business."""
    folder = tmp_path / "plugins_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").touch()
    one = "class Plugin:\n    def __init__(self, name): self.name = name\n"
    (folder / "a_module.py").write_text(one + "PLUGIN = Plugin('one')\n")
    (folder / "others.py").write_text(one + "PLUGIN = Plugin('two'), Plugin('three')\n")
    (folder / "nothing.py").write_text("Plugin = PLUGINS = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    registry: Registry[Any] = Registry("plug-in", folder.name, "PLUGIN")
    assert list(registry.all) == ["one", "two", "three"]
    with pytest.raises(InputError) as refused:
        registry.get("trhee")
    assert str(refused.value) == "unknown plug-in 'trhee'; did you mean 'three'? (known: one, two, three)"
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "near"),
    [("int4", "int4-"), ("FP8_BLOCK", "fp8-block'"), ("fp8_chanel", "fp8-channel'"), ("int4-g129", "int4-g128'")],
)
def test_the_nearest_scheme_is_sensible(name: str, near: str) -> None:
    with pytest.raises(InputError, match=rf"^unknown scheme '{name}'; did you mean '{near}"):
        schemes.get(name)


@pytest.mark.parametrize("name", ["awq", "gguf", "", "mlx", "best please"])
def test_no_guess_is_better_than_a_wild_one(name: str) -> None:
    with pytest.raises(InputError, match=rf"^unknown scheme '{name}'; known: int4-g32, .*fp8-block"):
        schemes.get(name)


def test_names_of_strangers_stay_in_one_short_line() -> None:
    assert unknown("key", "a\n\x1b[2J", ["b"]) == "unknown key 'a\\n\\x1b[2J'; known: b"
    assert len(unknown("key", "k" * 10_000, ["b"])) < 120


def test_no_other_sentence_for_an_unknown_name() -> None:
    sentence = re.compile(r"f?\"unknown [^\"]*; (use|known|did)|did you mean")
    assert [path.name for path in sources(*ROOMS) if sentence.search(path.read_text(encoding="utf-8"))] == [
        "registry.py"
    ]
