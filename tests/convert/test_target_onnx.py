"""The portable graph in plain ONNX Runtime against the torch blocks on the same quantized checkpoint."""

from __future__ import annotations

import onnx
import pytest
import torch
from graph_session import GraphSession, divergences
from pydantic import ValidationError
from quantized_checkpoint import CASES, limit_of, quantized_checkpoint

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import CausalLM
from llmc.convert.targets import TargetResult, target
from llmc.errors import InputError


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
    with pytest.raises(InputError, match=r"unknown target 'onnxrt'; known: onnx, onnxruntime"):
        target("onnxrt")
    with pytest.raises(ValidationError):
        target("onnxruntime").Options(accuracy=1)


def compare_with_torch(checkpoint: Checkpoint, result: TargetResult) -> None:
    """Prefill of rows of unequal length, then steps of one token, then the MTP graph."""
    model, limit = CausalLM.load(checkpoint), limit_of(checkpoint)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 96, (3, 24), generator=generator)
    hidden = model.hidden(ids)
    expected = model.logits(hidden)
    graph = GraphSession(checkpoint.path / result.files["main"], batch=3)

    # Rows are 12, 7 and 1 tokens long; behind these lies padding.
    lengths = [12, 7, 1]
    padded = torch.stack(
        [
            torch.cat((row[:n], torch.randint(0, 96, (12 - n,), generator=generator)))
            for row, n in zip(ids, lengths, strict=True)
        ]
    )
    logits, _ = graph.step(padded, [0, 0, 0], [[n - 1] for n in lengths])
    rows = torch.arange(3)
    assert divergences(expected[rows, torch.tensor(lengths) - 1][:, None], logits).max() < limit
    for step in range(3):
        at = torch.tensor(lengths) + step
        logits, _ = graph.step(ids[rows, at][:, None], at.tolist())
        assert divergences(expected[rows, at][:, None], logits).max() < limit
    # Several tokens at once behind a cache, after rolling back two.
    at = torch.tensor(lengths) + 1
    several = torch.stack([row[n : n + 5] for row, n in zip(ids, at, strict=True)])
    logits, _ = graph.step(several, at.tolist())
    wanted = torch.stack([row[n : n + 5] for row, n in zip(expected, at, strict=True)])
    assert divergences(wanted, logits).max() < limit

    if "mtp" not in result.files:
        return
    logits, states = GraphSession(checkpoint.path / result.files["main"], batch=3).step(ids, [0, 0, 0])
    assert states is not None
    torch.testing.assert_close(states, hidden, rtol=0, atol=10 * limit**0.5)
    drafter = GraphSession(checkpoint.path / result.files["mtp"], batch=3)
    expected = model.logits(model.mtp(ids[:, 1:], hidden[:, :-1]))
    drafted, _ = drafter.step(ids[:, 1:12], [0, 0, 0], previous_hidden=states[:, :11])
    assert divergences(expected[:, :11], drafted).max() < limit
    drafted, _ = drafter.step(ids[:, 12:13], [11, 11, 11], previous_hidden=states[:, 11:12])
    assert divergences(expected[:, 11:12], drafted).max() < limit
