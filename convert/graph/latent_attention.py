"""Multi-head latent attention, MLA (DeepSeek-V2, section 2.1), in absorbed form over the latent cache."""

from __future__ import annotations

import onnx_ir as ir

from llmc.convert.graph.builder import FunctionBuilder, GraphBuilder
from llmc.convert.graph.linear import linear
from llmc.convert.graph.rms_norm import rms_norm
from llmc.convert.graph.rotary import rotary
from llmc.convert.graph.step import StepInputs
from llmc.convert.graph.weight import WeightView
from llmc.convert.spec import LatentAttentionSpec, NormSpec


def latent_attention_function() -> ir.Function:
    """`llmc.LatentAttention`: query [B, Hq, S, C], cache [B, 1, T, C], mask [B, 1, S, T] -> [B, Hq, S, R].

    Every head reads the same cache entry, as key with all C = R + P channels, as value with the first R.
    So heads are laid out as rows of one matrix product per sequence instead of Hq small ones, and the product
    with the value is taken over all C channels and cut afterwards: slicing the cache would copy it.
    """
    integer = ir.AttributeType.INT
    attributes = {"num_heads": integer, "kv_lora_rank": integer, "scale": ir.AttributeType.FLOAT}
    b = FunctionBuilder("LatentAttention", ["query", "cache", "mask"], attributes)
    query, cached, mask = b.inputs
    first = b.constant([0])
    heads = b.op("Unsqueeze", b.attribute("num_heads"), first)
    # In a Reshape 0 keeps a dimension: [B, Hq, S, n] <-> [B, 1, Hq * S, n]
    to_rows, to_heads = b.constant([0, 1, -1, 0]), b.concat(first, heads, b.constant([-1, 0]))
    scaled = b.op("Mul", query, b.cast_like(b.attribute("scale"), query))
    scores = b.op("MatMul", b.op("Reshape", scaled, to_rows), b.transpose(cached, 0, 1, 3, 2))
    weights = b.op("Softmax", b.op("Add", b.op("Reshape", scores, to_heads), mask), axis=-1)
    mixed = b.op("Reshape", b.op("MatMul", b.op("Reshape", weights, to_rows), cached), to_heads)
    rank = b.op("Unsqueeze", b.attribute("kv_lora_rank"), first)
    return b.function(b.op("Slice", mixed, first, rank, b.constant([3])))


def latent_attention(
    b: GraphBuilder, x: ir.Value, path: str, spec: LatentAttentionSpec, layer: int, step: StepInputs
) -> ir.Value:
    """[B, S, H] -> [B, S, H].

    kv_b_proj never meets the cache: its key half is folded into the query, its value half into the output
    (section 2.1.2), so the cache holds R + P numbers per token: the normalized latent, then the rotated key.

    Both are products over heads, [Hq, B * S, n] times [Hq, n, R]: over rows and heads, compilers would first copy the
    weights for every row.
    """
    rank, nope, rope = spec.kv_lora_rank, spec.qk_nope_head_dim, spec.qk_rope_head_dim
    with b.at(path):
        if spec.q_lora_rank is None:
            query = linear(b, x, f"{path}.q_proj")
        else:
            normed = NormSpec(spec.q_lora_rank, spec.norm_eps)
            query = rms_norm(b, linear(b, x, f"{path}.q_a_proj"), f"{path}.q_a_layernorm", normed)
            query = linear(b, query, f"{path}.q_b_proj")
        query_nope, query_rope = b.split(b.reshape(query, 0, 0, spec.num_heads, nope + rope), nope, rope)
        query_rope = b.transpose(query_rope, 0, 2, 1, 3)

        entry = b.op("Unsqueeze", linear(b, x, f"{path}.kv_a_proj_with_mqa"), b.constant([1]))
        latent, key_rope = b.split(entry, rank, rope)
        latent = rms_norm(b, latent, f"{path}.kv_a_layernorm", NormSpec(rank, spec.norm_eps))
        cached = step.append(b, layer, "latent", b.concat(latent, rotary(b, key_rope, rope, spec.rope, step.angles)))

        kv_b = f"{path}.kv_b_proj.weight"
        key_layout = WeightView(transposed=False, heads=spec.num_heads, rows=(0, nope))
        value_layout = WeightView(heads=spec.num_heads, rows=(nope, nope + spec.v_head_dim))
        rows = b.op("Shape", x, end=2)
        query_nope = b.transpose(b.reshape(query_nope, -1, spec.num_heads, nope), 1, 0, 2)
        absorbed = b.op("MatMul", query_nope, b.weight(kv_b, key_layout, name=f"{kv_b}.key"))
        absorbed = b.op("Reshape", absorbed, b.concat(b.constant([spec.num_heads]), rows, b.constant([rank])))
        absorbed = b.transpose(absorbed, 1, 0, 2, 3)
        mixed = b.call(
            latent_attention_function(),
            b.concat(absorbed, rotary(b, query_rope, rope, spec.rope, step.angles)),
            cached,
            step.masks[None],
            num_heads=spec.num_heads,
            kv_lora_rank=rank,
            scale=spec.softmax_scale,
        )
        mixed = b.reshape(b.transpose(mixed, 1, 0, 2, 3), spec.num_heads, -1, rank)
        value = b.op("MatMul", mixed, b.weight(kv_b, value_layout, name=f"{kv_b}.value"))
        channels = b.constant([spec.num_heads * spec.v_head_dim])
        value = b.op("Reshape", b.transpose(value, 1, 0, 2), b.concat(rows, channels))
        return linear(b, value, f"{path}.o_proj")
