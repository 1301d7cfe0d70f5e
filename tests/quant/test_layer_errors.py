"""Layers beside the original's: against whole models, token by token, set by set."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.layerwise_pass import random_ids, run_pass

from llmc.contracts.layer_errors import LayerErrors
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import CausalLM, MixtureOfExperts
from llmc.quant.assign import Rule
from llmc.quant.layer_errors import compare_routing
from llmc.quant.result import QuantizeResult

CHECK = random_ids(4, 24, 1)


@pytest.fixture(scope="module")
def pruned(prunable: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QuantizeResult]:
    folder = tmp_path_factory.mktemp("pruned")
    rules = [Rule("experts", "int4-g32"), Rule("attention", "fp8-block", "rtn")]
    return folder / "out", run_pass(prunable, folder, rules, random_ids(48, 32), CHECK, 2 / 3)


def whole(path: Path) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
    """Hidden states [T, H] behind every decoder layer, and what its router chose [T, K], of a model in memory."""
    model = CausalLM.load(Checkpoint.open(path))
    x, hidden, chosen = model.embed(CHECK), list[torch.Tensor](), list[torch.Tensor | None]()
    for layer in model.layers[: model.spec.num_layers]:
        seen: list[torch.Tensor] = []
        if isinstance(layer.mlp, MixtureOfExperts):
            layer.mlp.gate.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out[0]))
        with torch.no_grad():
            x = layer(x, torch.arange(24).expand(4, -1))
        hidden.append(x.flatten(0, 1).double())
        chosen.append(seen[0] if seen else None)
    return hidden, chosen


def test_a_pass_records_what_whole_models_show(prunable: Path, pruned: tuple[Path, QuantizeResult]) -> None:
    out, result = pruned
    before, after = whole(prunable), whole(out)
    assert [each.layer for each in result.layers] == [0, 1, 2]
    assert result.layer_errors == [each.error for each in result.layers]
    for found, x, y, mine, its in zip(result.layers, before[0], after[0], before[1], after[1], strict=True):
        assert found.error == pytest.approx(((y - x).norm() / x.norm()).item(), rel=1e-4)
        cosine = (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))
        assert found.cosine == pytest.approx(cosine.mean().item(), rel=1e-5)
        if mine is None or its is None:
            assert found.routing is None
            continue
        survivors = result.experts[str(found.layer)].survivors
        pairs = [({*a}, {survivors[e] for e in b}) for a, b in zip(mine.tolist(), its.tolist(), strict=True)]
        routing = found.routing
        assert routing is not None
        assert routing.agreement == pytest.approx(sum(len(a & b) for a, b in pairs) / mine.numel(), rel=1e-5)
        assert routing.identical == pytest.approx(sum(a == b for a, b in pairs) / len(pairs), rel=1e-5)
        for load, side in ((routing.load_original, 0), (routing.load, 1)):
            assert load == pytest.approx([sum(e in pair[side] for pair in pairs) / 96 for e in range(12)], rel=1e-5)
        assert routing.removed == sorted({*range(12)} - {*survivors}) and not any(
            routing.load[e] for e in routing.removed
        )


def test_sets_are_compared_whatever_their_order() -> None:
    before = [torch.tensor([[0, 1], [2, 3]]), torch.tensor([[1, 2]])]
    after = [torch.tensor([[1, 0], [1, 0]]), torch.tensor([[1, 2]])]
    found = compare_routing(before, after, 4, [1, 2, 3])
    assert found is not None and found.removed == [0]
    assert found.agreement == pytest.approx(3 / 6, abs=1e-6) and found.identical == 0
    assert found.load == pytest.approx([0, 2 / 3, 1, 1 / 3], abs=1e-6)
    assert compare_routing([], [], 0, None) is None


def test_a_record_is_read_as_it_was_written(pruned: tuple[Path, QuantizeResult]) -> None:
    for each in pruned[1].layers:
        assert LayerErrors.model_validate(each.to_json()) == each
