"""The upper rungs of the ladder: graphs of each line's artifact, and engines."""

from __future__ import annotations

import pytest
from support.ladder import Climb, SmallModel
from support.model_lines import LINES

from llmc.errors import InputError, MissingPackageError

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("line", LINES, ids=lambda line: line.name)]


def test_graphs(climb: Climb, architecture: SmallModel) -> None:
    """ONNX Runtime, with the target of its own and the portable graph, computes the distributions that torch does:
    prefill of rows of unequal length, steps behind a cache, and the layer for multi-token prediction.
    """
    try:
        climb.note(difference=max(architecture.divergences.values()))
    except InputError as error:
        climb.hole(error)


def test_engine(climb: Climb, architecture: SmallModel) -> None:
    """TensorRT-RTX compiles it, in a process of its own."""
    try:
        climb.note(bytes=architecture.engine_bytes)
    except (InputError, MissingPackageError) as error:
        climb.hole(error)
