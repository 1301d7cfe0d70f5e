"""From the intermediate graph to one that TensorRT compiles well."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from llmc.convert.engines.grouped_query_attention import grouped_query_attention_plugin
from llmc.convert.engines.grouped_topk import grouped_topk_plugin
from llmc.convert.engines.latent_attention import latent_attention, latent_attention_plugin
from llmc.convert.engines.linear import linear_plugin
from llmc.convert.engines.mixture_of_experts import mixture_of_experts, mixture_of_experts_plugin
from llmc.convert.engines.phases import Phases
from llmc.convert.engines.plugins import Plugins
from llmc.convert.engines.weights import EngineWeights, Held, in_groups
from llmc.convert.engines.windows import add_window
from llmc.convert.graph.builder import DOMAIN
from llmc.convert.graph.grouped_query_attention import NAME as GROUPED
from llmc.convert.graph.linear import DYNAMIC_ROUNDING
from llmc.convert.graph.rewrite import Rewriter, layer_of, producer, weight_of
from llmc.convert.spec import GroupedQueryAttentionSpec, LatentAttentionSpec, MixtureOfExpertsSpec, ModelSpec
from llmc.errors import InputError


def lower(
    model: ir.Model,
    spec: ModelSpec,
    dtype: ir.DataType,
    code_types: Collection[str],
    widths: tuple[int, ...],
    batch: int,
    plugins: Plugins | None = None,
    windowed: bool = False,
    absorbed: int | None = None,
) -> None:
    """Rewrite a graph of `convert.graph.build` in place.

    Args:
        dtype: that the graph was built with
        code_types: kinds of stored codes that go into the engine; other quantized weights become plain ones
        widths: tokens per row of the decode profiles
        batch: rows of the largest step
        plugins: where to note those that are used; None: there are to be none
        windowed: whether steps may see less than the whole cache; plugins do so by themselves
        absorbed: see `widest_absorbed`
    """
    b = Rewriter(model)
    weights, phases = EngineWeights(b, dtype, code_types, plugins is not None), Phases(b, widths)
    if windowed and plugins is None:
        add_window(b)
    for node in b.nodes("LatentAttention", DOMAIN):
        attention = spec.attentions[layer_of(node)]
        assert isinstance(attention, LatentAttentionSpec)
        if plugins is not None:
            latent_attention_plugin(b, node, attention, dtype, plugins, phases, absorbed)
        else:
            latent_attention(b, node, attention, phases)
    for node in b.nodes("Attention") + (b.nodes(GROUPED, DOMAIN) if plugins is not None else []):
        grouped = spec.attentions[layer_of(node)]
        if not isinstance(grouped, GroupedQueryAttentionSpec):
            continue
        if plugins is not None:
            grouped_query_attention_plugin(b, node, grouped, dtype, plugins)
        elif grouped.value_size != grouped.head_dim:
            _widen_values(b, node, grouped)
    dynamic = [node for name in DYNAMIC_ROUNDING for node in b.nodes(name, DOMAIN)]
    rounding = list(dynamic)  # the compiler wants scales to be constants
    rounding += [
        node
        for node in b.nodes("DequantizeLinear")
        if producer(node.inputs[0]).op_type == "QuantizeLinear"
        # GPUs that do not know the type at all, and products that would come out wrong.
        and ("float8_e4m3fn" not in code_types or any(map(_in_blocks, node.outputs[0].consumers())))
    ]
    for node in rounding:
        x = (node if node in dynamic else producer(node.inputs[0])).inputs[0]
        assert x is not None
        b.replace(node, x)
    for node in b.nodes("MixtureOfExperts", DOMAIN):
        experts = spec.mlps[layer_of(node)]
        assert isinstance(experts, MixtureOfExpertsSpec)
        if plugins is not None:
            mixture_of_experts_plugin(b, node, experts.activation, dtype, plugins)
        else:
            mixture_of_experts(b, node, experts.activation, weights, phases, batch)
    if plugins is not None:
        for node in b.nodes("GroupedTopK", DOMAIN):
            experts = spec.mlps[layer_of(node)]
            assert isinstance(experts, MixtureOfExpertsSpec)
            grouped_topk_plugin(b, node, experts.router, plugins)
        for node in b.nodes("MatMul"):
            weight = weight_of(node.inputs[1])
            if weight is not None and weights.held(weight) == Held.PLUGIN:
                linear_plugin(b, node, weight, dtype, plugins)
    weights.decode()
    b.clean()


def _widen_values(b: Rewriter, node: ir.Node, attention: GroupedQueryAttentionSpec) -> None:
    """TensorRT has kernels for values as wide as keys: zeros are added, and cut off again."""
    more = attention.head_dim - attention.value_size
    if more < 0:
        raise InputError(f"TensorRT has no attention with values of {attention.value_size} channels and narrower keys")
    with b.before(node):
        node.replace_input_with(2, b.op("Pad", node.inputs[2], b.constant([0, 0, 0, 0, 0, 0, 0, more])))
    (wide,) = node.outputs
    uses = list(wide.uses())
    with b.before(min((use.node for use in uses), key=list(b.graph).index)):
        cut = b.op("Slice", wide, b.constant([0]), b.constant([attention.value_size]), b.constant([3]))
    for user, place in uses:
        user.replace_input_with(place, cut)


def allow_decomposition(model: ir.Model) -> None:
    """Let TensorRT take attention apart where it has no kernel: for one token behind more than 16,384 entries, or for
    odd heads. Only TensorRT's parser knows the attribute.
    """
    for node in model.graph:
        if node.op_type == "Attention":
            node.attributes["TRT_decomposable"] = ir.AttrInt64("TRT_decomposable", 1)


def _in_blocks(product: ir.Node) -> bool:
    """Whether a weight has several scales along its inputs. With FP8 inputs, TensorRT-RTX multiplies by them only when
    everything is summed up: wrong, and without a word.
    """
    weight = weight_of(product.inputs[1]) if product.op_type == "MatMul" else None
    return weight is not None and weight.code_type == "float8_e4m3fn" and in_groups(weight)
