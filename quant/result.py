"""What a pass over a model has done to it, put together from the records of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from llmc.errors import LlmcError


@dataclass
class QuantizeResult:
    """JSON-able; what was done to every module and what it cost.

    modules:  name → {scheme, method, output_error | weight_error, tokens, damping, fallback?}
    roles:    role → {expected, quantized (parameters), bytes}
    survivors: layer → original numbers of the experts that stayed; empty when nothing was pruned
    layer_errors: relative distance of the quantized model's check activations from the original's, after each layer
    expert_tokens: layer → calibration tokens per expert, before pruning
    super_experts: layer → original numbers of experts that pruning had to spare
    ppl_original, ppl: perplexity of the check text, original and quantized model (torch, float32)
    kl: mean KL divergence of the quantized model's predictions from the original's over that text, nats
    """

    modules: dict[str, dict[str, Any]] = field(default_factory=dict)
    roles: dict[str, dict[str, int]] = field(default_factory=dict)
    survivors: dict[str, list[int]] = field(default_factory=dict)
    layer_errors: list[float] = field(default_factory=list)
    expert_tokens: dict[str, list[int]] = field(default_factory=dict)
    super_experts: dict[str, list[int]] = field(default_factory=dict)
    ppl_original: float = 0.0
    ppl: float = 0.0
    kl: float = 0.0

    @classmethod
    def of(cls, records: Sequence[dict[str, Any]]) -> QuantizeResult:
        """What the layers' records say together; LlmcError where less was quantized than was to be."""
        result = cls()
        for index, record in enumerate(records):
            prefix = f"model.layers.{index}."
            for name, report in record["reports"].items():
                result.modules[prefix + name] = {"scheme": record["schemes"].get(prefix + name)} | report
            for role, counts in record["roles"].items():
                total = result.roles.setdefault(role, {"expected": 0, "quantized": 0})
                for key, count in counts.items():
                    total[key] += count
            if "survivors" in record:
                result.survivors[str(index)] = record["survivors"]
                result.expert_tokens[str(index)] = record["expert_tokens"]
                result.super_experts[str(index)] = record["super_experts"]
            if "error" in record:
                result.layer_errors.append(record["error"])
        for role, counts in result.roles.items():
            if counts["expected"] != counts["quantized"]:
                raise LlmcError(
                    f"{role}: {counts['quantized']:,} of {counts['expected']:,} parameters were quantized; "
                    "this is a bug in llmc"
                )
        return result

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
