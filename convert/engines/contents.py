"""What goes into the engines of a checkpoint: which GPUs share one, what stays in codes, and what to say about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Protocol

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.engines.engine import Steps
from llmc.convert.engines.mixture_of_experts import gathering_widths
from llmc.convert.engines.plugin_weights import stored_in_engine
from llmc.convert.engines.weights import Held, held, held_weight, in_groups, is_looked_up
from llmc.convert.graph.build import graphs
from llmc.convert.graph.rewrite import Rewriter
from llmc.convert.graph.weight import WeightTensor
from llmc.convert.kernels.expert_weights import PLAIN
from llmc.convert.kernels.grouped_query_attention_tiles import MOST_CHANNELS
from llmc.convert.kernels.latent_attention_tiles import LARGEST_RANK, LARGEST_ROPE
from llmc.convert.quantized_weight import bits_of, held_type
from llmc.convert.spec import (
    AttentionSpec,
    GroupedQueryAttentionSpec,
    LatentAttentionSpec,
    MixtureOfExpertsSpec,
    ModelSpec,
    RouterSpec,
)
from llmc.convert.targets import PlannedWeights, rounding_notes
from llmc.convert.tensor_names import ModuleName
from llmc.errors import InputError

FP8_SM = 89
USUAL_CONTEXT = 4096
INTEGERS = {"int4", "int8"}
FP4 = "float4_e2m1fn"  # codes of plugins alone
MOST_OFFSETS = 2**31  # inside of a row, see `llmc.runtime.plugins.latent_attention.plan`
_LARGE = 1 << 14
MOST_DENSE_EXPERTS = 64  # that a step may compute for the sake of the chosen ones


class ExpectedContents(Protocol):
    """What of a recipe's options decides whether there can be an engine."""

    context: int | None
    prefill: int
    plugins: bool
    tensor_parallel: int


def default_context(spec: ModelSpec, context: int | None) -> int:
    """Cache entries per row: as the recipe says, or the model's limit, up to a usual length."""
    return context or min(spec.max_position_embeddings, USUAL_CONTEXT)


def router(spec: ModelSpec) -> RouterSpec | None:
    return next((mlp.router for mlp in spec.mlps if isinstance(mlp, MixtureOfExpertsSpec)), None)


def known_codes(sm: int) -> set[str]:
    """Kinds of stored codes that TensorRT knows on a GPU."""
    return INTEGERS | ({"float8_e4m3fn"} if sm >= FP8_SM else set())


def widened_bytes(weights: PlannedWeights, plugins: bool, batch: int, sm: int) -> tuple[int, bool]:
    """How many bytes more than the checkpoint an engine for `sm` has, as some codes are bfloat16 in it; and whether it
    holds FP8 that TensorRT multiplies by. Of weights that are as large as those of real models.
    """
    gathered = gathers(weights.spec, batch)
    more, float8 = 0.0, False
    for role, kinds in weights.parameters.items():
        looked_up = role == "embedding" and not weights.spec.tie_word_embeddings
        for kind, count in kinds.items():
            stacked, by_heads = role == "experts", role == "kv_b_proj"
            found = held(
                kind.of((_LARGE, _LARGE)), (_LARGE, _LARGE), known_codes(sm), plugins,
                stacked=stacked, by_heads=by_heads, gathered=gathered and stacked, looked_up=looked_up,
            )  # fmt: skip
            bits = bits_of(kind.code_type)
            more += ((16 if found == Held.PLAIN else bits_of(held_type(kind.code_type))) - bits) / 8 * count
            if role == "embedding" and not looked_up and found == Held.PLUGIN:  # whose codes lie in another order
                more += bits / 8 * count
            if kind.code_type == FP4 and found == Held.PLUGIN:
                more += count / kind.block[1]  # scales of two bytes, of one in the checkpoint
            float8 |= found == Held.CODES and kind.code_type == "float8_e4m3fn"
    return int(more), float8


def gathers(spec: ModelSpec, batch: int) -> bool:
    """Whether all steps that decode take the chosen experts alone out of the stacks."""
    routes, widths = router(spec), (1, 2) if spec.num_mtp_layers else (1,)
    return routes is not None and gathering_widths(widths, batch, routes.top_k, routes.num_experts) == [*widths]


