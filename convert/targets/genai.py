"""Target `genai`: a graph as onnxruntime-genai and optimum's ORTModelForCausalLM want it, and genai_config.json.

It is the target `onnxruntime`'s graph with other inputs and outputs, and like it points into the checkpoint's own
files (B rows, S new tokens per row, P entries before this step, T = P + S behind it):

    input_ids, position_ids               int64 [B, S]
    attention_mask                        int64 [B, T]    1 for every entry that counts; the others follow these
    past_key_values.<layer>.key, .value   [B, num_kv_heads, P, head_dim]; or buffers of any more entries, shared
  ->
    logits                                float32 [B, S, vocab_size]
    present.<layer>.key, .value           [B, num_kv_heads, T, head_dim]
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from llmc.contracts.progress import ProgressFunction
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.graph.build import main_graph
from llmc.convert.graph.rewrite import Rewriter
from llmc.convert.graph.write import write
from llmc.convert.spec import GroupedQueryAttentionSpec, ModelSpec
from llmc.convert.targets import TargetResult, rounding_notes
from llmc.convert.targets.onnxruntime import OnnxRuntime, OnnxRuntimeOptions, lower
from llmc.convert.targets.onnxruntime.grouped_query_attention import kernel_takes
from llmc.errors import InputError

CONFIG = "genai_config.json"
_GRAPH = "genai.onnx"
_INT64 = ir.DataType.INT64
# Names of layers, as genai's configuration writes them.
_PAST, _PRESENT = "past_key_values.%d.", "present.%d."


class Genai(OnnxRuntime):
    name = "genai"

    def check(self, spec: ModelSpec, options: OnnxRuntimeOptions, schemes: Mapping[str, str]) -> None:
        """Raise InputError for a model whose cache is not keys and values of the same size in every layer."""
        _attention(spec)

    def build(
        self, checkpoint: Checkpoint, options: OnnxRuntimeOptions, directory: Path, progress: ProgressFunction
    ) -> TargetResult:
        """Write genai.onnx, genai_config.json, and genai.onnx.data if something is encoded anew."""
        spec = checkpoint.spec
        attention = _attention(spec)
        if spec.graph_obstacle:
            raise InputError(f"{checkpoint.family.name}: {spec.graph_obstacle}; leave targets out of the recipe")
        model = main_graph(checkpoint)
        rename(model)
        rounded = lower(model, spec, options)
        result = write(self.name, {"main": model}, directory, {"main": _GRAPH}, partial(progress, "weights"))
        config = directory / CONFIG
        config.write_text(json.dumps(configuration(checkpoint, attention), indent=4) + "\n", "utf-8")
        result.files["config"] = CONFIG
        result.file_bytes += config.stat().st_size
        result.details["accuracy_level"] = options.accuracy_level
        result.notes += rounding_notes(checkpoint)
        if rounded:
            result.notes.append("the head is rounded to 8 bits; lm_head_bits: null leaves it as it is")
        if checkpoint.vision is not None:
            result.notes.append("images are not taken")
        return result


def _attention(spec: ModelSpec) -> GroupedQueryAttentionSpec:
    """That of every layer, as far as caches go; InputError where there is no such thing."""
    first, *others = spec.attentions[: spec.num_layers]
    if not isinstance(first, GroupedQueryAttentionSpec):
        raise InputError(
            f"target genai: onnxruntime-genai and optimum keep keys and values of heads, and {spec.family} keeps "
            "something else; use the target onnxruntime"
        )
    entries = {json.dumps(each.cache_entry()) for each in (first, *others)}
    if len(entries) > 1 or not kernel_takes(first):
        why = f"heads of {first.head_dim} channels" if len(entries) == 1 else "layers whose caches differ"
        raise InputError(f"target genai: {why} are not what onnxruntime-genai keeps; use the target onnxruntime")
    return first


def rename(model: ir.Model) -> None:
    """Give the main graph, in place, the inputs and outputs that genai knows; it still has to be lowered, which takes
    how long caches are from `attention_mask`.
    """
    graph = model.graph
    rewriter = Rewriter(model)
    inputs = {value.name: value for value in graph.inputs}
    mask = ir.Value(name="attention_mask", type=ir.TensorType(_INT64), shape=ir.Shape(["batch", "total"]))
    with rewriter.before(next(iter(graph))):
        entries = rewriter.op("ReduceSum", mask, rewriter.constant([1]), keepdims=0)
        before = rewriter.op("Sub", entries, rewriter.dimension(inputs["position_ids"], 1))
    inputs["cache_position"].replace_all_uses_with(before)
    for node in rewriter.nodes("GatherND"):  # of the positions whose logits are wanted: here of all
        if inputs["logits_index"] in _behind(node.inputs[1]):
            assert node.inputs[0] is not None
            rewriter.replace(node, node.inputs[0])
    graph.outputs[:] = [value for value in graph.outputs if value.name != "hidden"]
    rewriter.clean()
    graph.inputs[:] = [inputs["input_ids"], mask, inputs["position_ids"], *_caches(graph.inputs, "past.", "past")]
    graph.outputs[:] = [graph.outputs[0], *_caches(graph.outputs, "present.", "total")]
    graph.outputs[0].shape = ir.Shape(["batch", "sequence", *(graph.outputs[0].shape or ())[2:]])


def _behind(value: ir.Value | None) -> list[ir.Value | None]:
    """What an Unsqueeze makes `value` of."""
    node = value.producer() if value is not None else None
    return [*node.inputs] if node is not None else []


def _caches(values: Any, prefix: str, length: str) -> list[ir.Value]:
    """The caches among inputs or outputs, by their new names."""
    found = [value for value in values if (value.name or "").startswith(prefix)]
    for value in found:
        layer, _, kind = str(value.name).removeprefix(prefix).partition(".")
        value.name = (_PAST if prefix == "past." else _PRESENT) % int(layer) + kind
        value.shape = ir.Shape([*value.shape[:2], length, *value.shape[3:]])
    return found


def configuration(checkpoint: Checkpoint, attention: GroupedQueryAttentionSpec) -> dict[str, Any]:
    """genai_config.json."""
    spec, config = checkpoint.spec, checkpoint.config
    ends = list(spec.eos_token_ids)
    bos, pad = config.get("bos_token_id"), config.get("pad_token_id")
    return {
        "model": {
            "type": "decoder",  # whatever the family: the graph has what is special about it
            "vocab_size": spec.vocab_size,
            "context_length": spec.max_position_embeddings,
            "bos_token_id": bos if isinstance(bos, int) else -1,
            "eos_token_id": ends,
            "pad_token_id": pad if isinstance(pad, int) else next(iter(ends), 0),
            "decoder": {
                "filename": _GRAPH,
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "hidden_size": spec.hidden_size,
                "head_size": attention.head_dim,
                "num_attention_heads": attention.num_heads,
                "num_key_value_heads": attention.num_kv_heads,
                "num_hidden_layers": spec.num_layers,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    "past_key_names": _PAST + "key",
                    "past_value_names": _PAST + "value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": _PRESENT + "key",
                    "present_value_names": _PRESENT + "value",
                },
            },
        },
        "search": {"max_length": spec.max_position_embeddings, "do_sample": False, "past_present_share_buffer": True},
    }


TARGET = Genai()
