"""The solver stays within the bytes that a plan counts for it, by a count of what torch allocates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.allocated import Allocated
from support.random_checkpoint import DEEPSEEK_V3

from llmc.convert.families import family_of
from llmc.convert.model.causal_lm import empty_layer
from llmc.convert.safetensors_file import SafetensorsWriter
from llmc.quant.assign import Assignment
from llmc.quant.hessian import CalibrationStats
from llmc.quant.layer_solver import SolveBatch, Solved, linears, solve_batches, solve_modules
from llmc.quant.output_hessians import OutputHessians, block_sizes
from llmc.quant.schemes import scheme

LAYER = 1
WIDE = {"hidden_size": 512, "moe_intermediate_size": 256}


def measured_inputs(modules: dict[str, Any], batch: SolveBatch, crossed: bool) -> CalibrationStats:
    """Of every source of the batch, which all have inputs of their own."""
    measured, generator = CalibrationStats(), torch.Generator().manual_seed(0)
    for names in batch.members:
        x = torch.randn(256, modules[names[0]].in_features, generator=generator)  # of which 32 are held out
        measured.add(names[0].rpartition(".")[0] if "gate" in names[0] else names[0], x, x + 0.01 if crossed else None)
    return measured


@pytest.mark.parametrize("name", ["int4-g128", "int4-g128-asym", "fp8-block", "nvfp4"])
@pytest.mark.parametrize("method", ["gptq", "gptaq", "yaqa"])
@pytest.mark.parametrize("projections", [("gate_proj", "up_proj"), ("down_proj",)])
@pytest.mark.parametrize("matrices", [1, 3])
def test_solving_takes_no_more_than_the_plan_counts(
    name: str, method: str, projections: tuple[str, ...], matrices: int, tmp_path: Path
) -> None:
    spec = family_of(DEEPSEEK_V3).spec(DEEPSEEK_V3 | WIDE)
    layer = empty_layer(spec, LAYER).to_empty(device="cpu")
    modules = linears(layer)
    for module in modules.values():
        torch.nn.init.normal_(module.weight)
    assigned = {
        each: Assignment(scheme(name), method) for each in modules if each.endswith(projections) and ".experts." in each
    }
    (batch, *_) = solve_batches(assigned, modules)
    mine = {each: assigned[each] for names in batch.members for each in names}
    one = replace(batch, members=batch.members[:1]).working_bytes(modules, 0, on_gpu=False)
    room = matrices * one + one // 2
    assert batch.together(modules, room, on_gpu=True) == min(matrices, len(batch.members)) == matrices
    outputs = OutputHessians(tmp_path / "outputs.safetensors")
    with SafetensorsWriter(outputs.path) as writer:
        for projection in projections:
            rows = modules[f"mlp.experts.0.{projection}"].out_features
            for number, size in enumerate(block_sizes(rows)):
                writer.add(f"mlp.experts.{projection}.{number}", torch.eye(size))
    measured, solved = measured_inputs(modules, batch, batch.asymmetric), Solved(outputs)
    with Allocated() as allocated:
        solve_modules(modules, mine, measured, solved, room)
    kept = sum(each.qweight.nbytes + each.scales.nbytes for each in solved.weights.values())
    assert len(solved.weights) == len(mine)
    assert {report.method for report in solved.reports.values()} == {method}
    assert one // 3 < allocated.most - 2 * kept <= room
