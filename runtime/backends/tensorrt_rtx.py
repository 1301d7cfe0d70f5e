"""Engines of TensorRT-RTX."""

from __future__ import annotations

from llmc.runtime.artifact import Artifact
from llmc.runtime.backends import tensorrt_engine

PACKAGE = tensorrt_engine.Package("tensorrt-rtx", "tensorrt_rtx", "tensorrt-rtx-cu13", jit=True)
NAME = PACKAGE.name
PREFERENCE = 1


def unavailable(artifact: Artifact, provider: str | None = None) -> str | None:
    return tensorrt_engine.unavailable(PACKAGE, artifact, provider)


def start(artifact: Artifact, threads: int | None, provider: str | None = None) -> tensorrt_engine.EngineBackend:
    return tensorrt_engine.start(PACKAGE, artifact)
