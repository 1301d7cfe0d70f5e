"""MiMo-V2-Flash: DeepSeek-V3's experts behind attention whose values are narrower than its keys, in five of six layers
over a window of 128 tokens and with sinks.

Its MTP layers are not counted in config.json and are kept as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmc.convert.families.deepseek_v3 import deepseek_experts, deepseek_mlps
from llmc.convert.families.family import Published, published, windows_of
from llmc.convert.families.llama import Llama
from llmc.convert.families.rope import rope_of_layers
from llmc.convert.fields import Fields
from llmc.convert.spec import AttentionSpec, MixtureOfExpertsSpec, MLPSpec, Role, RopeSpec
from llmc.convert.stored_names import StoredNames
from llmc.errors import InputError

_KINDS = ("full_attention", "sliding_attention")


class MiMoV2Flash(Llama):
    name = "mimo_v2_flash"
    architectures = ("MiMoV2FlashForCausalLM",)
    defaults = published(
        max_position_embeddings=131072,
        num_key_value_heads=4,
        head_dim=192,
        v_head_dim=128,
        rms_norm_eps=1e-5,
        sliding_window=129,
        rope_theta=5e6,
        swa_rope_theta=1e4,
        attention_value_scale=0.707,
        n_group=1,
        topk_group=1,
    )
    aliases = published(layernorm_epsilon="rms_norm_eps")
    expert_count = "n_routed_experts"
    partial_rotary = 0.334
    kept_role: Role = "mtp"
    stored_names = StoredNames(
        renamed=(("self_attn.attention_sink_bias", "self_attn.sinks.weight"),), kept=("model.mtp.",)
    )

    def fields(self, config: dict[str, object]) -> Published:
        """`sliding_window_size` counts the tokens before the one that looks."""
        before = Fields(config)
        if before.has("sliding_window_size"):
            config = config | {"sliding_window": before.integer("sliding_window_size") + 1}
        return super().fields(config)

    def biases(self, fields: Fields) -> tuple[bool, bool]:
        return fields.boolean("attention_bias", False), False

    def rope(self, fields: Fields, head_dim: int, kind: str = "full_attention") -> RopeSpec:
        thetas = {name: fields.number(f"{prefix}rope_theta") for name, prefix in zip(_KINDS, ("", "swa_"), strict=True)}
        nested = fields.mapping("rope_parameters").mapping(kind)
        share = (nested if nested.has("partial_rotary_factor") else fields).number("partial_rotary_factor", 0.334)
        dim = int(head_dim * share) // 2 * 2
        if not 0 < dim <= head_dim:
            raise InputError(f"`partial_rotary_factor` {share:g} rotates {dim} of {head_dim} channels")
        return rope_of_layers(fields, kind, dim, thetas)

    def kinds(self, fields: Fields, num_layers: int) -> list[str]:
        """What `layer_types` says, or `hybrid_layer_pattern`, in which 1 is a window."""
        if fields.has("layer_types"):
            return [*fields.strings("layer_types")]
        pattern = fields.integers("hybrid_layer_pattern") or [int(i and (i + 1) % 6) for i in range(num_layers)]
        if len(pattern) != num_layers:
            raise InputError(f"`hybrid_layer_pattern` has {len(pattern)} entries, and the model {num_layers} layers")
        return [_KINDS[bool(each)] for each in pattern]

    def attentions(self, fields: Fields, num_layers: int) -> Sequence[AttentionSpec]:
        fields.require("add_swa_attention_sink_bias", True, "layers with a window have sinks")
        fields.require("add_full_attention_sink_bias", False, "layers without a window have no sinks")
        kinds = self.kinds(fields, num_layers)
        windows = windows_of(fields, kinds, num_layers)
        scale = fields.number("attention_value_scale") if fields.has("attention_value_scale") else 1.0
        full = replace(self.attention(fields), value_dim=fields.count("v_head_dim"), value_scale=scale)
        sliding = replace(
            full,
            num_kv_heads=fields.integer("swa_num_key_value_heads", 2 * full.num_kv_heads),
            rope=self.rope(fields, full.head_dim, "sliding_attention"),
            window=next((window for window in windows if window), None),
            sinks=True,
        )
        for name, ours in (("head_dim", full.head_dim), ("v_head_dim", full.value_size)):
            fields.require(f"swa_{name}", ours, "all layers have heads of one width")
        fields.require("swa_num_attention_heads", full.num_heads, "all layers have as many heads")
        return [sliding if kind == "sliding_attention" else full for kind in kinds]

    def mlps(self, fields: Fields, num_layers: int, num_mtp_layers: int) -> Sequence[MLPSpec]:
        self.activation(fields)
        sparse = fields.integers("moe_layer_freq") or [int(layer > 0) for layer in range(num_layers)]
        kinds = ["sparse" if each else "dense" for each in sparse]
        config = {name: value for name, value in fields.config.items() if name != "moe_layer_freq"}
        return deepseek_mlps(Fields({"mlp_layer_types": kinds, **config}), num_layers, 0, _experts)


def _experts(fields: Fields) -> MixtureOfExpertsSpec:
    scaling = fields.number("routed_scaling_factor") if fields.has("routed_scaling_factor") else 1.0
    shared = fields.config.get("n_shared_experts") or 0
    return deepseek_experts(Fields({**fields.config, "n_shared_experts": shared, "routed_scaling_factor": scaling}))


FAMILY = MiMoV2Flash()
