"""Targets: what a quantized checkpoint becomes in the end. Every module here that defines `TARGET` is one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from llmc.contracts.progress import ProgressFunction
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.quantized_weight import QuantSpec
from llmc.convert.spec import ModelSpec
from llmc.convert.tensor_names import TensorName
from llmc.registry import Registry

_Options = TypeVar("_Options", bound=BaseModel)


@dataclass
class TargetResult:
    """What a target wrote, as it goes into the manifest."""

    name: str
    files: dict[str, str]  # role -> path relative to the artifact
    weight_bytes: int  # of all weights the target uses, wherever they lie
    file_bytes: int  # of the files it wrote
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


def rounding_notes(checkpoint: Checkpoint, wider_cache: bool = True) -> list[str]:
    """What a graph does otherwise than a program that computes in FP8. wider_cache: not of codes."""
    notes = []
    if checkpoint.spec.fp8_cache and wider_cache:
        notes.append("the cache holds FP8's numbers in a wider type: as exact as an FP8 cache, and not as small")
    tensors = map(TensorName.parse, checkpoint.names())
    if any(checkpoint.activations(str(name.module)) for name in tensors if name.module.expert is not None):
        notes.append("the inputs of routed experts are not rounded")
    return notes


@dataclass(frozen=True)
class PlannedWeights:
    """What is known of a quantized checkpoint before it is made.

    Attributes:
        spec: Of the model, before pruning.
        nbytes: Of the whole checkpoint on disk.
        parameters: Role → what its schemes say of weights of any shape → how many weights.
    """

    spec: ModelSpec
    nbytes: int
    parameters: Mapping[str, Mapping[QuantSpec, int]]

    def in_fp8(self, *roles: str) -> int:
        """Return how many weights of these roles, or of all, are FP8."""
        return sum(count for spec, count in self._counts(*roles) if spec.code_type == "float8_e4m3fn")

    def in_fp4(self) -> dict[int, int]:
        """Return how many weights are FP4 in groups of so many inputs."""
        found = dict[int, int]()
        for spec, count in self._counts():
            if spec.code_type == "float4_e2m1fn":
                found[spec.block[1]] = found.get(spec.block[1], 0) + count
        return found

    def _counts(self, *roles: str) -> Iterator[tuple[QuantSpec, int]]:
        chosen = (found for role, found in self.parameters.items() if not roles or role in roles)
        return ((spec, count) for found in chosen for spec, count in found.items())


class Target(ABC, Generic[_Options]):
    """One target; a package that it needs and that is not installed is a MachineError.

    Attributes:
        name: As recipes call it.
        Options: What a recipe may say about it.
        takes_negative_scales: Whether it decodes integers by scales of either sign; TensorRT wants positive ones.
    """

    name: str
    Options: type[_Options]
    takes_negative_scales: bool = False

    def check(self, spec: ModelSpec, options: _Options, schemes: Mapping[str, str]) -> None:
        """Raise InputError for what `build` would refuse, before any work; most take every model.

        Args:
            spec: Of the model, after pruning.
            options: From the recipe.
            schemes: By module, of what is to be quantized.
        """

    def extra_bits(
        self, spec: ModelSpec, options: _Options, role: str, stacked: bool, kind: QuantSpec, shape: tuple[int, int]
    ) -> float | None:
        """Return how many bits more a weight takes where it is used than on disk; None: it is used as plain numbers.

        Args:
            spec: Of the model, after pruning.
            options: From the recipe.
            role: Of the weight.
            stacked: Whether it is one of several experts.
            kind: What its scheme says of it.
            shape: [out, in]
        """
        return 0.0

    @abstractmethod
    def build(
        self, checkpoint: Checkpoint, options: _Options, directory: Path, progress: ProgressFunction
    ) -> TargetResult:
        """Write the target into `directory`, the artifact, in which the checkpoint's files already lie."""

    def estimate_bytes(self, weights: PlannedWeights, options: _Options) -> int:
        """Return how many bytes `build` will add to the artifact: weights of its own, if it does not say otherwise."""
        return weights.nbytes


targets: Registry[Target[Any]] = Registry("target", __name__, "TARGET")
target = targets.get
