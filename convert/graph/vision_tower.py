"""A vision tower, InternViT (Chen et al. 2023), and the projector behind it, as a graph of their own.

  pixels          float32 [N, 3, side, side]   tiles, normalized
->
  image_features  [N * tokens of a tile, H]    each takes the place of a token's embedding
"""

from __future__ import annotations

import onnx_ir as ir

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.graph.builder import GraphBuilder
from llmc.convert.graph.linear import linear
from llmc.convert.graph.weight import WeightView
from llmc.convert.vision import EMBEDDINGS, LAYERS, PROJECTOR, PROJECTOR_EPS, VisionSpec

_AS_STORED = WeightView(transposed=False)


def vision_graph(checkpoint: Checkpoint, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Model:
    """The tower and the projector. `dtype` is that of activations and features."""
    spec = checkpoint.vision
    assert spec is not None
    b = GraphBuilder(checkpoint, "vision", dtype)
    side = spec.images.tile_size
    pixels = b.input("pixels", ir.DataType.FLOAT, "tiles", 3, side, side)
    x = _embeddings(b, b.cast(pixels, dtype, ir.DataType.FLOAT), spec)
    for layer in range(spec.num_layers):
        x = _layer(b, x, f"{LAYERS}.{layer}", spec)
    features = b.reshape(_projected(b, _merged(b, x, spec)), -1, spec.text_size)
    b.output(features, "image_features", dtype, "num_features", spec.text_size)
    return b.model()


def _embeddings(b: GraphBuilder, pixels: ir.Value, spec: VisionSpec) -> ir.Value:
    """[N, 3, side, side] -> [N, 1 + patches, C]: the class token, then the patches line by line."""
    with b.at(EMBEDDINGS):
        patches = b.op(
            "Conv",
            pixels,
            *_weight_and_bias(b, f"{EMBEDDINGS}.patch_embedding"),
            strides=[spec.patch_size] * 2,
            kernel_shape=[spec.patch_size] * 2,
        )
        patches = b.transpose(b.reshape(patches, 0, spec.hidden_size, -1), 0, 2, 1)
        first = b.weight(f"{EMBEDDINGS}.class_embedding", _AS_STORED)
        shape = b.concat(b.dimension(pixels, 0), b.constant([1, 1]), axis=0)
        x = b.concat(b.op("Expand", first, shape), patches, axis=1)
        embedded: ir.Value = b.op("Add", x, b.weight(f"{EMBEDDINGS}.position_embedding", _AS_STORED))
        return embedded


def _layer(b: GraphBuilder, x: ir.Value, path: str, spec: VisionSpec) -> ir.Value:
    """[N, T, C] -> [N, T, C]"""
    with b.at(path):
        mixed = _attention(b, _norm(b, x, f"{path}.norm1", spec), f"{path}.attn", spec)
        x = b.op("Add", x, b.op("Mul", mixed, b.weight(f"{path}.ls1", _AS_STORED)))
        inner = b.op("Gelu", linear(b, _norm(b, x, f"{path}.norm2", spec), f"{path}.mlp.fc1"))
        made = linear(b, inner, f"{path}.mlp.fc2")
        added: ir.Value = b.op("Add", x, b.op("Mul", made, b.weight(f"{path}.ls2", _AS_STORED)))
        return added


def _attention(b: GraphBuilder, x: ir.Value, path: str, spec: VisionSpec) -> ir.Value:
    """Every patch sees all others. Stored heads beyond the tower's own are of zeros, and computed like them."""
    heads, channels = b.checkpoint.vision_heads, spec.head_dim
    with b.at(path):
        query, key, value = b.split(linear(b, x, f"{path}.qkv"), *[heads * channels] * 3)
        if spec.qk_norm:
            query, key = (_qk_norm(b, each, f"{path}.{name}_norm", spec) for name, each in (("q", query), ("k", key)))
        split = [b.transpose(b.reshape(each, 0, 0, heads, channels), 0, 2, 1, 3) for each in (query, key, value)]
        mixed = b.op("Attention", *split, scale=channels**-0.5)
        return linear(b, b.reshape(b.transpose(mixed, 0, 2, 1, 3), 0, 0, heads * channels), f"{path}.proj")


def _norm(b: GraphBuilder, x: ir.Value, module: str, spec: VisionSpec) -> ir.Value:
    """Over all channels."""
    return (_rms_norm if spec.norm == "rms_norm" else _layer_norm)(b, x, module, spec.eps)


def _rms_norm(b: GraphBuilder, x: ir.Value, module: str, eps: float) -> ir.Value:
    weight = b.weight(f"{module}.weight", _AS_STORED)
    normed: ir.Value = b.op("RMSNormalization", x, weight, axis=-1, epsilon=eps, stash_type=1)
    return normed


def _layer_norm(b: GraphBuilder, x: ir.Value, module: str, eps: float) -> ir.Value:
    normed: ir.Value = b.op("LayerNormalization", x, *_weight_and_bias(b, module), axis=-1, epsilon=eps)
    return normed


def _weight_and_bias(b: GraphBuilder, module: str) -> list[ir.Value]:
    """As they are stored; the bias if there is one."""
    names = [f"{module}.weight", f"{module}.bias"]
    return [b.weight(name, _AS_STORED) for name in names if name in b.checkpoint]


def _qk_norm(b: GraphBuilder, x: ir.Value, module: str, spec: VisionSpec) -> ir.Value:
    """Of all heads together. The mean square is that of the tower's own heads, which come first."""
    if b.checkpoint.vision_heads == spec.num_heads:
        return _rms_norm(b, x, module, spec.eps)
    own = b.op("Slice", x, b.constant([0]), b.constant([spec.hidden_size]), b.constant([-1]))
    own = b.cast(own, ir.DataType.FLOAT)
    square = b.op("ReduceMean", b.op("Mul", own, own), b.constant([-1]), keepdims=1)
    deviation = b.op("Sqrt", b.op("Add", square, b.constant(spec.eps, ir.DataType.FLOAT)))
    scaled = b.op("Div", x, b.cast(deviation, b.dtype, ir.DataType.FLOAT))
    normed: ir.Value = b.op("Mul", scaled, b.weight(f"{module}.weight", _AS_STORED))
    return normed


def _merged(b: GraphBuilder, x: ir.Value, spec: VisionSpec) -> ir.Value:
    """[N, 1 + patches, C] -> [N, tokens, merged² * C]: without the class token, squares of patches become one."""
    merged, side, width = spec.merged, spec.patches // spec.merged, spec.hidden_size
    with b.at("pixel_shuffle"):
        x = b.op("Slice", x, b.constant([1]), b.constant([spec.patches**2 + 1]), b.constant([1]))
        x = b.reshape(x, -1, side, merged, side, merged, width)
        x = b.transpose(x, 0, *((3, 1) if spec.transposed else (1, 3)), 2, 4, 5)
        return b.reshape(x, -1, side**2, merged**2 * width)


def _projected(b: GraphBuilder, x: ir.Value) -> ir.Value:
    """[N, tokens, …] -> [N, tokens, H]"""
    with b.at(PROJECTOR.removesuffix(".")):
        x = _layer_norm(b, x, f"{PROJECTOR}0", PROJECTOR_EPS)
        return linear(b, b.op("Gelu", linear(b, x, f"{PROJECTOR}1")), f"{PROJECTOR}3")
