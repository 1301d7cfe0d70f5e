"""Embedding and head, on a model's way through the pass: what the text enters by, and what its logits are made with.

The embedding is rounded before the first layer, which then reads what the quantized model will read; a head of its own
is solved behind the last one, by the calibration text as it arrives there. One matrix for both is solved as a head, but
before the first layer, by the text as it arrives behind the original's last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import nn

from llmc.contracts.layer_record import ModuleReport, RoleCounts
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import Linear, load_embedding, load_final_norm
from llmc.convert.quantized_weight import QuantizedWeight
from llmc.convert.spec import LinearSpec, ModelSpec
from llmc.quant.activation_file import ActivationFile
from llmc.quant.assign import Assignment, end_modules
from llmc.quant.hessian import CalibrationStats, HessianStats
from llmc.quant.layer_solver import Solved, round_modules, solve_modules

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
# Weights that are worked on at once: a vocabulary's rows are many, and each takes a dozen temporaries.
ROWS_TOGETHER = 1 << 25
_UNIT = 128  # rows that a block may span
_ERRORS = "weight_error", "output_error", "nearest_error"


@dataclass
class Ends:
    """What becomes of embedding and head.

    Attributes:
        assigned: module → scheme and method, of those that are to be quantized
        device: where they are worked on
        tied: finds what a head reads that is the embedding, too
        room: bytes that may be worked on at once
    """

    checkpoint: Checkpoint
    assigned: dict[str, Assignment]
    device: torch.device
    tied: Callable[[], HessianStats]
    room: int
    weights: dict[str, QuantizedWeight] = field(default_factory=dict)
    reports: dict[str, ModuleReport] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        assigned: dict[str, Assignment],
        device: torch.device,
        tied: Callable[[], HessianStats],
        room: int,
    ) -> Ends:
        """Those of all assigned modules that are ends."""
        mine = {module: assigned[module] for module in end_modules(checkpoint) if module in assigned}
        return cls(checkpoint, mine, device, tied, room)

    @property
    def calibrates_head(self) -> bool:
        """Whether the calibration text has to go through all layers for the head."""
        given = self.assigned.get(HEAD)
        return given is not None and given.calibrated and not self._is_stored(HEAD)

    @property
    def schemes(self) -> dict[str, str]:
        """Module → scheme that it is stored in."""
        return {module: given.scheme.name for module, given in self.assigned.items()}

    def finished(self) -> dict[str, ModuleReport]:
        """Module → how it was quantized."""
        return {
            module: each.model_copy(update={"scheme": self.schemes[module]}) for module, each in self.reports.items()
        }

    def roles(self) -> dict[str, RoleCounts]:
        """Parameters that were to be quantized and that are."""
        counts: dict[str, RoleCounts] = {}
        for module in self.assigned:
            rows, columns = self.checkpoint.shape(f"{module}.weight")
            done = rows * columns if module in self.weights else 0
            counts[self.checkpoint.role(f"{module}.weight")] = RoleCounts(expected=rows * columns, quantized=done)
        return counts

    # Embedding ---------------------------------------------------------------------------------------------------

    def embedding(self, original: bool = False) -> torch.Tensor:
        """[vocab_size, hidden_size], float32, as it is looked up in the quantized model, or in the original."""
        if original or EMBEDDING not in self.assigned:
            return load_embedding(self.checkpoint)
        return _values(self._rounded_embedding).mul_(self.checkpoint.spec.embedding_scale)

    @cached_property
    def _rounded_embedding(self) -> QuantizedWeight:
        """Made anew when an interrupted pass goes on, of the checkpoint and what `tied` keeps."""
        if self.assigned[EMBEDDING].calibrated and not self._is_stored(EMBEDDING):
            self._solve_by(EMBEDDING, CalibrationStats({EMBEDDING: self.tied()}))
        else:
            self._solve(EMBEDDING, round_modules)
        return self.weights[EMBEDDING]

    def _solve_by(self, module: str, measured: CalibrationStats) -> None:
        def solve(modules: dict[str, Linear], assigned: dict[str, Assignment], solved: Solved) -> None:
            solve_modules(modules, assigned, measured, solved, self.room)

        self._solve(module, solve)

    # Head --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def finish(
        self,
        quantized: ActivationFile,
        original: ActivationFile | None,
        tick: Callable[[str, int, int], None],
    ) -> None:
        """Quantizes what is left.

        Args:
            quantized: the calibration text as it enters the final norm, if the head is to be calibrated; float32 [N, L,
                hidden_size]
            original: the same text in the original model, where calibration is asymmetric
            tick: is told how many of the tokens are through
        """
        if EMBEDDING in self.assigned:
            _ = self._rounded_embedding
        if HEAD not in self.assigned:
            return
        if not self.calibrates_head:
            self._solve(HEAD, round_modules)
            return
        norm, measured = load_final_norm(self.checkpoint).to(self.device), CalibrationStats()
        for rows in quantized.micro_batches():
            seen = [norm(stream.read(rows)) for stream in (quantized, original) if stream is not None]
            measured.add(HEAD, *seen)
            tick(HEAD, rows.stop * quantized.shape[1], quantized.tokens)
        self._solve_by(HEAD, measured)

    def quantized_head(self) -> torch.Tensor | None:
        """[vocab_size, hidden_size], float32, that the quantized model's logits are made with; None: the original's."""
        weight = self.weights.get(EMBEDDING if self.checkpoint.spec.tie_word_embeddings else HEAD)
        return None if weight is None else _values(weight)

    # Both --------------------------------------------------------------------------------------------------------

    def _is_stored(self, module: str) -> bool:
        """Whether the checkpoint has it in the scheme asked for: codes are kept, not rounded twice."""
        kind, given = self.checkpoint.kind(f"{module}.weight"), self.assigned[module]
        rows, columns = self.checkpoint.shape(f"{module}.weight")
        return kind == given.scheme.spec.of((rows, columns))

    def _solve(self, module: str, solve: Callable[[dict[str, Linear], dict[str, Assignment], Solved], None]) -> None:
        """Lets `solve` quantize a matrix, so many rows at a time as are worked on at once."""
        given = self.assigned[module]
        if self._is_stored(module) and (codes := self.checkpoint.quantized(module)) is not None:
            self.weights[module], self.reports[module] = codes, ModuleReport(method="kept as stored")
            return
        parts, reports = list[QuantizedWeight](), list[tuple[int, ModuleReport]]()
        for weight in self._row_blocks(module, given):
            linear = Linear.of(LinearSpec(*weight.shape)).requires_grad_(False)
            linear.weight = nn.Parameter(weight.to(self.device), requires_grad=False)
            solved = Solved()
            solve({module: linear}, {module: given}, solved)
            parts.append(solved.weights[module])
            reports.append((len(weight), solved.reports[module]))
        self.weights[module], self.reports[module] = _joined(parts), _mean(reports)

    def _row_blocks(self, module: str, given: Assignment) -> Iterator[torch.Tensor]:
        """float32, from the first row to the last; all at once where they share a scale."""
        whole = self.checkpoint.tensor(f"{module}.weight", None)
        rows = max(_UNIT, ROWS_TOGETHER // whole.shape[1] // _UNIT * _UNIT)
        if not given.scheme.sharing[0] or given.scheme.two_level(torch.ones(1, 1)) is not None:
            rows = len(whole)
        for start in range(0, len(whole), rows):
            yield whole[start : start + rows].float()


def peak_bytes(spec: ModelSpec, quantized: bool) -> int:
    """Most bytes that they take at once: the head of both models when the reference is made, codes, and the rows that
    are worked on.
    """
    count = spec.vocab_size * spec.hidden_size
    if not quantized:
        return 8 * count
    return 10 * count + 52 * min(count, ROWS_TOGETHER) + 32 * spec.hidden_size**2


def _values(weight: QuantizedWeight) -> torch.Tensor:
    """float32 [rows, columns], without temporaries of that size."""
    (rows, columns), (high, _) = weight.shape, weight.block
    step = max(_UNIT, ROWS_TOGETHER // columns // _UNIT * _UNIT)
    if high >= rows or rows <= step:
        return weight.dequantize()
    found = torch.empty(rows, columns, device=weight.qweight.device)
    for start in range(0, rows, step):
        mine, groups = slice(start, start + step), slice(start // high, -(-(start + step) // high))
        zeros = None if weight.zero_points is None else weight.zero_points[groups]
        part = replace(weight, qweight=weight.qweight[mine], scales=weight.scales[groups], zero_points=zeros)
        found[mine] = part.dequantize()
    return found


def _joined(parts: list[QuantizedWeight]) -> QuantizedWeight:
    """The parts below each other, of which but the last have whole blocks."""
    if len(parts) == 1:
        return parts[0]
    zeros = [part.zero_points for part in parts if part.zero_points is not None]
    return replace(
        parts[0],
        qweight=torch.cat([part.qweight for part in parts]),
        scales=torch.cat([part.scales for part in parts]),
        zero_points=torch.cat(zeros) if zeros else None,
    )


def _mean(reports: list[tuple[int, ModuleReport]]) -> ModuleReport:
    """One report of rows that were worked on one block after the other: errors are the mean over rows."""

    def mean(name: str) -> float | None:
        found = [(rows, value) for rows, each in reports if (value := getattr(each, name)) is not None]
        return sum(rows * value for rows, value in found) / sum(rows for rows, _ in found) if found else None

    first = reports[0][1]
    if len(reports) == 1:
        return first
    return first.model_copy(update={name: mean(name) for name in _ERRORS})
