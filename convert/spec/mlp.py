"""MLPs, dense and of experts, and what chooses these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmc.convert.spec.module import GateSpec, LinearSpec, MatrixSpec, ModuleSpec


@dataclass(frozen=True)
class ClampedSwiGLU:
    """`(up + 1) * gate * sigmoid(alpha * gate)`, with the gate at most `limit`, and up between -`limit` and `limit`
    (gpt-oss).
    """

    alpha: float
    limit: float


Activation = Literal["silu", "gelu_tanh", "relu2"] | ClampedSwiGLU


@dataclass(frozen=True)
class DenseMLPSpec:
    """A gated MLP: down(activation(gate(x)) * up(x)). Also one routed expert, or the shared experts as one.

    Attributes:
        activation: "silu" (SwiGLU), GELU in its tanh form (GeGLU), or one that says what becomes of gate and up;
            "relu2": none is gated, down(relu(up(x))^2)
        bias: whether all three projections have one
    """

    intermediate_size: int
    activation: Activation = "silu"
    bias: bool = False

    @property
    def gated(self) -> bool:
        return self.activation != "relu2"

    def modules(self, hidden_size: int) -> dict[str, ModuleSpec]:
        """What has weights, by its name in `mlp`."""
        gate = LinearSpec(self.intermediate_size, hidden_size, self.bias, reads_block=True)
        down = LinearSpec(hidden_size, self.intermediate_size, self.bias)
        if not self.gated:
            return {"up_proj": gate, "down_proj": down}
        return {"gate_proj": gate, "up_proj": gate, "down_proj": down}


@dataclass(frozen=True)
class RouterSpec:
    """Group-limited top-k routing (DeepSeek-V3, section 2.1.2). One group means plain top-k.

    Attributes:
        group_score: what ranks a group: the sum of its two best experts, or the best one (DeepSeek-V2)
    """

    num_experts: int
    top_k: int
    num_groups: int
    top_k_groups: int
    scoring: Literal["sigmoid", "softmax"]
    selection_bias: bool  # e_score_correction_bias: added for selection only
    normalize: bool  # weights of the chosen experts sum to one before scaling
    scaling_factor: float
    group_score: Literal["best two", "best"] = "best two"
    bias: bool = False  # of the scores


@dataclass(frozen=True)
class MixtureOfExpertsSpec:
    """Routed experts, and shared ones.

    Attributes:
        shared_gate: whether the sigmoid of a score of its own, by `shared_expert_gate`, multiplies what the shared
            expert makes (Qwen3-Next)
        latent_size: channels that routed experts read and make, between two projections for all of them (LatentMoE);
            None: those of the model
    """

    router: RouterSpec
    intermediate_size: int
    shared_intermediate_size: int  # 0: no shared expert
    activation: Activation = "silu"
    bias: bool = False  # of all projections of routed experts
    shared_gate: bool = False
    latent_size: int | None = None

    @property
    def expert(self) -> DenseMLPSpec:
        """A routed expert."""
        return DenseMLPSpec(self.intermediate_size, self.activation, self.bias)

    @property
    def shared_experts(self) -> DenseMLPSpec | None:
        return DenseMLPSpec(self.shared_intermediate_size, self.activation) if self.shared_intermediate_size else None

    def modules(self, hidden_size: int) -> dict[str, ModuleSpec]:
        """What has weights, by its name in `mlp`."""
        router, expert = self.router, self.expert.modules(self.latent_size or hidden_size)
        found: dict[str, ModuleSpec] = {
            "gate": GateSpec(router.num_experts, hidden_size, router.selection_bias, router.bias)
        }
        for number in range(router.num_experts):
            found |= {f"experts.{number}.{name}": module for name, module in expert.items()}
        shared = self.shared_experts.modules(hidden_size) if self.shared_experts else {}
        if self.latent_size is not None:
            found["fc1_latent_proj"] = MatrixSpec(self.latent_size, hidden_size)
            found["fc2_latent_proj"] = MatrixSpec(hidden_size, self.latent_size)
        if self.shared_gate:
            found["shared_expert_gate"] = GateSpec(1, hidden_size, selection_bias=False)
        return found | {f"shared_experts.{name}": module for name, module in shared.items()}
