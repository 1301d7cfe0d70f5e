"""OLMo 3: OLMo 2 with a window in three of four layers, which rotate without the scaling of the others."""

from __future__ import annotations

from collections.abc import Sequence

from llmc.convert.families.family import published
from llmc.convert.families.gemma3 import layers_by_kind
from llmc.convert.families.olmo2 import Olmo2
from llmc.convert.families.rope import rope_of_layers
from llmc.convert.fields import Fields
from llmc.convert.spec import AttentionSpec, RopeSpec

THETAS = {"full_attention": 5e5, "sliding_attention": 5e5}


class Olmo3(Olmo2):
    name = "olmo3"
    architectures = ("Olmo3ForCausalLM",)
    defaults = published(Olmo2.defaults, sliding_window=4096)

    def rope(self, fields: Fields, head_dim: int) -> RopeSpec:
        return rope_of_layers(fields, "full_attention", head_dim, THETAS)

    def attentions(self, fields: Fields, num_layers: int) -> Sequence[AttentionSpec]:
        return layers_by_kind(fields, self.attention(fields), num_layers, pattern=4, thetas=THETAS)


FAMILY = Olmo3()
