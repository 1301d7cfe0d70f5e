"""One rank's part of a model that several GPUs hold together (Megatron-LM, Shoeybi et al. 2019, section 3).

Attention is divided by heads, MLPs by their inner channels; what reads a block's input is cut by rows then, and what
makes its output by columns, so that the ranks' outputs only have to be added up. Of latent attention every rank keeps
the whole latent, which belongs to no head, and of embedding, norms and routers everything. The head is divided by
vocabulary.

Routed experts are divided by inner channels, too, not among the ranks: however few tokens there are and whichever
experts they choose, every rank reads the same share of the same experts. Inner channels are divided in multiples of 32,
of which some ranks may have one more. A group or block of channels that share a scale and lie in two ranks becomes
smaller ones of the same scale in each, so all numbers stay what they are.

The part is a `Checkpoint` of a smaller model: what makes graphs and engines of one makes them of the other. A tensor is
cut when it is read, from what is stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cache

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.engines.tensor_parallel_weights import HEAD, Cut, RankCheckpoint
from llmc.convert.layer_modules import weight_shapes
from llmc.convert.spec import (
    AttentionSpec,
    DenseMLPSpec,
    GroupedQueryAttentionSpec,
    LatentAttentionSpec,
    MixtureOfExpertsSpec,
    MLPSpec,
    ModelSpec,
)
from llmc.convert.tensor_names import TensorName
from llmc.errors import InputError

_ADDED = (".o_proj.bias", ".down_proj.bias")
# Groups of channels that share a scale become no smaller: the compiler and the kernels read none that are.
LEAST_GROUP = 32


def rank_of(checkpoint: Checkpoint, rank: int, ranks: int) -> Checkpoint:
    """The part of `rank`, counted from 0. InputError for a model that cannot be divided among `ranks`."""
    if ranks == 1:
        return checkpoint
    spec = divided(checkpoint.spec, ranks, rank)
    whole, part = weight_shapes(checkpoint.spec), weight_shapes(spec)
    cuts = {
        name: _cut(name, shape, whole[name], rank, ranks)
        for name, shape in part.items()
        if name in whole and shape != whole[name]
    }
    if divides_head(spec, ranks):
        size = spec.vocab_size // ranks
        cuts[HEAD] = Cut(0, rank * size, (rank + 1) * size)
    for name, cut in cuts.items():
        if cut.axis == 1 and checkpoint.kind(name) is not None:
            require_groups(name, cut.size)
    given = {each.name: getattr(checkpoint, each.name) for each in fields(Checkpoint)}
    return RankCheckpoint(
        **given | {"spec": spec, "ranks": ranks},
        rank=rank,
        whole=checkpoint,
        cuts=cuts,
        absent=frozenset(name for name in part if rank and name.endswith(_ADDED)),
    )


def check(target: str, spec: ModelSpec, ranks: int, schemes: Mapping[str, str]) -> None:
    """InputError for a model that `rank_of` would refuse. schemes: by module, of what is to be quantized."""
    if ranks == 1:
        return
    try:
        shapes = weight_shapes(spec)
        for name, part in weight_shapes(divided(spec, ranks)).items():
            if str(TensorName.parse(name).module) in schemes and len(part) == 2 and part[1] != shapes[name][1]:
                require_groups(name, part[1])
    except InputError as error:
        raise InputError(f"target {target}: {error}") from error


def rank_notes(spec: ModelSpec, ranks: int) -> list[str]:
    """What whoever chooses the engines should know."""
    if ranks == 1:
        return []
    notes = [
        f"{ranks} GPUs together take these engines, each that of its rank: `llmc run ARTIFACT --ranks {ranks}` on a "
        "machine that has them"
    ]
    if not divides_head(spec, ranks):
        notes.append(f"{spec.vocab_size} tokens cannot be divided among {ranks} GPUs: each has the whole head")
    return notes


def repeated_bytes(spec: ModelSpec, ranks: int) -> int:
    """How many bytes more than one engine the ranks' together have, as bfloat16: what each of them holds."""
    if ranks == 1:
        return 0
    count = sum(_parameters(divided(spec, ranks, rank)) for rank in range(ranks)) - _parameters(spec)
    if divides_head(spec, ranks):
        count -= (ranks - 1) * spec.vocab_size * spec.hidden_size
    return 2 * count


