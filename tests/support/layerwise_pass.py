"""A pass that prunes and quantizes layer by layer, as tests run it, stop it and compare what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llmc.convert.checkpoint import Checkpoint
from llmc.quant.assign import Rule
from llmc.quant.layerwise import quantize
from llmc.quant.prune import Pruning
from llmc.quant.result import QuantizeResult
from support.folder_contents import contents
from support.random_checkpoint import DEEPSEEK_V3

# With experts that a third can be pruned of, in groups, and widths that groups of 32 divide; the last layer is MTP's.
PRUNABLE = DEEPSEEK_V3 | {"moe_intermediate_size": 64, "intermediate_size": 96, "n_routed_experts": 12}


class Stop(Exception):
    """What a test raises in the middle of a pass."""


def random_ids(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 96, (rows, length), generator=torch.Generator().manual_seed(seed))


def run_pass(
    source: Path,
    directory: Path,
    rules: list[Rule],
    calibration: torch.Tensor,
    check: torch.Tensor,
    keep: float | None = None,
    **others: Any,
) -> QuantizeResult:
    """Quantize into `out`, with `work` beside it.

    Args:
        keep: The share of experts that is kept; None: all.
        others: As `quantize` takes them.
    """
    pruning = Pruning(keep) if keep else None
    others = {"progress": lambda *_: None} | others
    out, work = directory / "out", directory / "work"
    return quantize(Checkpoint.open(source), rules, pruning, calibration, check, out, work, **others)


def files(directory: Path) -> dict[str, bytes]:
    """What such a pass wrote, by name."""
    return contents(directory / "out")
