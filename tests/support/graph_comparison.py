"""Graphs as they are lowered for a target, run by ONNX Runtime against the torch blocks."""

from __future__ import annotations

import onnx_ir as ir
import torch

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.graph.write import write
from llmc.convert.model import CausalLM
from llmc.convert.targets import TargetResult
from support.graph_session import GraphSession, divergences
from support.quantized_checkpoint import limit_of

WIDTHS = (1, 2)  # of steps that engines have a profile for


def compare_with_torch(checkpoint: Checkpoint, result: TargetResult) -> float:
    """Prefill of rows of unequal length, then steps of one token, then the MTP graph. The largest divergence."""
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
    rows, found = torch.arange(3), []
    found.append(divergences(expected[rows, torch.tensor(lengths) - 1][:, None], logits).max().item())
    for step in range(3):
        at = torch.tensor(lengths) + step
        logits, _ = graph.step(ids[rows, at][:, None], at.tolist())
        found.append(divergences(expected[rows, at][:, None], logits).max().item())
    # Several tokens at once behind a cache, after rolling back two.
    at = torch.tensor(lengths) + 1
    several = torch.stack([row[n : n + 5] for row, n in zip(ids, at, strict=True)])
    logits, _ = graph.step(several, at.tolist())
    wanted = torch.stack([row[n : n + 5] for row, n in zip(expected, at, strict=True)])
    found.append(divergences(wanted, logits).max().item())

    assert max(found) < limit
    if "mtp" not in result.files:
        return max(found)
    logits, states = GraphSession(checkpoint.path / result.files["main"], batch=3).step(ids, [0, 0, 0])
    assert states is not None
    hidden = model.hidden(ids, for_mtp=True)
    torch.testing.assert_close(states, hidden, rtol=0, atol=10 * limit**0.5)
    drafter = GraphSession(checkpoint.path / result.files["mtp"], batch=3)
    expected = model.logits(model.mtp(ids[:, 1:], hidden[:, :-1]))
    drafted, _ = drafter.step(ids[:, 1:12], [0, 0, 0], previous_hidden=states[:, :11])
    found.append(divergences(expected[:, :11], drafted).max().item())
    drafted, _ = drafter.step(ids[:, 12:13], [11, 11, 11], previous_hidden=states[:, 11:12])
    found.append(divergences(expected[:, 11:12], drafted).max().item())
    assert max(found) < limit
    return max(found)


def write_graphs(checkpoint: Checkpoint, models: dict[str, ir.Model]) -> TargetResult:
    files = {role: f"lowered/{role}.onnx" for role in models}
    return write("tensorrt-rtx", models, checkpoint.path, files, lambda *_: None)


def compare_narrow_steps(checkpoint: Checkpoint, result: TargetResult) -> None:
    """Steps of two tokens and of one behind a cache, rows of unequal length, and tokens taken back."""
    model, limit = CausalLM.load(checkpoint), limit_of(checkpoint)
    ids = torch.randint(0, 96, (2, 24), generator=torch.Generator().manual_seed(1))
    hidden = model.hidden(ids)
    runs: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = {}
    runs["main"] = ids, model.logits(hidden), None
    if "mtp" in result.files:
        hidden = model.hidden(ids, for_mtp=True)
        runs["mtp"] = (ids[:, 1:], model.logits(model.mtp(ids[:, 1:], hidden[:, :-1])), hidden)
    for role, (tokens, expected, previous) in runs.items():
        graph = GraphSession(checkpoint.path / result.files[role], batch=2)
        for start, width in (([0, 0], 9), ([9, 6], 2), ([11, 8], 1), ([12, 9], 2), ([13, 9], 2), ([15, 11], 4)):
            at = torch.tensor([[0], [1]]), torch.tensor(start)[:, None] + torch.arange(width)
            logits, _ = graph.step(tokens[at], start, previous_hidden=None if previous is None else previous[at])
            assert divergences(expected[at], logits).abs().max() < limit, (role, start, width)
