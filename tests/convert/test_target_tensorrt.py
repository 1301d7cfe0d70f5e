"""The target `tensorrt`, with TensorRT-RTX under its name: TensorRT itself cannot be installed without its GPU.

What differs is what is tested: the compiler is told no GPU and cannot be read afterwards.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.quantized_checkpoint import DEEPSEEK, quantized_checkpoint

from llmc.convert.engines import compiler
from llmc.convert.engines.contents import Contents
from llmc.convert.engines.engine import Steps
from llmc.convert.safetensors_file import read_header
from llmc.convert.targets import target, tensorrt
from llmc.errors import MachineError, MissingPackageError
from llmc.runtime.plugins.operation import Gpu
from llmc.tensorrt_package import TENSORRT_RTX

trt = target("tensorrt")
CONFIG = DEEPSEEK | {"num_hidden_layers": 2, "num_nextn_predict_layers": 0}


def test_without_the_package(tmp_path: Path) -> None:
    checkpoint = quantized_checkpoint(tmp_path, CONFIG, {})
    with pytest.raises(MissingPackageError, match=r"TensorRT is not installed .*; pip install .*\[tensorrt\]'$"):
        trt.build(checkpoint, trt.Options(), checkpoint.path, lambda *_: None)


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if isinstance(gpu(), Gpu):
        pytest.skip("there is a GPU here")
    checkpoint = quantized_checkpoint(tmp_path, CONFIG, {})
    monkeypatch.setattr("llmc.tensorrt_package.TensorRTPackage.require", lambda self: None)
    with pytest.raises(MachineError, match="there is no GPU that CUDA can use"):
        trt.build(checkpoint, trt.Options(), checkpoint.path, lambda *_: None)


def test_what_stays_in_codes_is_known_from_headers(tmp_path: Path) -> None:
    """Every weight used to be decoded, up to four times, before anything was compiled."""
    schemes = {"experts": "int4-g64", "shared_experts": "int8-g32", "attention": "fp8-block"}
    checkpoint = quantized_checkpoint(tmp_path, CONFIG, schemes)
    for shard in checkpoint.shards:
        os.truncate(shard, min(tensor.offset for tensor in read_header(shard).values()))
    for plugins in (True, False):
        inside = Contents(checkpoint, plugins, Steps(64, 1, (1,), 16), 1)
        groups = inside.groups([80, 90])
        assert [sms for sms, _ in groups] == [[80], [90]]
        notes = inside.notes(groups)
        assert "TensorRT has no codes for int8: those weights are bfloat16" in notes


def gpu() -> Gpu | None:
    try:
        return Gpu.current()
    except MachineError:
        return None


def test_the_same_network_compiles_for_the_gpu_that_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton, which comes with torch for NVIDIA GPUs, is not installed")
    (tmp_path / "stand-in").mkdir()
    (tmp_path / "stand-in/tensorrt.py").write_text("from tensorrt_rtx import *\nfrom tensorrt_rtx import __version__\n")
    plain = compiler._environment

    def environment(package: object, folder: Path) -> dict[str, str]:
        """The child finds the stand-in, and the library that its parser looks for."""
        path = os.pathsep.join([str(tmp_path / "stand-in"), os.environ.get("PYTHONPATH", "")])
        return plain(compiler.TENSORRT_RTX, folder) | {"PYTHONPATH": path}

    monkeypatch.setattr(compiler, "TENSORRT_RTX", TENSORRT_RTX, raising=False)
    monkeypatch.setattr(compiler, "_environment", environment)
    monkeypatch.setattr("llmc.tensorrt_package.TensorRTPackage.require", lambda self: None)
    monkeypatch.setattr(tensorrt.Gpu, "current", classmethod(lambda cls: Gpu(90, 132)))
    checkpoint = quantized_checkpoint(tmp_path, CONFIG, {"experts": "int4-g32", "attention": "fp8-channel"})
    result = trt.build(checkpoint, trt.Options(context=32), checkpoint.path, lambda *_: None)
    assert list(result.files) == ["trt-sm90.kernels.safetensors", "trt-sm90.engine", "trt-sm90.json"]
    said = json.loads((checkpoint.path / "engines/trt-sm90.json").read_text())
    assert (said["package"], said["sm"], said["programs"]) == ("tensorrt", [90], [])
    assert said["plugins"] == ["llmc.GroupedTopK", "llmc.LatentAttention", "llmc.MixtureOfExperts"]
    assert said["weight_bytes"]["float8e4m3fn"] and said["weight_bytes"]["int32"]  # SM 90 knows FP8
