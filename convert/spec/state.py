"""Blocks in the place of attention that remember a text, however long, in as many numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from llmc.convert.spec.attention import RopeSpec
from llmc.convert.spec.module import ConvolutionSpec, LinearSpec, ModuleSpec, NormSpec, VectorSpec


@dataclass(frozen=True)
class GatedDeltaNetSpec:
    """Gated DeltaNet (Yang et al. 2025): what attention remembers in a cache, a state of constant size does.

    Attributes:
        num_key_heads: each of them for as many consecutive value heads as there are more of those
        conv_width: tokens that the convolution of queries, keys and values reads
        fused: whether `in_proj_qkvz` and `in_proj_ba` make, key head by key head, what otherwise `in_proj_qkv`,
            `in_proj_z`, `in_proj_b` and `in_proj_a` make (Qwen3-Next)
        norm_eps: of the norm of what a head reads
    """

    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    conv_width: int
    fused: bool
    norm_eps: float
    output: ClassVar[str] = "out_proj"  # the projection at the end
    rope: ClassVar[RopeSpec | None] = None

    @property
    def key_size(self) -> int:
        """Channels of all keys, or of all queries."""
        return self.num_key_heads * self.key_dim

    @property
    def output_size(self) -> int:
        """How many channels `out_proj` reads."""
        return self.num_value_heads * self.value_dim

    @property
    def convolved_size(self) -> int:
        """Channels of what is convolved: all queries, keys and values."""
        return 2 * self.key_size + self.output_size

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """What is remembered of a text, beside what is convolved next."""
        return self.num_value_heads, self.key_dim, self.value_dim

    def cache_entry(self) -> dict[str, tuple[int, int]]:
        """What is cached per token: nothing."""
        return {}

    def modules(self, hidden_size: int) -> dict[str, ModuleSpec]:
        """What has weights, by its name in `self_attn`."""
        mixed, heads = self.convolved_size, self.num_value_heads
        outputs = {"in_proj_qkv": mixed, "in_proj_z": self.output_size, "in_proj_b": heads, "in_proj_a": heads}
        if self.fused:
            outputs = {"in_proj_qkvz": mixed + self.output_size, "in_proj_ba": 2 * heads}
        found: dict[str, ModuleSpec] = {
            name: LinearSpec(size, hidden_size, reads_block=True) for name, size in outputs.items()
        }
        return found | {
            "conv1d": ConvolutionSpec(mixed, self.conv_width),
            "dt_bias": VectorSpec(heads),
            "A_log": VectorSpec(heads),
            "norm": NormSpec(self.value_dim, self.norm_eps),
            "out_proj": LinearSpec(hidden_size, self.output_size),
        }


@dataclass(frozen=True)
class Mamba2Spec:
    """Mamba-2 (Dao & Gu 2024): linear attention whose state forgets, each head's at a pace of its own.

    Attributes:
        num_groups: of heads that share queries and keys (C and B), and a norm
        conv_width: tokens that the convolution of values, keys and queries reads
        least_step: the shortest time that a token takes
    """

    num_heads: int
    head_dim: int
    key_dim: int  # of the state (N)
    num_groups: int
    conv_width: int
    bias: bool
    conv_bias: bool
    least_step: float
    norm_eps: float
    output: ClassVar[str] = "out_proj"  # the projection at the end
    rope: ClassVar[RopeSpec | None] = None

    @property
    def output_size(self) -> int:
        """How many channels `out_proj` reads."""
        return self.num_heads * self.head_dim

    @property
    def convolved_size(self) -> int:
        """Channels of what is convolved: all values, keys and queries."""
        return self.output_size + 2 * self.num_groups * self.key_dim

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """What is remembered of a text, beside what is convolved next."""
        return self.num_heads, self.key_dim, self.head_dim

    def cache_entry(self) -> dict[str, tuple[int, int]]:
        """What is cached per token: nothing."""
        return {}

    def modules(self, hidden_size: int) -> dict[str, ModuleSpec]:
        """What has weights, by its name in `self_attn`."""
        inputs = self.output_size + self.convolved_size + self.num_heads
        return {
            "in_proj": LinearSpec(inputs, hidden_size, self.bias, reads_block=True),
            "conv1d": ConvolutionSpec(self.convolved_size, self.conv_width, self.conv_bias),
            "dt_bias": VectorSpec(self.num_heads),
            "A_log": VectorSpec(self.num_heads),
            "D": VectorSpec(self.num_heads),
            "norm": NormSpec(self.output_size, self.norm_eps),
            "out_proj": LinearSpec(hidden_size, self.output_size, self.bias),
        }


StateSpec = GatedDeltaNetSpec | Mamba2Spec  # what remembers a text, however long, in as many numbers


def state_bytes(spec: StateSpec) -> int:
    """What is remembered of a text: the state in float32, and what the convolution reads next, two bytes each."""
    return 4 * math.prod(spec.state_shape) + 2 * spec.convolved_size * (spec.conv_width - 1)


def working_channels(spec: StateSpec) -> int:
    """How many float32 numbers per token are there at once while a text goes through, measured: what is convolved,
    before, behind and cut apart; queries and keys of every head, which share them; values, gates and what is read.
    """
    heads, key_dim, _ = spec.state_shape
    return 3 * spec.convolved_size + 3 * heads * key_dim + 5 * spec.output_size
