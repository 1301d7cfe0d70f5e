"""Phi-3, Phi-3.5 and Phi-4: Llama whose projections of one input are stored as one."""

from __future__ import annotations

from llmc.convert.families.family import published
from llmc.convert.families.mistral import Mistral
from llmc.convert.stored_names import StoredNames


class Phi3(Mistral):
    name = "phi3"
    architectures = ("Phi3ForCausalLM",)
    defaults = published(max_position_embeddings=4096, rms_norm_eps=1e-5, sliding_window=None)
    partial_rotary = 1.0
    stored_names = StoredNames(
        joined={
            "self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"),
            "mlp.gate_up_proj": ("gate_proj", "up_proj"),
        }
    )


FAMILY = Phi3()
