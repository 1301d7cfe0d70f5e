"""Names of modules and tensors, taken apart and put together in one place.

They are llmc's own, by which blocks, graph and quantizer know a weight; how a family calls and joins them in its
checkpoints is `stored_names`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class ModuleName:
    """`model.layers.<layer>.<block>.<expert>.<projection>`, where what does not apply is left out.

    Attributes:
        layer: None: outside of the layers (`lm_head`), or the name is one inside a layer
        block: what the module belongs to: "self_attn", "mlp", "mlp.experts"; "" for a norm of the layer itself
        expert: number of a routed expert
        projection: the module's own name, "q_proj"; "" for a whole layer or expert
    """

    layer: int | None
    block: str
    expert: int | None
    projection: str

    @classmethod
    def parse(cls, name: str) -> ModuleName:
        """The name of any module; every name is one."""
        parts, layer, expert = name.split("."), None, None
        if len(parts) > 2 and parts[:2] == ["model", "layers"] and _NUMBER.fullmatch(parts[2]):
            layer, parts = int(parts[2]), parts[3:]
        at = len(parts) - 1
        if "experts" in parts:
            start = parts.index("experts") + 1
            if start < len(parts) and _NUMBER.fullmatch(parts[start]):
                at, expert = start, int(parts.pop(start))
        return cls(layer, ".".join(parts[: max(0, at)]), expert, ".".join(parts[max(0, at) :]))

    def __str__(self) -> str:
        layer = "" if self.layer is None else f"model.layers.{self.layer}"
        expert = "" if self.expert is None else str(self.expert)
        return ".".join(part for part in (layer, self.block, expert, self.projection) if part)

    @property
    def inside(self) -> str:
        """The name inside the layer."""
        return str(ModuleName(None, self.block, self.expert, self.projection))

    @property
    def parent(self) -> str:
        """The block, or the expert, that it is a projection of."""
        return str(ModuleName(self.layer, self.block, self.expert, ""))

    @property
    def part_of_layer(self) -> str:
        """The first component of the name inside the layer: "self_attn", "mlp", "eh_proj"."""
        return self.inside.partition(".")[0]

    @property
    def is_router(self) -> bool:
        """Whether its weights have one row per expert."""
        return (self.block, self.projection) == ("mlp", "gate")


@dataclass(frozen=True, slots=True)
class TensorName:
    """`<module>.<part>`: part is "weight", "bias", or one of those that a quantized weight is stored in."""

    module: ModuleName
    part: str

    @classmethod
    def parse(cls, name: str) -> TensorName:
        module, _, part = name.rpartition(".")
        return cls(ModuleName.parse(module), part)

    def __str__(self) -> str:
        module = str(self.module)
        return f"{module}.{self.part}" if module else self.part


def module_of(name: str) -> str:
    """The module that a tensor, whatever part it is, belongs to."""
    return name.rpartition(".")[0]


def part_of(name: str) -> str:
    """Which part of its module a tensor is: `TensorName.part`, without taking the rest apart."""
    return name.rpartition(".")[2]
