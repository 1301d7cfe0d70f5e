"""Phi-3, Phi-3.5 and Phi-4: Llama whose projections of one input are stored as one. Long ones have LongRoPE."""

from __future__ import annotations

from llmc.convert.families.family import published
from llmc.convert.families.mistral import Mistral
from llmc.convert.families.rope import rope_scaling
from llmc.convert.fields import Fields
from llmc.convert.spec import RopeSpec
from llmc.convert.stored_names import StoredNames
from llmc.errors import InputError
from llmc.patterns import shown


class Phi3(Mistral):
    name = "phi3"
    architectures = ("Phi3ForCausalLM",)
    defaults = published(
        max_position_embeddings=4096, rms_norm_eps=1e-5, sliding_window=None, original_max_position_embeddings=4096
    )
    partial_rotary = 1.0
    stored_names = StoredNames(
        joined={
            "self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"),
            "mlp.gate_up_proj": ("gate_proj", "up_proj"),
        }
    )

    def rope(self, fields: Fields, head_dim: int) -> RopeSpec:
        """LongRoPE, which the first releases called `su` and `yarn`, or none."""
        scaling, kind = rope_scaling(fields.config)
        if kind not in ("default", "longrope", "su", "yarn"):
            raise InputError(f"`{scaling.prefix}rope_type` is {shown(str(kind))}; Phi-3 knows default and longrope")
        if kind == "default":
            return super().rope(fields, head_dim)
        named = {scaling.prefix.rstrip("."): {**scaling.config, "rope_type": "longrope"}}
        return super().rope(Fields({**fields.config, **named}), head_dim)


FAMILY = Phi3()