def check(target: str, spec: ModelSpec, options: ExpectedContents, schemes: Mapping[str, str]) -> None:
    """InputError for what no engine can or should do. schemes: by module, of what is to be quantized."""
    if options.context and options.context > spec.max_position_embeddings:
        raise InputError(
            f"target {target}: context is {options.context}, but the model ends at {spec.max_position_embeddings}"
        )
    routes = router(spec)
    if routes and not options.plugins and routes.num_experts > MOST_DENSE_EXPERTS:
        raise InputError(
            f"target {target}: without plugins a prompt's step computes all {routes.num_experts} experts, "
            f"{routes.num_experts // routes.top_k} times the chosen ones, which is not done for more than "
            f"{MOST_DENSE_EXPERTS}; leave out `plugins: false`"
        )
    for attention in dict.fromkeys(spec.attentions) if options.plugins else ():
        if told := _too_wide(attention):
            raise InputError(f"target {target}: its plugin takes {told}; say `plugins: false`")
        if isinstance(attention, LatentAttentionSpec):
            _check_offsets(target, spec, attention, options)
    for module in schemes:
        name = ModuleName.parse(module)
        fellow = {"gate_proj": "up_proj", "up_proj": "gate_proj"}.get(name.projection)
        if name.expert is not None and fellow and schemes.get(f"{name.parent}.{fellow}") != schemes[module]:
            raise InputError(
                f"target {target}: {module} is to become {schemes[module]}, and {fellow} is not, which an engine "
                "computes together with it; let one line of the recipe's `quantize` match both"
            )


def _check_offsets(target: str, spec: ModelSpec, attention: LatentAttentionSpec, options: ExpectedContents) -> None:
    """The kernels of latent attention count the numbers of a row's query, and those of its cache, in 31 bits."""
    heads = attention.num_heads // options.tensor_parallel
    channels = attention.kv_lora_rank + attention.qk_rope_head_dim
    channels = max(channels, attention.qk_nope_head_dim, attention.v_head_dim)  # of a prompt's query and output
    context = default_context(spec, options.context)
    tokens, most = min(options.prefill, context), (MOST_OFFSETS - 1) // channels
    if tokens * heads > most:
        raise InputError(
            f"target {target}: a step of {tokens} tokens and {heads} heads is more than its plugin counts; lower "
            f"`prefill` to {most // heads}, or say `plugins: false`"
        )
    if context > most:
        raise InputError(
            f"target {target}: {context} cache entries of {channels} numbers are more than its plugin counts; lower "
            f"`context` to {most}, or say `plugins: false`"
        )


def _too_wide(attention: AttentionSpec) -> str | None:
    """What the plugin for it takes, if that is less."""
    if isinstance(attention, GroupedQueryAttentionSpec):
        found = max(attention.head_dim, attention.value_size)
        return f"heads of at most {MOST_CHANNELS} channels, not {found}" if found > MOST_CHANNELS else None
    if not isinstance(attention, LatentAttentionSpec):
        return None
    rank, rope = attention.kv_lora_rank, attention.qk_rope_head_dim
    if rank <= LARGEST_RANK and rope <= LARGEST_ROPE:
        return None
    return (
        f"a `kv_lora_rank` of at most {LARGEST_RANK} and a `qk_rope_head_dim` of at most {LARGEST_ROPE}, "
        f"not {rank} and {rope}"
    )


