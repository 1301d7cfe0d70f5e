"""The vision tower of an artifact, in ONNX Runtime, whatever runs the decoder."""

from __future__ import annotations

import importlib.util
from typing import Any

from llmc.errors import InputError, MachineError
from llmc.runtime.artifact import Artifact
from llmc.runtime.backends import CLOSED, FloatArray

_TARGET = "onnxruntime"  # whose graph it is


class VisionTower:
    """Loaded for the first image. width: that of the features that the decoder takes; 0: it takes none."""

    def __init__(
        self, artifact: Artifact, width: int, threads: int | None, provider: str, device: int | None = None
    ) -> None:
        self._artifact, self._width = artifact, width
        self._threads, self._provider, self._device = threads, provider, device
        self._session: Any = None
        self._closed = False

    @property
    def available(self) -> bool:
        """Whether there is one, and something that runs it."""
        built = self._width > 0 and self._artifact.target_file(_TARGET, "vision") is not None
        return built and importlib.util.find_spec("onnxruntime") is not None

    def features(self, pixels: FloatArray) -> FloatArray:
        """See `Backend.image_features`."""
        if self._closed:
            raise InputError(CLOSED)
        if self._session is None:
            self._session = self._opened()
        try:
            (found,) = self._session.run(["image_features"], {"pixels": pixels})
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise MachineError(f"ONNX Runtime failed: {' '.join(str(error).split())}") from error
        features: FloatArray = found
        return features

    def close(self) -> None:
        self._session, self._closed = None, True

    def _opened(self) -> Any:
        """InputError unless it makes features of that width from the tiles that the manifest tells of."""
        from llmc.runtime.backends.onnxruntime import open_session

        name, record = self._artifact.target_file(_TARGET, "vision"), self._artifact.manifest.model.images
        assert name is not None
        session = open_session(self._artifact.graph(name), self._threads, self._provider, True, self._device)
        inputs = {node.name: node.shape[1:] for node in session.get_inputs()}
        outputs = {node.name: node.shape[1:] for node in session.get_outputs()}
        side = record.tile_size if record else 0
        if inputs != {"pixels": [3, side, side]} or outputs != {"image_features": [self._width]}:
            raise InputError(
                f"{self._artifact.path}: its vision graph is for other tiles or another model; build it again"
            )
        return session
