"""Engines of TensorRT, built on this kind of machine."""

from __future__ import annotations

from llmc.runtime.artifact import Artifact
from llmc.runtime.backends import tensorrt_engine

PACKAGE = tensorrt_engine.Package("tensorrt", "tensorrt", "tensorrt-cu13", jit=False)
NAME = PACKAGE.name
PREFERENCE = 2


def unavailable(artifact: Artifact, provider: str | None = None) -> str | None:
    return tensorrt_engine.unavailable(PACKAGE, artifact, provider)


def start(artifact: Artifact, threads: int | None, provider: str | None = None) -> tensorrt_engine.EngineBackend:
    return tensorrt_engine.start(PACKAGE, artifact)
