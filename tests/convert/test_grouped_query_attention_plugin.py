"""Graphs whose attention is the plugin of grouped-query attention, against the torch blocks; and their engines."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnx_ir as ir
import pytest
from support.graph_comparison import WIDTHS, compare_narrow_steps, compare_with_torch, write_graphs
from support.ladder import SmallModel
from support.model_lines import LINES
from support.plugin_functions import add_plugin_functions
from support.quantized_checkpoint import quantized_checkpoint
from support.random_checkpoint import LLAMA

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.engines.lowering import lower
from llmc.convert.engines.plugins import Plugins
from llmc.convert.graph.build import graphs
from llmc.convert.targets import target
from llmc.errors import InputError
from llmc.runtime.plugins.grouped_query_attention import GroupedQueryShape

pytestmark = pytest.mark.slow

pytest.importorskip("triton", reason="Triton, which comes with torch for NVIDIA GPUs, is not installed")

NAMES = ("Llama-3.1", "Qwen3", "Gemma-2", "Gemma-3 text", "gpt-oss", "MiMo-V2-Flash")


def lowered(checkpoint: Checkpoint) -> tuple[dict[str, ir.Model], set[GroupedQueryShape]]:
    """With functions of standard operators in the place of plugins; and the shapes that kernels are made for."""
    models, plugins = graphs(checkpoint, ir.DataType.FLOAT, 64), Plugins()
    for model in models.values():
        lower(model, checkpoint.spec, ir.DataType.FLOAT, {"int4"}, WIDTHS, 2, plugins, windowed=True)
        add_plugin_functions(model, checkpoint.spec, plugins)
    return models, {each.shape for _, each in plugins._waiting if isinstance(each.shape, GroupedQueryShape)}


@pytest.mark.parametrize("name", NAMES)
def test_lowered_equals_torch(name: str, tmp_path: Path) -> None:
    line = next(line for line in LINES if line.name == name)
    checkpoint = SmallModel(line, tmp_path).checkpoint
    models, shapes = lowered(checkpoint)
    for model in models.values():
        assert not {"Attention", "Softmax", "Trilu"} & {node.op_type for node in model.graph if not node.domain}
        assert "window" not in {value.name for value in model.graph.inputs}
        # No mask is left, nothing is cut off the cache, and no values are padded.
        reads = [node for node in model.graph if any("present." in str(value.name) for value in node.inputs if value)]
        assert reads and {node.domain for node in reads} == {"llmc"}
    attentions = dict.fromkeys(checkpoint.spec.attentions)
    assert len(shapes) == len({(each.window, each.num_kv_heads, each.head_dim) for each in attentions})
    assert {each.window for each in shapes} == {each.window or 0 for each in attentions}
    assert {each.sinks for each in shapes} == {each.sinks for each in attentions}
    assert {each.softcap for each in shapes} == {each.softcap is not None for each in attentions}
    result = write_graphs(checkpoint, models)
    compare_with_torch(checkpoint, result)
    compare_narrow_steps(checkpoint, result)


CONTEXT = 32768
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "num_hidden_layers": 2}
CONFIG = LLAMA | HEADS | {"max_position_embeddings": CONTEXT}
rtx = target("tensorrt-rtx")


@pytest.mark.parametrize("plugins", [True, False])
def test_a_program_holds_nothing_as_long_as_the_context_but_caches(plugins: bool, tmp_path: Path) -> None:
    """Without the plugin keys and values are copied, for every head; scores and masks are as long, too."""
    checkpoint = quantized_checkpoint(tmp_path, CONFIG, {})
    options = rtx.Options(sm=[89], context=CONTEXT, batch=2, plugins=plugins)
    rtx.build(checkpoint, options, checkpoint.path, lambda *_: None)
    said = json.loads((checkpoint.path / "engines/rtx-sm89.json").read_text())
    text = (checkpoint.path / "engines/rtx-sm89.engine").read_bytes()
    tensors = re.finditer(rb'tensor=\{[^\n]* dims=\{([^}]*)\}[^\n]* name="?([^"\s]*)', text)
    names_of_long = (told[2].decode() for told in tensors if str(CONTEXT).encode() in told[1].split())
    cached = re.compile(r"(?:past|present)\.(\d\.\w+)(?:\.\d)?")
    long = {cache[1] if (cache := cached.fullmatch(name)) else "another" for name in names_of_long}
    copies = set(re.findall(rb"__myl_\w*Repl\w*Move\w*", text))
    names = [each["name"] for each in said["inputs"]]
    caches = [f"{layer}.{kind}" for layer in (0, 1) for kind in ("key", "value")]
    assert [name for name in names if name.startswith("past.")] == [f"past.{cache}" for cache in caches]
    assert ("another" in long, bool(copies), "window" in names) == (not plugins,) * 3
    if plugins:
        assert said["plugins"] == ["llmc.GroupedQueryAttention"] and len(said["kernel_sets"]) == 1
        assert [(each["tokens"], each["window"]) for each in said["profiles"]] == [
            ([1, 1], CONTEXT),
            ([2, 512], CONTEXT),
        ]
        assert all(each["parts"] == 1 and each["kernels"]["custom_layer"] == 2 for each in said["programs"])
        assert long == set(caches) and "mha" not in text.decode("latin-1")


def test_heads_that_the_plugin_does_not_take_are_refused(tmp_path: Path) -> None:
    spec = quantized_checkpoint(tmp_path, CONFIG | {"head_dim": 288, "num_hidden_layers": 1}, {}).spec
    with pytest.raises(InputError, match=r"heads of at most 256 channels, not 288; say `plugins: false`$"):
        rtx.check(spec, rtx.Options(sm=[89]), {})
    rtx.check(spec, rtx.Options(sm=[89], plugins=False), {})
