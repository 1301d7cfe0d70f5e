"""The pass back through the original model that measures output Hessians."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from llmc.contracts.progress import ProgressFunction
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.safetensors_file import SafetensorsWriter
from llmc.convert.tensor_names import ModuleName
from llmc.quant.gradients import backward
from llmc.quant.observed import Observed
from llmc.quant.output_hessians import OutputHessians, block_sizes, key_of

MOST_TOKENS = 1 << 16  # that are shown; the backward pass keeps what enters every layer on the disk


def shown_rows(ids: torch.Tensor) -> torch.Tensor:
    """Those of ids [N, L] that are shown, evenly spread."""
    most = max(1, MOST_TOKENS // ids.shape[1])
    return ids if len(ids) <= most else ids[torch.arange(most) * len(ids) // most]


def scratch_bytes(rows: int, length: int, hidden: int, layers: int) -> int:
    """Most bytes of activations and their gradients that lie on the disk at once, for ids [rows, length]."""
    tokens = min(rows, max(1, MOST_TOKENS // length)) * length
    return 4 * tokens * hidden * (layers + 3)


@dataclass
class OutputHessianPass:
    """Measures those of some modules, by one pass back through the original model.

    Attributes:
        modules: by their whole names
        folder: belongs to this checkpoint, these modules and these ids alone; what an interrupted pass left is taken up
    """

    checkpoint: Checkpoint
    modules: Collection[str]
    folder: Path
    _sums: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def run(
        self,
        ids: torch.Tensor,
        memory_budget: int,
        device: torch.device,
        progress: ProgressFunction,
        unchanged: Callable[[], None],
        tell: Callable[[str], None],
    ) -> None:
        """Arguments are those of `gradients.backward`."""
        backward(
            self.checkpoint,
            shown_rows(ids),
            self.folder,
            self._add,
            memory_budget=memory_budget,
            device=device,
            progress=progress,
            finish=self._finish,
            unchanged=unchanged,
            tell=tell,
        )

    def of(self, layer: int) -> OutputHessians:
        """Once it has run."""
        return OutputHessians(self._path(f"model.layers.{layer}"))

    def _path(self, place: str) -> Path:
        return self.folder / f"output-hessians-{place}.safetensors"

    def _add(self, seen: Observed) -> None:
        if seen.module not in self.modules:
            return
        sizes, gradient = block_sizes(seen.gradient.shape[1]), seen.gradient
        empty = [gradient.new_zeros(size, size) for size in sizes]
        sums = self._sums.setdefault(key_of(ModuleName.parse(seen.module).inside), empty)
        for total, part in zip(sums, gradient.split(sizes, 1), strict=True):
            total.addmm_(part.mT, part)

    def _finish(self, place: str) -> Iterable[Path]:
        if not self._sums:
            return ()
        path = self._path(place)
        with SafetensorsWriter(path) as writer:
            for key, blocks in sorted(self._sums.items()):
                for number, block in enumerate(blocks):
                    writer.add(f"{key}.{number}", block)
        self._sums.clear()
        return (path,)
