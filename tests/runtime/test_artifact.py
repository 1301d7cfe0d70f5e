import importlib.util
import json
import shutil
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.listed_files import list_files

import llmc.runtime.backends
from llmc.errors import InputError, MachineError
from llmc.runtime import load
from llmc.runtime.artifact import Artifact
from llmc.runtime.backends import start
from llmc.runtime.quiet_onnxruntime import onnxruntime


@pytest.fixture
def copy(dense: Path, tmp_path: Path) -> Path:
    shutil.copytree(dense, tmp_path / "copy")
    return tmp_path / "copy"


def change(artifact: Path, **entries: Any) -> None:
    path = artifact / "llmc.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no llmc.json here; give the directory that `llmc build` made"):
        load(tmp_path)


def test_a_broken_manifest(copy: Path) -> None:
    for key in ("model", "recipe", "targets", "files", "format_version"):
        whole = (copy / "llmc.json").read_text()
        change(copy, **{key: None})
        with pytest.raises(InputError, match=r"llmc\.json: broken manifest"):
            load(copy)
        (copy / "llmc.json").write_text(whole)
    (copy / "llmc.json").write_text("{")
    with pytest.raises(InputError, match="broken manifest"):
        load(copy)


def test_a_newer_format(copy: Path) -> None:
    change(copy, format_version=2)
    with pytest.raises(InputError, match=r"format 2 is newer than this llmc knows \(1\); upgrade llmc"):
        load(copy)


