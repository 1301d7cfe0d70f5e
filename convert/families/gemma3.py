"""Gemma 3: Gemma 2 with norms of queries and keys instead of caps; layers with a window rotate differently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from llmc.convert.families.family import published, windows_of
from llmc.convert.families.gemma2 import Gemma2, kind_by_pattern
from llmc.convert.families.rope import rope_of_layers
from llmc.convert.fields import Fields
from llmc.convert.spec import AttentionSpec, GroupedQueryAttentionSpec, QKNormSpec, RopeSpec

THETAS = {"full_attention": 1e6, "sliding_attention": 1e4}  # where config.json does not say


class Gemma3(Gemma2):
    name = "gemma3_text"
    architectures = ("Gemma3ForCausalLM",)
    defaults = published(
        Gemma2.defaults, max_position_embeddings=131072, attn_logit_softcapping=None, final_logit_softcapping=None
    )

    def pattern(self, fields: Fields) -> int:
        return fields.integer("sliding_window_pattern", 6)

    def qk_norm(self, fields: Fields) -> QKNormSpec:
        return QKNormSpec("head", fields.number("rms_norm_eps", 1e-6), unit_offset=True)

    def rope(self, fields: Fields, head_dim: int) -> RopeSpec:
        return rope_of_layers(fields, "full_attention", head_dim, THETAS)

    def attentions(self, fields: Fields, num_layers: int) -> Sequence[AttentionSpec]:
        return layers_by_kind(fields, self.attention(fields), num_layers, self.pattern(fields), THETAS)


def layers_by_kind(
    fields: Fields, attention: GroupedQueryAttentionSpec, num_layers: int, pattern: int, thetas: Mapping[str, float]
) -> list[AttentionSpec]:
    """Layers that differ in their window and, whether that is shorter than the context or not, in their rotation."""
    kinds = [kind_by_pattern(layer, pattern) for layer in range(num_layers)]
    windows = windows_of(fields, kinds, num_layers)
    if fields.has("layer_types"):
        kinds = [*fields.strings("layer_types")]
    ropes = {kind: rope_of_layers(fields, kind, attention.head_dim, thetas) for kind in dict.fromkeys(kinds)}
    alike = {
        kind: replace(attention, window=windows[kinds.index(kind)], rope=ropes[kind]) for kind in dict.fromkeys(kinds)
    }
    return [alike[kind] for kind in kinds]


FAMILY = Gemma3()
