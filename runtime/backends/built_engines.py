"""The engines of an artifact.

What an engine is for stands in the .json beside it, which is read before the engine is: deserializing the wrong one
can end the process.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmc.errors import InputError
from llmc.runtime.artifact import Artifact
from llmc.tensorrt_package import TensorRTPackage

if TYPE_CHECKING:
    from llmc.contracts.engine import EngineDescription


@dataclass(frozen=True)
class BuiltEngine:
    """An engine of an artifact: where it lies, and the name of its plugins' kernels there."""

    description: EngineDescription
    path: Path
    kernels: str | None


def built_engines(
    package: TensorRTPackage, artifact: Artifact, part: tuple[int, int] | None = (0, 1)
) -> list[BuiltEngine]:
    """The engines that the artifact has for a package, by the .json of each; InputError for broken ones.

    Args:
        part: a rank, and of how many; None: all engines
    """
    from llmc.contracts.engine import EngineDescription
    from llmc.contracts.part import checked

    found = []
    for name in artifact.target_files(package.name).values():
        if name.endswith(".json"):
            said = checked(EngineDescription, artifact.read_json(name), f"{artifact.path / name}: broken")
            engine = artifact.beside(name, said.engine)
            if artifact.files[engine].sha256 != said.sha256:
                raise InputError(f"{artifact.path / engine}: not the engine that was built; download it again")
            if part not in (None, (said.rank, said.ranks)):
                continue
            kernels = artifact.beside(name, said.kernels) if said.plugins and said.kernels else None
            found.append(BuiltEngine(said, artifact.file(engine), kernels))
    return found
