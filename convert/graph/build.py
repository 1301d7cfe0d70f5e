"""The intermediate graphs of a checkpoint, which every target lowers.

Inputs and outputs of `main_graph` (B rows, S new tokens per row, T cache entries, L logits per row):

    input_ids       int64 [B, S]
    position_ids    int64 [B, S]
    cache_position  int64 [B]       cache entry of each row's first new token
    logits_index    int64 [B, L]    offsets within S whose logits are wanted
    past.<layer>.latent             [B, 1, T, kv_lora_rank + qk_rope_head_dim]   (MLA)
    past.<layer>.key, .value        [B, num_kv_heads, T, head_dim]               (GQA)
  ->
    logits          float32 [B, L, vocab_size]
    hidden          [B, S, H]       as an MTP layer reads it, after the final norm but in MiMo; only if there is one
    present.<layer>.…               as past, and meant to be the same buffer

A main graph with images has two more inputs, for the features that take the places of N of its tokens' embeddings:

    image_features   [N, H]         of `vision_graph`; a step without any has N = 0, and pays nothing for it
    image_positions  int64 [N, 2]   row, and offset within S, of each

`mtp_graph` has one cache, that of its own layer, and one more input: previous_hidden [B, S, H], which is the
`hidden` of either graph (ONNX forbids an input the name of an output). Its token i follows that of
previous_hidden i.

The graphs of one rank of several (engines/tensor_parallel.py) have the same inputs and outputs, with caches of fewer
heads.
"""

from __future__ import annotations

import onnx_ir as ir

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.graph.across_ranks import joined
from llmc.convert.graph.builder import GraphBuilder
from llmc.convert.graph.decoder_layer import decoder_layer, multi_token_prediction
from llmc.convert.graph.linear import linear
from llmc.convert.graph.rms_norm import rms_norm
from llmc.convert.graph.step import StepInputs
from llmc.convert.graph.vision_tower import vision_graph
from llmc.convert.graph.weight import WeightView, stored_dtype
from llmc.errors import InputError

EMBEDDING = "model.embed_tokens.weight"


def graphs(
    checkpoint: Checkpoint,
    dtype: ir.DataType = ir.DataType.FLOAT,
    capacity: int | str = "capacity",
    images: bool = False,
) -> dict[str, ir.Model]:
    """`main`, `vision` for a model that sees, if `images` are wanted, and `mtp` where the model has a
    multi-token-prediction layer; InputError for a model of blocks that have no graph.
    """
    if obstacle := checkpoint.spec.graph_obstacle:
        raise InputError(f"{checkpoint.family.name}: {obstacle}; leave targets out of the recipe")
    images = images and checkpoint.vision is not None
    models = {"main": main_graph(checkpoint, dtype, capacity, images)}
    if images:
        models["vision"] = vision_graph(checkpoint, dtype)
    if checkpoint.spec.num_mtp_layers:
        models["mtp"] = mtp_graph(checkpoint, dtype, capacity)
    return models


def main_graph(
    checkpoint: Checkpoint,
    dtype: ir.DataType = ir.DataType.FLOAT,
    capacity: int | str = "capacity",
    images: bool = False,
) -> ir.Model:
    """The decoder. `dtype` is that of activations and caches, `capacity` is T: a name or a number."""
    b = GraphBuilder(checkpoint, "main", dtype)
    input_ids = b.input("input_ids", ir.DataType.INT64, "batch", "sequence")
    step = StepInputs(b, range(b.spec.num_layers), capacity)
    x = _embed(b, input_ids)
    if images:
        features = b.input("image_features", dtype, "num_features", b.spec.hidden_size)
        x = b.op("ScatterND", x, b.input("image_positions", ir.DataType.INT64, "num_features", 2), features)
    for layer in range(b.spec.num_layers):
        x = decoder_layer(b, x, layer, step)
    normed = rms_norm(b, x, "model.norm", b.spec.final_norm)
    read = normed if b.spec.wiring.mtp_hidden_normed else x
    return _finish(b, normed, step, read if b.spec.num_mtp_layers else None)


def mtp_graph(
    checkpoint: Checkpoint, dtype: ir.DataType = ir.DataType.FLOAT, capacity: int | str = "capacity"
) -> ir.Model:
    """The first multi-token-prediction layer, with the main model's embedding and head."""
    b = GraphBuilder(checkpoint, "mtp", dtype)
    layer = b.spec.num_layers
    input_ids = b.input("input_ids", ir.DataType.INT64, "batch", "sequence")
    hidden = b.input("previous_hidden", dtype, "batch", "sequence", b.spec.hidden_size)
    step = StepInputs(b, [layer], capacity)
    x = multi_token_prediction(b, _embed(b, input_ids), hidden, layer, step)
    return _finish(b, x, step, x)


def _embedding(b: GraphBuilder) -> ir.Value:
    """[V, H] in the type it is stored in, so that a lookup converts its rows and not the table; of codes in the
    graph's.
    """
    quantized = b.checkpoint.kind(EMBEDDING) is not None
    dtype = b.dtype if quantized else stored_dtype(b.checkpoint, EMBEDDING)
    return b.weight(EMBEDDING, WeightView(transposed=False), dtype=dtype)


def _embed(b: GraphBuilder, input_ids: ir.Value) -> ir.Value:
    """[B, S] -> [B, S, H]"""
    table = _embedding(b)
    x = b.cast(b.op("Gather", table, input_ids), b.dtype, table.dtype)
    return x if b.spec.embedding_scale == 1 else b.op("Mul", x, b.constant(b.spec.embedding_scale, b.dtype))


def _finish(b: GraphBuilder, normed: ir.Value, step: StepInputs, hidden: ir.Value | None) -> ir.Model:
    """Logits of the wanted positions; outputs in the order logits, hidden (for MTP), present."""
    wanted = b.op("Unsqueeze", step.logits_index, b.constant([-1]))
    chosen = b.op("GatherND", normed, wanted, batch_dims=1)
    if b.spec.tie_word_embeddings and b.checkpoint.kind(EMBEDDING) is not None:
        # Two views of the same codes, of which each lowering makes one if it can.
        logits = b.op("MatMul", chosen, b.weight(EMBEDDING, WeightView(), name="lm_head.weight"))
    elif b.spec.tie_word_embeddings:
        # One initializer serves as table and head.
        table = _embedding(b)
        logits = b.op("MatMul", chosen, b.transpose(b.cast(table, b.dtype, table.dtype), 1, 0))
    else:
        logits = joined(b, linear(b, chosen, "lm_head"), b.spec.vocab_size, "lm_head")
    presents = list(b.graph.outputs)
    b.graph.outputs.clear()
    logits = b.cast(logits, ir.DataType.FLOAT)
    if b.spec.logits_scale != 1:
        logits = b.op("Mul", logits, b.constant(b.spec.logits_scale, ir.DataType.FLOAT))
    if b.spec.logits_softcap is not None:
        cap = b.constant(b.spec.logits_softcap, ir.DataType.FLOAT)
        logits = b.op("Mul", b.op("Tanh", b.op("Div", logits, cap)), cap)
    b.output(logits, "logits", ir.DataType.FLOAT, "batch", "num_logits", b.spec.vocab_size)
    if hidden is not None:
        b.output(hidden, "hidden", b.dtype, "batch", "sequence", b.spec.hidden_size)
    b.graph.outputs.extend(presents)
    return b.model()
