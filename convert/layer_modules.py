"""Which weights a model of a spec has, by name and shape: what a checkpoint of it must hold."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

from llmc.convert import dataflow
from llmc.convert.spec import (
    CACHE_SCALES,
    AttentionSpec,
    LinearSpec,
    MixtureOfExpertsSpec,
    MLPSpec,
    ModelSpec,
    ModuleSpec,
    NormSpec,
    WiringSpec,
    blocks_of,
)

BLOCKS = ("self_attn", "mlp")


def layer_modules(spec: ModelSpec, index: int) -> Mapping[str, ModuleSpec]:
    """What has weights in `model.layers.<index>`, by its name there."""
    return _modules(spec.attentions[index], spec.mlps[index], spec.is_mtp(index), spec.final_norm, spec.wiring)


def own_modules(spec: ModelSpec, index: int) -> dict[str, ModuleSpec]:
    """Those that belong to none of the `BLOCKS`."""
    return {name: module for name, module in layer_modules(spec, index).items() if name.partition(".")[0] not in BLOCKS}


def fewest_weights(spec: ModelSpec) -> int:
    """A lower bound of how many tensors the model needs, without naming any of them."""
    count = 0
    for layer, mlp in enumerate(spec.mlps):
        expert = mlp.expert if isinstance(mlp, MixtureOfExpertsSpec) else mlp
        each = len(expert.modules(1)) if spec.blocks(layer) != "attention" else 0
        count += each * (mlp.router.num_experts if isinstance(mlp, MixtureOfExpertsSpec) else 1)
        count += 4 if spec.blocks(layer) == "both" else 1
    return count


def weight_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor the model needs: name → shape."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (spec.vocab_size, spec.hidden_size)}
    for index in range(spec.num_all_layers):
        prefix = f"model.layers.{index}"
        for module, found in layer_modules(spec, index).items():
            shapes |= {f"{prefix}.{module}.{part}": shape for part, shape in found.shapes().items()}
        if spec.fp8_cache and spec.is_cached(index):
            shapes |= {f"{prefix}.self_attn.{name}": (1,) for name in CACHE_SCALES}
    shapes["model.norm.weight"] = (spec.hidden_size,)
    if not spec.tie_word_embeddings:
        shapes["lm_head.weight"] = (spec.vocab_size, spec.hidden_size)
    return shapes


@functools.lru_cache(64)  # hundreds of experts, in dozens of equal layers, for whoever opens the checkpoint again
def _modules(
    attention: AttentionSpec, mlp: MLPSpec, is_mtp: bool, norm: NormSpec, wiring: WiringSpec
) -> Mapping[str, ModuleSpec]:
    listing = _Listing(attention, mlp, norm)
    dataflow.decoder_layer(listing, norm.size, wiring, blocks_of(attention, mlp))
    if is_mtp:
        dataflow.multi_token_prediction(listing, norm.size, norm.size, wiring)
    return listing.found


class _Listing:
    """Goes through a layer with numbers of channels, and notes what has weights."""

    def __init__(self, attention: AttentionSpec, mlp: MLPSpec, like: NormSpec) -> None:
        self.blocks: dict[str, AttentionSpec | MLPSpec] = {"self_attn": attention, "mlp": mlp}
        self.hidden_size, self.like = like.size, like
        self.found: dict[str, ModuleSpec] = {}

    def norm(self, name: str, x: int) -> int:
        self.found[name] = replace(self.like, size=x)
        return x

    def linear(self, name: str, x: int) -> int:
        self.found[name] = LinearSpec(self.hidden_size, x)
        return self.hidden_size

    def attention(self, x: int) -> int:
        return self._block("self_attn", x)

    def mlp(self, x: int) -> int:
        return self._block("mlp", x)

    def _block(self, block: str, x: int) -> int:
        self.found |= {f"{block}.{name}": module for name, module in self.blocks[block].modules(x).items()}
        return x

    def add(self, x: int, y: int) -> int:
        assert x == y
        return x

    def scale(self, x: int, factor: float) -> int:
        return x

    def concat(self, x: int, y: int) -> int:
        return x + y
