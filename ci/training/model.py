"""DeepSeek-V3 for training: multi-head latent attention, grouped sigmoid routing, multi-token prediction.

The released files are read by `llmc.convert`, whose blocks are built to be streamed and quantized; this definition is
built to be trained: experts are stacked so that their gradients and updates are a few large tensors, and attention is
the expanded form. Parameter names are those of the checkpoint, except that stacked experts are split on export.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Config = dict[str, object]


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], self.weight, self.eps)


def linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Interleaved pairs, as the release stores them; queries and keys share the (de-interleaved) result layout."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.cat([even * cos - odd * sin, odd * cos + even * sin], -1)


class Attention(nn.Module):
    """MLA, expanded (DeepSeek-V2, section 2.1): [B, S, H] -> [B, S, H]."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.heads, self.rank = c["num_attention_heads"], c["kv_lora_rank"]
        self.nope, self.rope, self.value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
        hidden, eps = c["hidden_size"], c["rms_norm_eps"]
        self.q_a_proj = linear(hidden, c["q_lora_rank"])
        self.q_a_layernorm = RMSNorm(c["q_lora_rank"], eps)
        self.q_b_proj = linear(c["q_lora_rank"], self.heads * (self.nope + self.rope))
        self.kv_a_proj_with_mqa = linear(hidden, self.rank + self.rope)
        self.kv_a_layernorm = RMSNorm(self.rank, eps)
        self.kv_b_proj = linear(self.rank, self.heads * (self.nope + self.value))
        self.o_proj = linear(self.heads * self.value, hidden)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        split = (self.heads, -1)
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).unflatten(-1, split).transpose(1, 2)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([self.rank, self.rope], -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).unflatten(-1, split).transpose(1, 2)
        k_nope, v = kv.split([self.nope, self.value], -1)
        q_nope, q_rope = q.split([self.nope, self.rope], -1)
        k_rope = rotate(k_rope[:, None], cos, sin).expand(-1, self.heads, -1, -1).to(v.dtype)
        q = torch.cat([q_nope, rotate(q_rope, cos, sin).to(v.dtype)], -1)
        k = torch.cat([k_nope, k_rope], -1)
        padded = F.pad(v, (0, q.shape[-1] - self.value))  # equal head sizes take the fast kernel
        y = F.scaled_dot_product_attention(q, k, padded, is_causal=True)[..., : self.value]
        return self.o_proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = linear(hidden, intermediate), linear(hidden, intermediate)
        self.down_proj = linear(intermediate, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Router(nn.Module):
    """Sigmoid scores, a bias for selection only, top experts of the top groups (DeepSeek-V3, section 2.1.2)."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.groups, self.top_groups = c["n_group"], c["topk_group"]
        self.top_k, self.scale = c["num_experts_per_tok"], c["routed_scaling_factor"]
        self.weight = nn.Parameter(torch.empty(c["n_routed_experts"], c["hidden_size"]))
        self.register_buffer("e_score_correction_bias", torch.zeros(c["n_routed_experts"]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast("cpu", enabled=False):
            score = F.linear(x.float(), self.weight).sigmoid()
        with torch.no_grad():
            biased = (score + self.e_score_correction_bias).unflatten(-1, (self.groups, -1))  # [N, G, E/G]
            best = biased.topk(2, -1).values.sum(-1).topk(self.top_groups, -1).indices
            keep = torch.zeros(biased.shape[:2], dtype=torch.bool).scatter_(1, best, True)
            index = biased.masked_fill(~keep[..., None], -math.inf).flatten(1).topk(self.top_k, -1).indices
        weight = score.gather(1, index)
        return score, index, weight / weight.sum(-1, keepdim=True) * self.scale


class MixtureOfExperts(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        experts, hidden, inner = c["n_routed_experts"], c["hidden_size"], c["moe_intermediate_size"]
        self.gate = Router(c)
        self.experts_gate_proj = nn.Parameter(torch.empty(experts, inner, hidden))
        self.experts_up_proj = nn.Parameter(torch.empty(experts, inner, hidden))
        self.experts_down_proj = nn.Parameter(torch.empty(experts, hidden, inner))
        self.shared_experts = MLP(hidden, inner * c["n_shared_experts"])
        self.load = torch.zeros(experts)  # tokens each expert got in the last forward
        self.balance = torch.zeros(())  # sequence-wise balance loss (DeepSeek-V3, equation 17)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, hidden = x.shape
        flat = x.reshape(-1, hidden)
        score, index, weight = self.gate(flat)
        experts, top_k = score.shape[1], index.shape[1]
        order = index.flatten().argsort(stable=True)
        counts = torch.bincount(index.flatten(), minlength=experts)
        self.load = counts.float()
        chosen = torch.zeros_like(score).scatter_(1, index, 1.0).view(batch, length, experts).mean(1)
        share = (score / score.sum(-1, keepdim=True)).view(batch, length, experts).mean(1)
        self.balance = (chosen * experts / top_k * share).sum(-1).mean()
        token = order // top_k
        outputs = []
        for expert, rows in enumerate(flat[token].split(counts.tolist())):
            gate, up = (
                F.linear(rows, self.experts_gate_proj[expert]),
                F.linear(rows, self.experts_up_proj[expert]),
            )
            outputs.append(F.linear(F.silu(gate) * up, self.experts_down_proj[expert]))
        weighted = torch.cat(outputs).float() * weight.flatten()[order, None]
        routed = torch.zeros(flat.shape).index_add(0, token, weighted)
        return routed.view(x.shape) + self.shared_experts(x)


class Layer(nn.Module):
    def __init__(self, c: Config, index: int) -> None:
        super().__init__()
        dense = index < c["first_k_dense_replace"]
        self.self_attn = Attention(c)
        self.mlp = MLP(c["hidden_size"], c["intermediate_size"]) if dense else MixtureOfExperts(c)
        self.input_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.post_attention_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class MultiTokenPrediction(Layer):
    """hidden_i and the embedding of token i+1 predict token i+2 through the shared head (DeepSeek-V3, section 2.2)."""

    def __init__(self, c: Config, index: int) -> None:
        super().__init__(c, index)
        hidden, eps = c["hidden_size"], c["rms_norm_eps"]
        self.enorm, self.hnorm, self.eh_proj = (
            RMSNorm(hidden, eps),
            RMSNorm(hidden, eps),
            linear(2 * hidden, hidden),
        )
        self.shared_head = nn.ModuleDict({"norm": RMSNorm(hidden, eps)})

    def predict(self, embedding: Tensor, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        joined = self.eh_proj(torch.cat([self.enorm(embedding), self.hnorm(hidden)], -1))
        return self.shared_head["norm"](self(joined, cos, sin))


class DeepseekV3(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.config = c
        depth = c["num_hidden_layers"]
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        layers = [Layer(c, i) for i in range(depth)] + [MultiTokenPrediction(c, depth)]
        self.model.layers = nn.ModuleList(layers)
        self.model.norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.lm_head = linear(c["hidden_size"], c["vocab_size"])
        frequency = c["rope_theta"] ** -(torch.arange(0, c["qk_rope_head_dim"], 2) / c["qk_rope_head_dim"])
        angle = torch.outer(torch.arange(c["max_position_embeddings"]).float(), frequency)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                into_residual = "down_proj" in name or "o_proj" in name
                nn.init.normal_(parameter, std=c["initializer_range"] / (math.sqrt(2 * depth) if into_residual else 1))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids [B, S+1] -> logits for tokens 1…S [B, S, V], and the MTP module's for tokens 2…S+1 [B, S, V]."""
        length = ids.shape[1] - 1
        cos, sin = self.cos[:length], self.sin[:length]
        embedding = self.model.embed_tokens(ids)
        x = embedding[:, :-1]
        for layer in self.model.layers[:-1]:
            x = layer(x, cos, sin)
        hidden = self.model.norm(x)
        draft = self.model.layers[-1].predict(embedding[:, 1:], hidden, cos, sin)
        return self.lm_head(hidden), self.lm_head(draft)

    def mixtures(self) -> list[MixtureOfExperts]:
        return [layer.mlp for layer in self.model.layers if isinstance(layer.mlp, MixtureOfExperts)]

    def checkpoint(self) -> dict[str, Tensor]:
        """Tensors under the release's names: experts apart, the MTP layer with its copies of embedding and head."""
        tensors: dict[str, Tensor] = {}
        for name, value in self.state_dict().items():
            if ".mlp.experts_" in name:
                prefix, projection = name.split("experts_")
                for expert, weight in enumerate(value):
                    tensors[f"{prefix}experts.{expert}.{projection}.weight"] = weight.bfloat16()
            elif name.endswith("e_score_correction_bias"):
                tensors[name] = value.float()
            else:
                tensors[name] = value.bfloat16()
        mtp = f"model.layers.{self.config['num_hidden_layers']}"
        tensors[f"{mtp}.embed_tokens.weight"] = tensors["model.embed_tokens.weight"]
        tensors[f"{mtp}.shared_head.head.weight"] = tensors["lm_head.weight"]
        return {name: value.clone().contiguous() for name, value in tensors.items()}
