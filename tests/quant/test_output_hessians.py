"""What two-sided rounding knows of outputs, and passes over a model that round by it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.layerwise_pass import Stop, files, random_ids, run_pass

from llmc.contracts.progress import ProgressFunction
from llmc.convert.checkpoint import Checkpoint
from llmc.quant import output_hessian_pass, output_hessians
from llmc.quant.assign import Rule
from llmc.quant.gradients import Observed, backward
from llmc.quant.layerwise import QuantizeOptions
from llmc.quant.output_hessian_pass import scratch_bytes, shown_rows
from llmc.quant.result import QuantizeResult

CPU = torch.device("cpu")
SCHEMES = {"experts": "int4-g32", "attention": "fp8-channel", "mtp": "fp8-channel", "lm_head": "int4-g32"}
RULES = [Rule(role, name, "yaqa") for role, name in SCHEMES.items()]
IDS = random_ids(24, 16)


def run(source: Path, directory: Path, progress: ProgressFunction = lambda *_: None) -> QuantizeResult:
    options = QuantizeOptions(1 << 28)
    return run_pass(source, directory, RULES, IDS, IDS[:2], 2 / 3, progress=progress, options=options)


@pytest.fixture(scope="module")
def finished(prunable: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QuantizeResult]:
    directory = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output_hessians, "WIDEST", 40)
        return directory, run(prunable, directory)


def test_every_layer_is_rounded_by_both_sides(finished: tuple[Path, QuantizeResult]) -> None:
    """The one for multi-token prediction too, and experts by their numbers after pruning; not the head."""
    _, result = finished
    methods = {name: report.method for name, report in result.modules.items()}
    assert methods.pop("lm_head") == "gptaq" and set(methods.values()) == {"yaqa"}
    assert {int(name.split(".")[2]) for name in methods} == {0, 1, 2, 3}
    for report in result.modules.values():
        assert report.output_error is not None and report.nearest_error is not None
        assert report.output_error <= 1.01 * report.nearest_error


def test_blocks_are_sums_over_gradients_and_experts_share_theirs(
    prunable: Path, finished: tuple[Path, QuantizeResult], tmp_path: Path
) -> None:
    seen: dict[str, list[torch.Tensor]] = {}

    def visit(one: Observed) -> None:
        seen.setdefault(one.module, []).append(one.gradient)

    backward(Checkpoint.open(prunable), IDS, tmp_path, visit)
    found = output_hessians.OutputHessians(
        finished[0] / "work" / "gradients" / "output-hessians-model.layers.1.safetensors"
    )
    for name in ("self_attn.o_proj", "mlp.experts.7.down_proj"):
        start, end = f"model.layers.1.{name}".split("7") if "7" in name else (f"model.layers.1.{name}", "")
        parts = [
            part for module, each in seen.items() if module.startswith(start) and module.endswith(end) for part in each
        ]
        gradient = torch.cat(parts)
        blocks, begin = found.blocks(name, CPU), 0
        assert [len(block) for block in blocks] == sizes_of_at_most_40(gradient.shape[1]) and len(blocks) > 1
        for block in blocks:
            part = gradient[:, begin : begin + len(block)]
            torch.testing.assert_close(block, part.mT @ part, rtol=1e-4, atol=1e-5 * block.abs().max().item())
            begin += len(block)
    assert found.blocks("mlp.shared_experts.up_proj", CPU) == []  # no rule asks for it


def sizes_of_at_most_40(rows: int) -> list[int]:
    count = -(-rows // 40)
    return [rows * (i + 1) // count - rows * i // count for i in range(count)]


BACK = "output Hessians, gradients, layer"


@pytest.mark.parametrize("where", [(f"{BACK} 2", 0), ("down", 2)])
def test_an_interrupted_pass_ends_in_the_same_bytes(
    where: tuple[str, int],
    prunable: Path,
    finished: tuple[Path, QuantizeResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(output_hessians, "WIDEST", 40)
    phases: list[tuple[str, int]] = []

    def interrupt(phase: str, done: int, total: int, layer: int, layers: int) -> None:
        if (phase, layer) == where:
            raise Stop

    with pytest.raises(Stop):
        run(prunable, tmp_path, interrupt)
    run(prunable, tmp_path, lambda phase, done, total, layer, layers: phases.append((phase, layer)))
    assert files(tmp_path) == files(finished[0])
    assert where in phases and (f"{BACK} 4", 0) not in phases  # that was shown already


def test_only_so_many_rows_are_shown_and_their_bytes_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_hessian_pass, "MOST_TOKENS", 100)
    assert shown_rows(IDS).tolist() == IDS[[0, 4, 8, 12, 16, 20]].tolist()
    assert scratch_bytes(24, 16, 8, 2) == scratch_bytes(6, 16, 8, 2) == 4 * 6 * 16 * 8 * 5
