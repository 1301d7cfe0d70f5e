"""The names that llama.cpp has for what checkpoints hold: modules of a layer, and those outside of the layers."""

from __future__ import annotations

from llmc.convert.tensor_names import ModuleName

ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
PROJECTIONS = {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
# Inside of a layer. `kv_b_proj` becomes two tensors, and experts lie in a stack: see `arrangement`.
LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "mlp.gate": "ffn_gate_inp",
    "eh_proj": "nextn.eh_proj",
    "enorm": "nextn.enorm",
    "hnorm": "nextn.hnorm",
    "shared_head.norm": "nextn.shared_head_norm",
    **{f"mlp.{ours}": theirs for ours, theirs in PROJECTIONS.items()},
    **{f"mlp.shared_experts.{ours}": f"{theirs}_shexp" for ours, theirs in PROJECTIONS.items()},
}
SELECTION_BIAS = ("e_score_correction_bias", "exp_probs_b")  # a part of `mlp.gate`; a tensor of its own
KEYS, VALUES, EXPERTS = "attn_k_b", "attn_v_b", "_exps"


def stored_name(module: ModuleName, part: str = "weight") -> str:
    """Return llama.cpp's name of a tensor; of an expert's that of the stack that it lies in."""
    if module.layer is None:
        return f"{ENDS[str(module)]}.{part}"
    if part == SELECTION_BIAS[0]:
        return f"blk.{module.layer}.{SELECTION_BIAS[1]}.bias"
    if module.expert is not None:
        return f"blk.{module.layer}.{PROJECTIONS[module.projection]}{EXPERTS}.{part}"
    return f"blk.{module.layer}.{LAYER[module.inside]}.{part}"
