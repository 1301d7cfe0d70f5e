"""The graphs for ONNX Runtime: exact at level 1, weights where the checkpoint keeps them, caches in place."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.external_data_helper import ExternalDataInfo
from support.architectures import CASES as ARCHITECTURES
from support.architectures import EMBEDDED
from support.graph_comparison import compare_with_torch
from support.graph_session import GraphSession, divergences
from support.quantized_checkpoint import CASES, EXACT, limit_of, quantized_checkpoint, quantized_copy
from support.random_checkpoint import random_checkpoint
from tokenizers import Tokenizer

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import CausalLM
from llmc.convert.safetensors_file import read_header
from llmc.convert.targets import TargetResult, target
from llmc.runtime.quiet_onnxruntime import onnxruntime as ort

pytestmark = pytest.mark.slow


def build(checkpoint: Checkpoint, accuracy_level: int, **options: Any) -> TargetResult:
    module = target("onnxruntime")
    chosen = module.Options(accuracy_level=accuracy_level, **options)
    return module.build(checkpoint, chosen, checkpoint.path, lambda *_: None)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Checkpoint]:
    return request.param, quantized_checkpoint(tmp_path_factory.mktemp("ort"), *CASES[request.param])


def test_level_1_equals_torch(case: tuple[str, Checkpoint]) -> None:
    name, checkpoint = case
    result = build(checkpoint, 1)
    if name not in WRITTEN_AGAIN:
        assert result.files.keys() <= {"main", "mtp"}
    for file in (result.files[role] for role in result.files.keys() - {"data"}):
        onnx.checker.check_model(checkpoint.path / file, full_check=True)
    compare_with_torch(checkpoint, result)


def test_level_4_is_close(case: tuple[str, Checkpoint]) -> None:
    """A wrong weight costs a divergence near 1. Routers turn a rounded activation into another expert, so for
    models with experts it is the typical position that must be close.
    """
    _, checkpoint = case
    ids = torch.randint(0, 96, (4, 48), generator=torch.Generator().manual_seed(0))
    model = CausalLM.load(checkpoint)
    expected = model.logits(model.hidden(ids))
    graph = GraphSession(checkpoint.path / build(checkpoint, 4).files["main"], batch=4)
    logits, _ = graph.step(ids, [0] * 4)
    assert float(divergences(expected, logits).median()) < (0.003 if limit_of(checkpoint) == EXACT else 0.02)


# Codes that no kernel takes as they lie in the artifact, and zero points.
WRITTEN_AGAIN = {"deepseek, other integers", "deepseek, zero points", "deepseek, GPTQ layout", "llama, channels"}
KERNELS = {
    "deepseek, other integers": {"MatMulNBits", "QMoE", "MoEGroupRouter", "LatentAttention"},
    "deepseek, zero points": {"MatMulNBits", "QMoE", "MoE", "MoEGroupRouter", "LatentAttention"},
    "llama, channels": {"MatMulNBits", "GroupQueryAttention"},
    "deepseek": {"MatMulNBits", "QMoE", "MoE", "MoEGroupRouter", "LatentAttention"},
    "deepseek, all int4": {"MatMulNBits", "QMoE", "MoEGroupRouter", "LatentAttention"},
    "deepseek, all fp8": {"MatMulNBits", "QMoE", "MoEGroupRouter", "LatentAttention"},
    "deepseek, bfloat16": {"MatMulNBits", "MoE", "MoEGroupRouter", "LatentAttention"},
    "deepseek, unnormalized": {"MatMulNBits", "QMoE", "GroupedTopK", "LatentAttention"},
    "llama": {"MatMulNBits", "GroupQueryAttention"},
    "qwen2, tied": {"MatMulNBits", "GroupQueryAttention"},
    "deepseek, static inputs and an FP8 cache": {
        "MatMulNBits",
        "MoE",
        "MoEGroupRouter",
        "LatentAttention",
        "DequantizeLinear",
    },
    "llama, dynamic inputs and an FP8 cache": {"MatMulNBits", "GroupQueryAttention", "DequantizeLinear"},
    "deepseek, GPTQ layout": {"MatMulNBits", "QMoE", "MoE", "MoEGroupRouter", "LatentAttention"},
    "deepseek, DeepSeek's layout": {"MatMulNBits", "MoE", "MoEGroupRouter", "LatentAttention"},
}


def test_kernels(case: tuple[str, Checkpoint]) -> None:
    name, checkpoint = case
    ops = build(checkpoint, 4).details["ops"]
    used = {op for histogram in ops.values() for op in histogram}
    every = set().union(*KERNELS.values()) | {"MixtureOfExperts", "Attention", "DequantizeLinear"}
    assert used & every == KERNELS[name]


def test_weights_point_into_the_safetensors(case: tuple[str, Checkpoint]) -> None:
    """Every stored byte is used in its place, once; only what is encoded anew lies in the data file."""
    name, checkpoint = case
    if name in WRITTEN_AGAIN:
        pytest.skip("its codes are written again, in the kernels' layout")
    result = build(checkpoint, 4, lm_head_bits=None)
    ranges: dict[str, set[tuple[int, int]]] = {}
    for role in result.files.keys() - {"data"}:
        graph = onnx.load(checkpoint.path / result.files[role], load_external_data=False).graph
        for tensor in graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                info = ExternalDataInfo(tensor)
                ranges.setdefault(info.location, set()).add((info.offset, info.offset + info.length))
    fp8 = {name.removesuffix(".weight") for name in checkpoint.names() if is_fp8(checkpoint, name)}
    headers = [tensor for shard in checkpoint.shards for tensor in read_header(shard).values()]
    for stored in headers:
        module, _, part = stored.name.rpartition(".")
        start, end = stored.offset, stored.offset + stored.nbytes
        covered = any(a <= start and end <= b for a, b in ranges[stored.file.name])
        # kv_b_proj is no MatMul of two dimensions, so its FP8 stays float; weight_shape is of no use to a graph.
        encoded_anew = module in fp8 and not module.endswith("kv_b_proj")
        number = part in ("input_scale", "k_scale", "v_scale")  # a constant of the graph
        assert covered == (not encoded_anew and part != "weight_shape" and not number), stored.name
    codes = sum(int(np.prod(checkpoint.shape(f"{m}.weight"))) for m in fp8 if not m.endswith("kv_b_proj"))
    written = (checkpoint.path / result.files["data"]).stat().st_size if "data" in result.files else 0
    assert codes <= written <= codes + codes * 4 // 32  # one byte each, and a scale for 32 of them


def is_fp8(checkpoint: Checkpoint, name: str) -> bool:
    weight = checkpoint.quantized(name.removesuffix(".weight"))
    return weight is not None and weight.code_type == "float8_e4m3fn"


def test_cache_in_place(case: tuple[str, Checkpoint]) -> None:
    """The same buffer bound as past and present gives what separate ones give, step by step and after rollback."""
    _, checkpoint = case
    path = checkpoint.path / build(checkpoint, 1).files["main"]
    separate = GraphSession(path, batch=2)
    shared = GraphSession(path, batch=2)
    buffers = {name: ort.OrtValue.ortvalue_from_numpy(cache) for name, cache in shared.caches.items()}
    ids = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(0))
    for start, stop in (([0, 0], 8), ([8, 5], 1), ([9, 6], 3), ([7, 7], 4)):
        tokens = ids[:, :stop]
        binding = shared.session.io_binding()
        for name, value in shared.feeds(tokens, start).items():
            binding.bind_cpu_input(name, value)
        for name, buffer in buffers.items():
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(name.replace("past", "present"), buffer)
        binding.bind_output("logits")
        shared.session.run_with_iobinding(binding)
        expected, _ = separate.step(tokens, start)
        logits = binding.get_outputs()[-1].numpy()
        np.testing.assert_array_equal(logits, expected.numpy())
        for name, buffer in buffers.items():
            for row, first in enumerate(start):
                written = np.s_[row, :, : first + stop]
                np.testing.assert_array_equal(buffer.numpy()[written], separate.caches[name][written])


def test_embedded_checkpoint(tmp_path: Path) -> None:
    """The trained model on text it knows the kind of: exact at level 1, and what level 4 costs."""
    source = Checkpoint.open(EMBEDDED)
    text = inspect.getsource(argparse)[:12000]
    ids = torch.tensor(Tokenizer.from_file(str(EMBEDDED / "tokenizer.json")).encode(text).ids[:1024]).reshape(8, 128)
    checkpoint = quantized_copy(source, {"experts": "int4-g64", "attention": "fp8-block"}, tmp_path)
    model = CausalLM.load(checkpoint)
    expected = model.logits(model.hidden(ids))
    means = {}
    for level in (1, 4):
        graph = GraphSession(checkpoint.path / build(checkpoint, level).files["main"], batch=8, capacity=128)
        each = divergences(expected, graph.step(ids, [0] * 8)[0])
        means[level] = float(each.mean())
        print(f"accuracy level {level}: KL divergence mean {means[level]:.1e}, largest {float(each.max()):.1e}")
        assert level == 4 or float(each.max()) < EXACT
    assert means[4] < 2e-3


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["onnx", "onnxruntime"])
def test_architectures(name: str, kind: str, tmp_path: Path) -> None:
    """Every variant that the torch blocks know (rotary scalings, biases, groups, head sizes), in plain floats."""
    checkpoint = Checkpoint.open(random_checkpoint(tmp_path, ARCHITECTURES[name]))
    module = target(kind)
    options = module.Options() if kind == "onnx" else module.Options(accuracy_level=1)
    result = module.build(checkpoint, options, checkpoint.path, lambda *_: None)
    ids = torch.randint(0, 96, (2, 20), generator=torch.Generator().manual_seed(0))
    model = CausalLM.load(checkpoint)
    expected = model.logits(model.hidden(ids))
    graph = GraphSession(checkpoint.path / result.files["main"], batch=2)
    first, _ = graph.step(ids[:, :17], [0, 0])
    rest, _ = graph.step(ids[:, 17:], [17, 17])
    assert divergences(expected, torch.cat((first, rest), dim=1)).max() < EXACT


def test_build_is_deterministic(tmp_path: Path) -> None:
    written = []
    for folder in ("first", "second"):
        checkpoint = quantized_checkpoint(tmp_path / folder, *CASES["deepseek"])
        for level in (1, 4):
            files = build(checkpoint, level).files
            written.append({(level, role): (checkpoint.path / file).read_bytes() for role, file in files.items()})
    assert written[:2] == written[2:]