def _parameters(spec: ModelSpec) -> int:
    return sum(math.prod(shape) for shape in weight_shapes(spec).values())


def divides_head(spec: ModelSpec, ranks: int) -> bool:
    """Whether every rank has a part of the head; if not, each has all of it."""
    return ranks > 1 and spec.vocab_size % ranks == 0


def require_groups(name: str, channels: int) -> None:
    """InputError if a rank's part of a quantized matrix, so many input channels, would end within a group of scales."""
    if channels % LEAST_GROUP:
        raise InputError(
            f"{name}: is quantized, and a rank would have {channels} of its input channels, which is no multiple of "
            f"{LEAST_GROUP}; choose another `tensor_parallel`, or leave the module as it is"
        )


def divided(spec: ModelSpec, ranks: int, rank: int = 0) -> ModelSpec:
    """What one rank computes. InputError if that cannot be done."""

    def inner(what: str, count: int) -> int:
        start, stop = _inner(f"inner channels of {what}", count, rank, ranks)
        return stop - start

    @cache  # one object for all layers that are alike
    def attention(whole: AttentionSpec) -> AttentionSpec:
        if isinstance(whole, LatentAttentionSpec):
            return replace(whole, num_heads=_share("attention heads", whole.num_heads, ranks))
        if not isinstance(whole, GroupedQueryAttentionSpec):
            raise InputError(f"tensor_parallel: there is no division of the attention of {spec.family}; leave it out")
        if whole.qk_norm is not None and whole.qk_norm.over == "all":
            raise InputError(
                f"tensor_parallel: {spec.family} norms the queries of all heads as one, and a rank has some of them; "
                "leave it out"
            )
        heads = _share("attention heads", whole.num_heads, ranks)
        # Of fewer than there are ranks, each has one, that of its queries.
        key_value = 1 if ranks % whole.num_kv_heads == 0 else _share("key heads", whole.num_kv_heads, ranks)
        return replace(whole, num_heads=heads, num_kv_heads=key_value)

    @cache
    def mlp(whole: MLPSpec) -> MLPSpec:
        if isinstance(whole, DenseMLPSpec):
            return replace(whole, intermediate_size=inner("MLPs", whole.intermediate_size))
        if not isinstance(whole, MixtureOfExpertsSpec):
            return whole
        return replace(
            whole,
            intermediate_size=inner("experts", whole.intermediate_size),
            shared_intermediate_size=inner("shared experts", whole.shared_intermediate_size),
        )

    attentions, mlps = tuple(map(attention, spec.attentions)), tuple(map(mlp, spec.mlps))
    tied = spec.tie_word_embeddings and not divides_head(spec, ranks)
    return replace(spec, attentions=attentions, mlps=mlps, tie_word_embeddings=tied)


def _share(what: str, count: int, ranks: int) -> int:
    if count % ranks:
        raise InputError(f"tensor_parallel: {count} {what} cannot be divided among {ranks} GPUs; choose another number")
    return count // ranks


def _inner(what: str, count: int, rank: int, ranks: int) -> tuple[int, int]:
    """Which of so many channels a rank has, from the first to behind the last."""
    units = count // LEAST_GROUP
    if count % LEAST_GROUP or units < ranks or units % ranks == 0:
        size = _share(what, count, ranks)
        return rank * size, (rank + 1) * size
    each, more = divmod(units, ranks)
    start, stop = (LEAST_GROUP * (each * n + min(n, more)) for n in (rank, rank + 1))
    return start, stop


def _cut(name: str, part: tuple[int, ...], whole: tuple[int, ...], rank: int, ranks: int) -> Cut:
    """The axis on which a rank has less, and what it has of it."""
    (axis,) = (i for i, (here, there) in enumerate(zip(part, whole, strict=True)) if here != there)
    if TensorName.parse(name).module.part_of_layer == "mlp":
        return Cut(axis, *_inner(name, whole[axis], rank, ranks))
    # Several ranks share a head of keys where these are too few.
    start = rank * whole[axis] // ranks // part[axis] * part[axis]
    return Cut(axis, start, start + part[axis])
