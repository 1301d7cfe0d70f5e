"""Quantized embedding and head in graphs: rows are looked up in codes, products read codes, of one matrix the same."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx.external_data_helper import ExternalDataInfo
from support.graph_comparison import WIDTHS, compare_narrow_steps, compare_with_torch, write_graphs
from support.plugin_functions import add_plugin_functions
from support.quantized_checkpoint import DEEPSEEK, DENSE, quantized_checkpoint
from support.random_checkpoint import LLAMA, QWEN2

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.engines import engine
from llmc.convert.engines.contents import INTEGERS
from llmc.convert.engines.lowering import lower
from llmc.convert.engines.plugins import Plugins
from llmc.convert.families import family_of
from llmc.convert.graph.build import graphs
from llmc.convert.targets import TargetResult, target
from llmc.quant.schemes import scheme

TIED = QWEN2 | DENSE | {"tie_word_embeddings": True, "head_dim": 24}
UNTIED = LLAMA | DENSE
CASES = {
    "int4, both": (UNTIED, {"embedding": "int4-g32", "lm_head": "int4-g64"}),
    "int8, one matrix": (TIED, {"lm_head": "int8-g64"}),
    "int4, one matrix": (TIED, {"embedding": "int4-g32"}),
    "zero points, one matrix": (TIED, {"lm_head": "int4-g32-asym"}),
    "3 bits, FP8 in blocks": (UNTIED | {"hidden_size": 160}, {"embedding": "fp8-block", "lm_head": "int3-g32"}),
    "channels, FP8 as one": (UNTIED, {"embedding": "int8-channel", "lm_head": "fp8-tensor"}),
    "FP8, one matrix": (TIED, {"lm_head": "fp8-channel"}),
    "with MTP": (DEEPSEEK, {"embedding": "int8-g32-asym", "lm_head": "int4-g32", "mtp": "int4-g32"}),
}


@pytest.fixture(params=CASES)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoint:
    return quantized_checkpoint(tmp_path, *CASES[request.param])


def build(kind: str, checkpoint: Checkpoint, **options: int) -> TargetResult:
    found = target(kind)
    return found.build(checkpoint, found.Options(**options), checkpoint.path, lambda *_: None)


@pytest.mark.parametrize("kind", ["onnx", "onnxruntime"])
def test_graphs_equal_torch(kind: str, checkpoint: Checkpoint) -> None:
    """Those of ONNX Runtime at the level that rounds nothing."""
    result = build(kind, checkpoint, **({"accuracy_level": 1} if kind == "onnxruntime" else {}))
    for role in result.files.keys() - {"data"}:
        onnx.checker.check_model(checkpoint.path / result.files[role], full_check=True)
    compare_with_torch(checkpoint, result)


def external(checkpoint: Checkpoint, file: str) -> dict[str, list[tuple[int, str, list[int]]]]:
    """What the initializers of a graph point to: file → where, name and shape."""
    found: dict[str, list[tuple[int, str, list[int]]]] = {}
    for tensor in onnx.load(checkpoint.path / file, load_external_data=False).graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            info = ExternalDataInfo(tensor)
            found.setdefault(info.location, []).append((info.offset, tensor.name, list(tensor.dims)))
    return found


@pytest.mark.parametrize("name", ["int4-g32", "int8-g64"])
def test_one_matrix_is_there_once(name: str, tmp_path: Path) -> None:
    """Lookup and product read the artifact's bytes, and nothing of them is written again."""
    checkpoint = quantized_checkpoint(tmp_path, TIED, {"lm_head": name})
    result = build("onnxruntime", checkpoint)
    assert "data" not in result.files
    assert result.details["ops"]["main"]["GatherBlockQuantized"] == 1
    place = checkpoint.parts("model.embed_tokens.weight")["weight_packed"]
    mine = [shape for at, _, shape in external(checkpoint, result.files["main"])[place.file.name] if at == place.offset]
    width, block = (64, 32) if name == "int4-g32" else (128, 64)
    assert sorted(map(len, mine)) == [2, 3]
    assert [96, width] in mine
    assert [96, 128 // block, width * block // 128] in mine


def test_the_target_knows_that_it_writes_no_head(tmp_path: Path) -> None:
    """A head of codes is not rounded to 8 bits as one of floats is."""
    checkpoint = quantized_checkpoint(tmp_path, UNTIED, {"lm_head": "int4-g32"})
    result = build("onnxruntime", checkpoint)
    assert "data" not in result.files
    assert not any("rounded to 8 bits" in note for note in result.notes)


KNOWN = INTEGERS | {"float8_e4m3fn"}
# What an engine of the main graph has of embedding and head, in codes, and how many numbers of them are floats.
HELD = {
    "int4, both": ({"int4": 2 * 96 * 64}, 0),
    "int8, one matrix": ({}, 96 * 128),
    "int4, one matrix": ({"int4": 96 * 64}, 0),
    "zero points, one matrix": ({}, 96 * 128),
    "3 bits, FP8 in blocks": ({"int4": 96 * 80, "float8e4m3fn": 96 * 160}, 0),
    "channels, FP8 as one": ({"int8": 96 * 128, "float8e4m3fn": 96 * 128}, 0),
    "FP8, one matrix": ({"float8e4m3fn": 96 * 128}, 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HELD)
def test_what_engines_are_compiled_from_equals_torch(name: str, tmp_path: Path) -> None:
    """One matrix is there once, whether as codes that rows are gathered of, or as floats where products need those."""
    checkpoint = quantized_checkpoint(tmp_path, *CASES[name])
    (model,) = graphs(checkpoint, ir.DataType.FLOAT, 64).values()
    lower(model, checkpoint.spec, ir.DataType.FLOAT, KNOWN, WIDTHS, 1)
    codes, floats = HELD[name]
    held = engine._weight_bytes(model)
    assert {kind: held[kind] for kind in held.keys() & {"int4", "int8", "float8e4m3fn"}} == codes
    sizes = [tensor.const_value for tensor in model.graph.initializers.values() if tensor.dtype == ir.DataType.FLOAT]
    tables = [each.size for each in sizes if each is not None and 96 in each.shape.numpy() and len(each.shape) == 2]
    assert sum(size for size in tables if size >= 96 * 128) == floats
    result = write_graphs(checkpoint, {"main": model})
    compare_with_torch(checkpoint, result)
    compare_narrow_steps(checkpoint, result)


@pytest.mark.slow
def test_a_plugin_multiplies_by_what_the_compiler_does_not(tmp_path: Path) -> None:
    """The head is its own copy of the codes then, in the order of its kernel; floats there are none."""
    checkpoint = quantized_checkpoint(tmp_path, TIED | {"hidden_size": 256}, {"lm_head": "fp8-block"})
    plugins = Plugins()
    (model,) = graphs(checkpoint, ir.DataType.FLOAT, 64).values()
    lower(model, checkpoint.spec, ir.DataType.FLOAT, KNOWN, WIDTHS, 1, plugins)
    held = engine._weight_bytes(model)
    assert held["float8e4m3fn"] == held["int32"] == 96 * 256
    add_plugin_functions(model, checkpoint.spec, plugins)
    compare_with_torch(checkpoint, write_graphs(checkpoint, {"main": model}))


@pytest.mark.parametrize(
    ("tied", "name", "plugins", "more"),
    [
        (False, "int8-g64", False, 0),
        (True, "int8-g64", False, None),
        (True, "int4-g64", True, 0),
        (False, "int3-g64", False, 1),
        (True, "fp8-block", True, 8),
        (False, "int4-g64-asym", True, None),
    ],
)
def test_a_budget_knows_what_engines_hold(tied: bool, name: str, plugins: bool, more: int | None) -> None:
    """Bits of an embedding beyond those on disk; None: floats."""
    found, spec = target("tensorrt-rtx"), family_of(LLAMA).spec(LLAMA | {"tie_word_embeddings": tied})
    shape = (1024, 512)
    kind = scheme(name).spec.of(shape)
    assert found.extra_bits(spec, found.Options(plugins=plugins), "embedding", False, kind, shape) == more


@pytest.mark.slow
def test_engines_read_codes_of_both(tmp_path: Path) -> None:
    """The program gathers rows of the codes that it multiplies by; no step decodes the matrix."""
    checkpoint = quantized_checkpoint(tmp_path, TIED | {"num_hidden_layers": 1}, {"lm_head": "int4-g32"})
    found = target("tensorrt-rtx")
    options = found.Options(sm=[89], context=32, plugins=False)
    result = found.build(checkpoint, options, checkpoint.path, lambda *_: None)
    (described,) = result.details.values()
    assert described["weight_bytes"]["int4"] == 96 * 64
    for program in described["programs"]:
        assert program["multiplied_bytes"]["int4"] == program["gathered_bytes"]["int4"] == 96 * 64
        assert not program.get("decoded_bytes")
