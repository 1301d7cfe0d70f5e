"""What compiled programs do with weights, read from the engines of small models."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from support.quantized_checkpoint import DEEPSEEK, quantized_checkpoint
from support.random_checkpoint import LLAMA
from typer.testing import CliRunner

from llmc.cli import app
from llmc.contracts.engine import EngineDescription, EngineProfile, EngineProgram, EngineTensor
from llmc.convert.engines.contents import Contents
from llmc.convert.engines.decoding import check_decoding, decoding_notes
from llmc.convert.engines.engine import Steps
from llmc.convert.engines.lowering import lower
from llmc.convert.engines.plugins import Plugins
from llmc.convert.engines.program import DECODED, GATHERED, MULTIPLIED, PLUGIN, READERS, inspect
from llmc.convert.graph.build import graphs
from llmc.convert.targets import target
from llmc.errors import MachineError

pytestmark = pytest.mark.slow

rtx = target("tensorrt-rtx")
ONE_LAYER = {"num_hidden_layers": 1, "num_nextn_predict_layers": 0}
# Wide enough for the compiler to choose what it chooses for large models.
LATENT: dict[str, Any] = DEEPSEEK | ONE_LAYER | {
    "hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 8,
    "q_lora_rank": 128, "kv_lora_rank": 128, "qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "v_head_dim": 64,
}  # fmt: skip


def described(engine: Path) -> EngineDescription:
    return EngineDescription.model_validate_json(engine.with_suffix(".json").read_bytes())


def description(profiles: list[EngineProfile], programs: list[EngineProgram]) -> EngineDescription:
    names = ("input_ids", "cache_position", "logits_index")
    return EngineDescription(
        engine="a.engine", graph="main", bytes=1, sha256="0" * 64, package="tensorrt_rtx", release="1", sm=[89],
        context=32, batch=1, profiles=profiles, plugins=[],
        inputs=[EngineTensor(name=name, dtype="int64", shape=[-1]) for name in names],
        outputs=[EngineTensor(name="logits", dtype="float", shape=[-1])],
        weight_bytes={"int4": 2048}, text_bytes=1, programs=programs,
    )  # fmt: skip


@pytest.mark.parametrize("plugins", [True, False], ids=["plugins", "no plugins"])
@pytest.mark.parametrize("scheme", ["int4-g64", "fp8-channel"])
def test_latent_attention_neither_copies_nor_decodes_weights(scheme: str, plugins: bool, tmp_path: Path) -> None:
    """kv_b_proj is multiplied heads first, o_proj by what it is stored as; long prompts are not absorbed."""
    if plugins:
        pytest.importorskip("triton")
    checkpoint = quantized_checkpoint(tmp_path, LATENT | {"max_position_embeddings": 2048}, {"attention": scheme})
    options = rtx.Options(sm=[89], context=2048, prefill=256, plugins=plugins)
    rtx.build(checkpoint, options, checkpoint.path, lambda *_: None)
    engine = checkpoint.path / "engines/rtx-sm89.engine"
    copies = re.findall(rb"function=\{ name=__myl_Repl .*? output_args=\{ \"(.*?)\"", engine.read_bytes())
    # Nothing is absorbed by the last program: it makes a query of no tokens.
    assert [re.sub(rb" \[profile.*", b"", each) for each in copies] == [
        b"model.layers.0.self_attn/PhasedLatentAttention:0"
    ] * plugins
    kind = "int4" if "int4" in scheme else "fp8_e4m3"
    programs = described(engine).programs
    assert [program.multiplied_bytes.keys() for program in programs] == [{kind}] * (3 if plugins else 2)
    assert not any(program.decoded_bytes for program in programs)
    if plugins:  # one in each program; products with kv_b_proj where something is absorbed
        assert [profile.tokens for profile in described(engine).profiles] == [[1, 1], [2, 128], [129, 256]]
        assert [program.kernels["custom_layer"] for program in programs] == [1] * 3
        product = rb'fully_connected=\{ name="[^"]*?( \[profile \d\])?_U\d+" [^\n]*kv_b_proj'
        assert Counter(re.findall(product, engine.read_bytes())) == {b"": 2, b" [profile 1]": 2}


@pytest.mark.parametrize("scheme", ["int4-g128", "int4-g64", "int4-channel"])
def test_one_group_of_int4_is_multiplied(scheme: str, tmp_path: Path) -> None:
    """Inputs as wide as a group, as the whole row, and as half of it."""
    wide = 64 if scheme == "int4-g64" else 128
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": wide // 2}
    config = LLAMA | {"hidden_size": wide, "intermediate_size": 2 * wide, "num_hidden_layers": 1} | heads
    checkpoint = quantized_checkpoint(tmp_path, config, dict.fromkeys(("dense_mlp", "attention"), scheme))
    rtx.build(checkpoint, rtx.Options(sm=[89], context=256), checkpoint.path, lambda *_: None)
    said = described(checkpoint.path / "engines/rtx-sm89.engine")
    assert all(program.multiplied_bytes == {"int4": said.weight_bytes["int4"]} for program in said.programs)


def test_a_block_of_more_than_a_row_is_one_scale(tmp_path: Path) -> None:
    """Of 128 inputs, where there are 80: no groups of what divides both."""
    config = LLAMA | {"hidden_size": 128, "intermediate_size": 80, "num_hidden_layers": 1}
    checkpoint = quantized_checkpoint(tmp_path, config, {"dense_mlp": "fp8-block"})
    rtx.build(checkpoint, rtx.Options(sm=[89], context=256), checkpoint.path, lambda *_: None)
    said = described(checkpoint.path / "engines/rtx-sm89.engine")
    assert all(program.multiplied_bytes == {"fp8_e4m3": 3 * 80 * 128} for program in said.programs)


@pytest.mark.parametrize("plugins", [True, False], ids=["plugins", "no plugins"])
def test_what_has_an_odd_size_is_not_decoded_in_every_step(plugins: bool, tmp_path: Path) -> None:
    """Which the compiler would do: a plugin multiplies by the codes, or they are floats."""
    if plugins:
        pytest.importorskip("triton")
    config = LLAMA | ONE_LAYER | {"hidden_size": 128, "intermediate_size": 257, "num_hidden_layers": 1}
    checkpoint = quantized_checkpoint(tmp_path, config, {"dense_mlp": "fp8-channel"})
    rtx.build(checkpoint, rtx.Options(sm=[89], context=64, plugins=plugins), checkpoint.path, lambda *_: None)
    (engine,) = (checkpoint.path / "engines").glob("*.engine")
    for program in described(engine).programs:
        assert not program.decoded and bool(program.plugin_bytes) == plugins  # gate, up and down


def test_plugins_multiply_by_fp4(tmp_path: Path) -> None:
    """Two codes a byte, also where TensorRT knows FP4: it would decode them."""
    pytest.importorskip("triton")
    config = LLAMA | ONE_LAYER | {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32}
    checkpoint = quantized_checkpoint(tmp_path, config, {"dense_mlp": "nvfp4"})
    result = rtx.build(checkpoint, rtx.Options(sm=[120], context=256), checkpoint.path, lambda *_: None)
    said = described(checkpoint.path / "engines/rtx-sm120.engine")
    assert [program.plugin_bytes for program in said.programs] == [{"int32": 3 * 128 * 128 // 2}] * len(said.programs)
    assert not any(program.decoded for program in said.programs) and not result.notes


def test_plugins_multiply_by_fp8_blocks(tmp_path: Path) -> None:
    """On every GPU alike; what is multiplied over heads is no product of theirs."""
    pytest.importorskip("triton")
    config = LLAMA | ONE_LAYER | {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
    checkpoint = quantized_checkpoint(tmp_path, config, dict.fromkeys(("dense_mlp", "attention"), "fp8-block"))
    result = rtx.build(checkpoint, rtx.Options(sm=[80, 89], context=256), checkpoint.path, lambda *_: None)
    said = described(checkpoint.path / "engines/rtx-sm80-sm89.engine")
    codes = sum(math.prod(checkpoint.shape(name)) for name in checkpoint.names() if checkpoint.kind(name))
    assert [program.plugin_bytes for program in said.programs] == [{"int32": codes}] * 2
    assert said.plugins == ["llmc.GroupedQueryAttention", "llmc.Linear"] and not result.notes


@pytest.mark.parametrize("scheme", ["int4-g32", "fp8-block"])
@pytest.mark.parametrize("plugins", [True, False], ids=["plugins", "no plugins"])
def test_what_is_bfloat16_and_why(scheme: str, plugins: bool, tmp_path: Path) -> None:
    schemes = {"kv_b_proj": scheme, "attention": scheme}
    checkpoint = quantized_checkpoint(tmp_path, LATENT, schemes)
    steps = Steps(64, 2, (1,), 16)
    contents = Contents(checkpoint, plugins, steps, 1)
    notes = contents.notes(contents.groups([89]))
    assert notes[0].startswith("kv_b_proj is bfloat16: ")
    blocks = [note for note in notes if note.startswith("matrices of float8_e4m3fn that are bfloat16: 3; ")]
    assert len(notes) - 1 == len(blocks) == (scheme == "fp8-block" and not plugins)
    models, used = graphs(checkpoint, ir.DataType.BFLOAT16, 64), Plugins() if plugins else None
    for model in models.values():
        lower(model, checkpoint.spec, ir.DataType.BFLOAT16, {"int4", "float8_e4m3fn"}, (1,), 1, used)
        linears = [node.name for node in model.graph if node.op_type == "Linear"]
        assert len(linears) == (3 if plugins and scheme == "fp8-block" else 0)
        plain = [name for name in model.graph.initializers if "kv_b_proj" in name]
        assert sorted(name.rpartition(".")[2] for name in plain) == ["key", "value"]


PROFILES = {"step": ([1, 1], 4096), "far": ([1, 1], 32768), "draft": ([2, 2], 4096), "prompt": ([3, 512], 4096)}


@pytest.mark.parametrize(
    ("profile", "weights", "refused", "note"),
    [
        ("step", ["a.up_proj.weight", "a.o_proj.weight"], "a.o_proj.weight and 1 more", ""),
        ("draft", ["a.up_proj.weight"], "a.up_proj.weight in every", ""),
        ("prompt", ["a.up_proj.weight"], "", "matrices that every step of a prompt decodes: 1, such as a.up"),
        ("far", ["a.o_proj.weight"], "", "TensorRT takes attention to more than 16,384 cache entries apart"),
        ("far", ["a.up_proj.weight"], "a.up_proj.weight in every", ""),
        ("far", [], "", ""),
    ],
)
def test_what_may_be_decoded_in_every_step(profile: str, weights: list[str], refused: str, note: str) -> None:
    tokens, window = PROFILES[profile]
    program = EngineProgram(sm=[89], parts=1, constant_bytes={}, kernels={}, decoded=sorted(weights))
    said = description([EngineProfile(tokens=tokens, window=window)], [program])
    if refused:
        with pytest.raises(MachineError, match=rf"^a.engine: its program for .* decodes {refused}"):
            check_decoding("a.engine", said)
        return
    check_decoding("a.engine", said)
    assert [note in each for each in decoding_notes(said)] == [True] * bool(note)


TEXT = """header {
  version = 5
  n_accelerators = 1
  accelerators={ sm89 }
  tensor={ alignment=128 const_payload_size=64 dims={ 16 8 } name="a_dconst" rank0=0 type=int4 }
  tensor={ alignment=128 const_payload_size=128 dims={ 16 8 } name="b_dconst" rank0=0 type=fp8_e4m3 }
  tensor={ alignment=128 const_payload_size=256 dims={ 2 4 8 } name="c_dconst" rank0=0 type=int32 }
  tensor={ alignment=128 dims={ 16 8 } name="all of it" type=bf16 }
  tensor={ alignment=128 dims={ 2 4 8 } name="half" type=bf16 }
  tensor={ alignment=128 dims={ "B" 16 } name="sums" type=bf16 }
  tensor={ alignment=128 dims={ "B" 2 8 8 } name="chosen" type=bf16 }
}
main {
 label bb1:
  LINE
}
header {
  version = 5
  n_accelerators = 1
  accelerators={*}
  tensor={ alignment=1 dims={ 16 8 } name="a_dconst" type=int4 }
}
"""
LAYERS = 'stream=0 layers="[ONNX Layer: model.layers.0.mlp/DequantizeLinear][ONNX Layer: model.layers.0.mlp/MatMul]"'


@pytest.mark.parametrize(
    ("kind", "name", "inputs", "output", "reader"),
    [
        ("runtime_fusion", "__myl_CastFc", "x a_dconst", "sums", MULTIPLIED),
        ("fully_connected", "MatMul", "x b_dconst", "sums", MULTIPLIED),
        ("custom_layer", "MoE", "x c_dconst", "sums", PLUGIN),
        ("function", "__myl_Cast", "a_dconst", "all of it", DECODED),
        ("function", "__myl_CastSlic", "b_dconst", "half", DECODED),
        ("function", "__myl_CastRepl", "a_dconst", "chosen", DECODED),
        ("function", "__myl_CastGath", "a_dconst", "chosen", GATHERED),
        ("function", "__myl_CastGath", "a_dconst", "all of it", DECODED),
        ("function", "__myl_MulSum", "x a_dconst", "sums", MULTIPLIED),
    ],
)
def test_who_reads_codes(kind: str, name: str, inputs: str, output: str, reader: str, tmp_path: Path) -> None:
    quoted = " ".join(f'"{each}"' for each in inputs.split())
    line = f'{kind}={{ name={name} input_args={{ {quoted} }} output_args={{ "{output}" }} {LAYERS} }}'
    (tmp_path / "engine").write_text(TEXT.replace("LINE", line))
    decoders = {"model.layers.0.mlp/DequantizeLinear": "up_proj.weight"}
    (program,) = inspect(tmp_path / "engine", 1, decoders).programs
    read = {"a": {"int4": 64}, "b": {"fp8_e4m3": 128}, "c": {"int32": 256}}[inputs.split("_dconst")[0][-1]]
    assert {name: getattr(program, name) for name in READERS if getattr(program, name)} == {reader: read}
    assert program.decoded == (["up_proj.weight"] if reader == DECODED else [])
    assert program.constant_bytes == {"int4": 64, "fp8_e4m3": 128, "int32": 256}


def test_what_inspect_shows(tmp_path: Path) -> None:
    decodes = EngineProgram(
        sm=[89], parts=1, constant_bytes={"int4": 2048}, kernels={}, multiplied_bytes={"int4": 1024},
        decoded_bytes={"int4": 1024}, decoded=["model.layers.0.mlp.up_proj.weight"],
    )  # fmt: skip
    said = description([EngineProfile(tokens=[1, 1], window=32)], [decodes])
    (tmp_path / "a.engine").write_bytes(b"")
    (tmp_path / "a.json").write_text(json.dumps(said.to_json()))
    done = CliRunner().invoke(app, ["inspect", str(tmp_path / "a.engine")])
    assert done.exit_code == 0, done.output
    codes, weights = done.stdout.split("weights that are decoded in every step")
    assert codes.count("int4 1.0 kB") == 2 and "decoded in every" in codes
    assert "model.layers.0.mlp.up_proj.weight" in weights