class Contents:
    """Of the engines of a checkpoint.

    Attributes:
        plugins: whether there are to be some
        steps, batch: that they take; `batch` rows at most
    """

    def __init__(self, checkpoint: Checkpoint, plugins: bool, steps: Steps, batch: int) -> None:
        self.checkpoint, self.spec, self.plugins = checkpoint, checkpoint.spec, plugins
        self.steps, self.batch = steps, batch
        latent = all(isinstance(attention, LatentAttentionSpec) for attention in self.spec.attentions)
        self.cache_in_codes = self.spec.fp8_cache and plugins and latent

    def groups(self, sms: Sequence[int]) -> list[tuple[list[int], set[str]]]:
        """Which GPUs share an engine, and the kinds of stored codes that TensorRT keeps in it. Plugins keep theirs, and
        need no instructions for FP8.
        """
        fp8 = self.spec.fp8_cache and not self.cache_in_codes
        known = INTEGERS | {"float8_e4m3fn"}
        fp8 |= any(
            weight.code_type == "float8_e4m3fn" and self._held(weight, known) == Held.CODES for weight in self._weights
        )
        old = [n for n in sms if n < FP8_SM] if fp8 else []
        new = [n for n in sms if n not in old]
        return [(each, codes) for each, codes in ((old, INTEGERS), (new, known)) if each]

    def notes(self, groups: Sequence[tuple[list[int], set[str]]]) -> list[str]:
        """What whoever chooses an engine should know."""
        notes = []
        for sm, code_types in groups:
            if "float8_e4m3fn" not in code_types:
                names = " and ".join(map(str, sm))
                weights = "; FP8 weights are decoded by plugins" if self.plugins else ""
                notes.append(
                    f"FP8 begins with SM {FP8_SM}: the engine for SM {names} computes in bfloat16 instead{weights}"
                )
        if (routes := self._router()) and not self.plugins:
            experts, top_k = routes.num_experts, routes.top_k
            chosen = self._gathering
            where = f"steps of more than {max(chosen)} tokens per row" if chosen else "all steps"
            notes.append(
                f"no plugins: {where} compute all {experts} experts, {experts / top_k:.3g} times the {top_k} chosen"
            )
        notes += self._plain_notes()
        notes += [f"TensorRT has no codes for {kind}: those weights are bfloat16" for kind in sorted(self._widened())]
        notes += rounding_notes(self.checkpoint, wider_cache=not self.cache_in_codes)
        if self.checkpoint.vision is not None:
            notes.append("features of images come from the vision tower of target onnxruntime, which runs on the CPU")
        kinds = {weight.kind for weight in self._weights if weight.kind is not None}
        if any(kind.activations not in (None, "tensor") for kind in kinds):
            notes.append("TensorRT takes no scales that depend on the input: dynamic activations stay bfloat16")
        blocks = [
            weight.modules[0]
            for weight in self._weights
            if weight.code_type == "float8_e4m3fn" and in_groups(weight) and not weight.layout.stacked
        ]
        if any(found.scale is not None for module in blocks if (found := self.checkpoint.activations(module))):
            notes.append("TensorRT multiplies no FP8 inputs with FP8 blocks: those inputs stay bfloat16")
        return notes

    def _plain_notes(self) -> list[str]:
        """Of codes that TensorRT knows and that are bfloat16 nevertheless, as that takes less traffic."""
        known, notes = INTEGERS | {"float8_e4m3fn", *([FP4] if self.plugins else [])}, []
        plain = [
            weight
            for weight in self._weights
            if weight.code_type in known and self._held(weight, known) == Held.PLAIN and not self._no_codes(weight)
        ]
        if any(weight.layout.heads is not None for weight in plain):
            notes.append(
                "kv_b_proj is bfloat16: TensorRT multiplies no codes over heads, and would decode it in every step, "
                "4.5 bytes of traffic or more for a weight instead of 2"
            )
        matrices = Counter(str(w.code_type) for w in plain if w.layout.heads is None for _ in w.names)
        for kind, count in sorted(matrices.items()):
            traffic = 4.5 if kind in ("int4", FP4) else 5
            notes.append(
                f"matrices of {kind} that are bfloat16: {count}; TensorRT would decode them in every step, {traffic} "
                "bytes of traffic for a weight instead of 2"
            )
        return notes

    @cached_property
    def _weights(self) -> list[WeightTensor]:
        return [weight for model in graphs(self.checkpoint).values() for _, weight in Rewriter(model).weights()]

    @cached_property
    def _gathering(self) -> list[int]:
        """The widths of steps that decode chosen experts alone."""
        routes = self._router()
        assert routes is not None
        return gathering_widths(self.steps.widths, self.batch, routes.top_k, routes.num_experts)

    def _held(self, weight: WeightTensor, code_types: Collection[str]) -> Held | None:
        gathered = weight.layout.stacked and len(self._gathering) == len(self.steps.widths)
        return held_weight(weight, code_types, self.plugins, gathered)

    def _router(self) -> RouterSpec | None:
        return router(self.spec)

    def _no_codes(self, weight: WeightTensor) -> bool:
        """Whether no engine has codes for it, or takes as many bytes of traffic for them as for bfloat16."""
        assert weight.kind is not None
        if is_looked_up(weight):
            return self._held(weight, INTEGERS | {"float8_e4m3fn"}) == Held.PLAIN
        if self.plugins and weight.layout.stacked:
            return stored_in_engine(weight) == PLAIN
        odd = weight.kind.zero_points or weight.kind.g_idx
        odd |= weight.kind.code_type == FP4 and not self.plugins
        return odd or (weight.code_type == "int8" and in_groups(weight))

    def _widened(self) -> set[str]:
        """What an engine has no codes for."""
        found = set()
        for weight in self._weights:
            if (kind := weight.kind) is not None and self._no_codes(weight):
                more = " with zero points" if kind.zero_points else ""
                found.add(kind.code_type + more + (" with dynamic groups" if kind.g_idx else ""))
        return found
