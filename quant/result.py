"""What a pass over a model has done to it, put together from the records of its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from llmc.contracts.layer_errors import LayerErrors
from llmc.contracts.layer_record import LayerRecord, ModuleReport, PrunedExperts, RoleCounts
from llmc.errors import LlmcError
from llmc.quant.reference import Answers


@dataclass
class QuantizeResult:
    """What was done to every module and what it cost.

    Attributes:
        modules: name → how it was quantized
        roles: role → parameters that were to be quantized, and that are
        experts: layer → which experts stayed; empty when nothing was pruned
        layers: each decoder layer beside the original's, over the check text
        ppl_original, ppl: perplexity of the check text, original and quantized model (torch, float32)
        kl: mean KL divergence of the quantized model's predictions from the original's over that text, nats
        answers: what both say of it
    """

    modules: dict[str, ModuleReport] = field(default_factory=dict)
    roles: dict[str, RoleCounts] = field(default_factory=dict)
    experts: dict[str, PrunedExperts] = field(default_factory=dict)
    layers: list[LayerErrors] = field(default_factory=list)
    ppl_original: float = 0.0
    ppl: float = 0.0
    kl: float = 0.0
    answers: Answers | None = None

    @property
    def layer_errors(self) -> list[float]:
        """Relative distance of the quantized model's check activations from the original's, behind each layer."""
        return [each.error for each in self.layers]

    @classmethod
    def of(
        cls,
        records: Sequence[LayerRecord],
        ends: Mapping[str, ModuleReport] = MappingProxyType({}),
        roles_of_ends: Mapping[str, RoleCounts] = MappingProxyType({}),
    ) -> QuantizeResult:
        """What the layers' records say together, and reports of embedding and head; LlmcError where less was quantized
        than was to be.
        """
        result = cls(modules=dict(ends), roles=dict(roles_of_ends))
        for index, record in enumerate(records):
            prefix = f"model.layers.{index}."
            for name, report in record.reports.items():
                scheme = record.schemes.get(prefix + name)
                result.modules[prefix + name] = report.model_copy(update={"scheme": scheme})
            for role, counts in record.roles.items():
                result.roles[role] = result.roles.get(role, RoleCounts()) + counts
            if record.experts is not None:
                result.experts[str(index)] = record.experts
            if record.errors is not None:
                result.layers.append(record.errors)
        for role, counts in result.roles.items():
            if counts.expected != counts.quantized:
                raise LlmcError(
                    f"{role}: {counts.quantized:,} of {counts.expected:,} parameters were quantized; "
                    "this is a bug in llmc"
                )
        return result
