"""The portable graph in plain ONNX Runtime against the torch blocks on the same quantized checkpoint."""

from __future__ import annotations

import onnx
import pytest
from pydantic import ValidationError
from support.graph_comparison import compare_with_torch
from support.quantized_checkpoint import CASES, quantized_checkpoint

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.targets import TargetResult, target
from llmc.errors import InputError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=CASES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, TargetResult]:
    checkpoint = quantized_checkpoint(tmp_path_factory.mktemp("onnx"), *CASES[request.param])
    portable = target("onnx")
    return checkpoint, portable.build(checkpoint, portable.Options(), checkpoint.path, lambda *_: None)


def test_checker(built: tuple[Checkpoint, TargetResult]) -> None:
    checkpoint, result = built
    for role in result.files.keys() - {"data"}:
        onnx.checker.check_model(checkpoint.path / result.files[role], full_check=True)


def test_equals_torch(built: tuple[Checkpoint, TargetResult]) -> None:
    compare_with_torch(*built)


def test_unknown_target() -> None:
    with pytest.raises(InputError, match=r"unknown target 'onnxrt'; did you mean 'onnx'. .known: .*onnx, onnxruntime"):
        target("onnxrt")
    with pytest.raises(ValidationError):
        target("onnxruntime").Options(accuracy=1)
