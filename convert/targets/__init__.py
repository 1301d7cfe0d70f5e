"""Targets: what a quantized checkpoint becomes in the end. One module or package each, named like the target.

A target is a module with three names:

    class Options(pydantic.BaseModel, extra="forbid")      what a recipe may say about it
    def check(spec, options, schemes) -> None              InputError for what `build` would refuse, before any work
    def build(checkpoint, options, directory, progress) -> TargetResult

`directory` is the artifact, in which the checkpoint's files already lie. A package that is not installed is a
MachineError.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from pydantic import BaseModel

from llmc.contracts.progress import ProgressFunction
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.spec import ModelSpec
from llmc.convert.tensor_names import TensorName
from llmc.errors import InputError


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
        notes.append("the inputs of routed experts are not rounded to FP8")
    return notes


class Target(Protocol):
    Options: type[BaseModel]

    def check(self, spec: ModelSpec, options: Any, schemes: Mapping[str, str]) -> None:
        """spec: after pruning; schemes: by module, of what is to be quantized."""

    def build(
        self, checkpoint: Checkpoint, options: Any, directory: Path, progress: ProgressFunction
    ) -> TargetResult: ...


def target_names() -> list[str]:
    """Every module of this package is a target; `tensorrt_rtx` is called `tensorrt-rtx`."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def target(name: str) -> Target:
    """The target of that name; InputError names the known ones."""
    if name not in target_names():
        raise InputError(f"unknown target {name!r}; known: {', '.join(target_names())}")
    return cast(Target, importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))
