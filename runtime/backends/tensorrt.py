"""Whether the engines of TensorRT and TensorRT-RTX can run here."""

from __future__ import annotations

import importlib.metadata
import importlib.util

from llmc.errors import MachineError
from llmc.extras import install
from llmc.runtime.artifact import Artifact
from llmc.runtime.backends import BackendFactory, cuda_device
from llmc.runtime.backends.built_engines import BuiltEngine, built_engines
from llmc.runtime.backends.tensorrt_engine import EngineBackend
from llmc.runtime.plugins import kernel_set
from llmc.runtime.plugins import tensorrt as plugins
from llmc.tensorrt_package import TENSORRT, TENSORRT_RTX, TensorRTPackage


class EngineFactory(BackendFactory):
    """The backend of one package; of a model that several GPUs hold together, that of one rank."""

    def __init__(self, package: TensorRTPackage, preference: int, rank: int = 0, ranks: int = 1) -> None:
        self.package, self.name, self.preference = package, package.name, preference
        self.part = rank, ranks

    def unavailable(self, artifact: Artifact, provider: str | None = None, device: int | None = None) -> str | None:
        package = self.package
        if provider:
            return f"it has no providers; leave out {provider!r}"
        built = built_engines(package, artifact, self.part)
        if not built and (divided := built_engines(package, artifact, None)):
            ranks = min(each.description.ranks for each in divided)
            return f"its engines are for {ranks} GPUs together; say `--ranks {ranks}`, or load(…, ranks={ranks})"
        if not built:
            return f"the artifact has no engines; add `{package.name}` to the recipe's targets"
        if not package.installed or importlib.util.find_spec("cuda") is None:
            return f"the packages are not installed; {install(package.module)}"
        sm = cuda_device.compute_capability(device)
        if isinstance(sm, str):
            return sm
        matching = [each.description for each in built if sm in each.description.sm]
        if not any(each.graph == "main" for each in matching):
            known = ", ".join(map(str, sorted({n for each in built for n in each.description.sm})))
            add = "add it to `sm` of the target, if it is a choice" if package.jit else "build it on this machine"
            return f"its engines are for SM {known}, this GPU is SM {sm}; {add}"
        if missing := {name for each in matching for name in each.plugins} - plugins.names():
            return f"its engines need the plugin {min(missing)}, which this llmc does not have; upgrade llmc"
        installed = importlib.metadata.version(package.distribution)
        if others := {each.release for each in matching} - {installed}:  # releases do not read each other's engines
            version = min(others)
            need = f"pip install {package.distribution}=={version}"
            return f"its engines need release {version}, {installed} is installed; {need}"
        return _without_kernels(artifact, [each for each in built if each.description in matching], sm)

    def start(
        self, artifact: Artifact, threads: int | None, provider: str | None = None, device: int | None = None
    ) -> EngineBackend:
        sm = cuda_device.compute_capability(device)
        built = built_engines(self.package, artifact, self.part)
        found = {each.description.graph: each for each in built if sm in each.description.sm}
        for each in found.values():
            if each.kernels:
                artifact.verified(each.kernels)
        return EngineBackend(self.package, artifact, found, device)


def _without_kernels(artifact: Artifact, engines: list[BuiltEngine], sm: int) -> str | None:
    """Which of their plugins has no kernels that a GPU of `sm` loads."""
    for each in engines:
        if each.kernels:
            sets = kernel_set.read(artifact.file(each.kernels))
            for key in each.description.kernel_sets:
                try:
                    if key in sets:  # what is missing is told where the engine is loaded
                        sets[key].fitting(sm)
                except MachineError as error:
                    return str(error)
    return None


BACKENDS = (EngineFactory(TENSORRT, preference=2), EngineFactory(TENSORRT_RTX, preference=1))