def test_missing_and_cut_files(copy: Path) -> None:
    size = (copy / "config.json").stat().st_size
    (copy / "config.json").write_text("{}")
    with pytest.raises(InputError, match=rf"config.json: missing or not {size:,} bytes long"):
        load(copy)
    (copy / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json: missing"):
        load(copy)


def test_a_tampered_file_is_found_when_asked_for(copy: Path) -> None:
    load(copy, verify=True).close()
    weights = sorted(copy.glob("*.safetensors"))[0]
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    load(copy).close()
    with pytest.raises(InputError, match=rf"{weights.name}: not the file that was built"):
        load(copy, verify=True)


def test_what_can_be_run_is_among_the_files_that_verify_looks_at(copy: Path) -> None:
    change(copy, targets={"onnxruntime": {"files": {"main": "../model.onnx"}}})
    with pytest.raises(InputError, match=r"broken manifest .*files do not list .*\.\./model\.onnx"):
        load(copy)


def test_no_tokenizer(copy: Path) -> None:
    files = json.loads((copy / "llmc.json").read_text())["files"]
    change(copy, files={name: entry for name, entry in files.items() if name != "tokenizer.json"})
    (copy / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json: missing"):
        load(copy)


def test_backends_by_name(copy: Path) -> None:
    with pytest.raises(InputError, match="unknown backend 'cuda'; known: onnxruntime, tensorrt"):
        load(copy, backend="cuda")
    with load(copy, backend="onnxruntime") as model:
        assert model.backend_info == "onnxruntime"
    change(copy, targets={})
    with pytest.raises(MachineError, match=r"no backend can run it here; .*add `onnxruntime` to the recipe's targets"):
        load(copy)


@dataclass(frozen=True)
class Started:
    name: str
    threads: int | None = None
    provider: str | None = None
    device: int | None = None


def test_the_preferred_backend_that_can_run_it_is_picked(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(name: str, preference: int, reason: Any) -> Any:
        return types.SimpleNamespace(
            name=name,
            preference=preference,
            unavailable=lambda artifact, provider, device: reason,
            start=lambda artifact, threads, provider, device: Started(name, threads, provider, device),
        )

    fast, slow = backend("fast", 2, None), backend("slow", 1, None)
    monkeypatch.setattr(llmc.runtime.backends.backends, "all", {"slow": slow, "fast": fast})
    assert start(Artifact.open(copy)) == (Started("fast"), "fast")
    assert start(Artifact.open(copy), "slow", 2) == (Started("slow", 2), "slow")
    assert start(Artifact.open(copy), "slow:cuda") == (Started("slow", None, "cuda"), "slow:cuda")
    assert start(Artifact.open(copy), "slow", device=3) == (Started("slow", device=3), "slow")
    fast.unavailable = lambda artifact, provider, device: "no GPU"
    assert start(Artifact.open(copy)) == (Started("slow"), "slow (fast: no GPU)")
    with pytest.raises(MachineError, match="fast: no GPU"):
        start(Artifact.open(copy), "fast")


def test_without_onnx_runtime(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    with pytest.raises(MachineError, match=r"pip install .*\[cpu\]'"):
        load(copy)


def test_a_provider_of_onnx_runtime_is_told_which_gpu(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, asked = onnxruntime.InferenceSession, list[Any]()

    def opened(path: str, options: Any, providers: list[Any], enable_fallback: int) -> Any:
        asked.append(providers)
        return session(path, options, providers=["CPUExecutionProvider"])

    names = ["CUDAExecutionProvider", "OpenVINOExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    with load(copy, backend="onnxruntime:cuda", device=1):
        assert asked == [[("CUDAExecutionProvider", {"device_id": "1"}), "CPUExecutionProvider"]] * len(asked) and asked
    for backend, provider in (("onnxruntime", "cpu"), ("onnxruntime:openvino", "openvino")):
        with pytest.raises(MachineError, match=f"provider {provider} knows no GPU 1; leave `device` out, or name anot"):
            load(copy, backend=backend, device=1)


def test_other_providers_of_onnx_runtime_and_older_releases(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["AzureExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    with load(copy, backend="onnxruntime:CPU") as model:
        assert model.backend_info == "onnxruntime:CPU" and len(model.generate("ab", max_new_tokens=3).token_ids)
    with pytest.raises(MachineError, match=r"no provider 'cuda' here, only azure, cpu; install its package"):
        load(copy, backend="onnxruntime:cuda")
    with pytest.raises(MachineError, match="it has no providers; leave out 'cuda'"):
        load(copy, backend="tensorrt-rtx:cuda")
    monkeypatch.setattr(onnxruntime, "__version__", "1.31.1")
    with pytest.raises(MachineError, match=r"its graphs need release 1\.32, 1\.31 is installed; pip install"):
        load(copy)


def test_a_graph_that_does_not_load(copy: Path) -> None:
    graph = copy / "model.onnx"
    graph.write_bytes(b"?" * graph.stat().st_size)
    with pytest.raises(InputError, match=r"model\.onnx: not the file that was built"):
        load(copy, backend="onnxruntime")
    list_files(copy, "model.onnx")
    with pytest.raises(InputError, match=r"model\.onnx: no ONNX graph \(.*\); download it again"):
        load(copy, backend="onnxruntime")
    graph.write_bytes(b"")
    list_files(copy, "model.onnx")
    with pytest.raises(MachineError, match=r"model.onnx: ONNX Runtime .* cannot load it"):
        load(copy, backend="onnxruntime")


def test_a_graph_that_is_no_model(trained: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trained, tmp_path / "copy")
    manifest = json.loads((copy / "llmc.json").read_text())
    for changes, message in (
        ({"targets": {"onnxruntime": {"files": {"main": "mtp.onnx", "mtp": "model.onnx"}}}}, "previous_hidden"),
        ({"model": manifest["model"] | {"vocab_size": 4095}}, "its graph knows 4096 tokens, its manifest 4095"),
    ):
        change(copy, **changes)
        with pytest.raises(InputError, match=message):
            load(copy)
        change(copy, **manifest)


def test_importing_the_runtime_brings_in_nothing_heavy() -> None:
    code = "import sys, llmc.runtime; print(*sys.modules); import psutil; print(psutil.Process().memory_info().rss)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    *loaded, memory = done.stdout.split()
    assert "numpy" in loaded and int(memory) < 80e6
    heavy = ("torch", "transformers", "onnx", "onnxruntime", "tensorrt_rtx", "jinja2", "asyncio")
    for package in (*heavy, "llmc.convert", "llmc.quant"):
        assert package not in loaded


def test_generating_needs_no_torch(dense: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from llmc.runtime import load\n"
        "with load(sys.argv[1], threads=1) as model:\n"
        "    print(len(model.generate('ab', max_new_tokens=5).token_ids), model.check().tokens)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(dense)], check=True, capture_output=True, text=True)
    assert done.stdout.split()[1] == str(3 * 39)
