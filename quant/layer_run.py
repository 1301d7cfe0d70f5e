"""A model's way through one layer: its weights there, its activations on disk, and what is made of those."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from llmc.convert.model import DecoderLayer
from llmc.quant.activation_file import ActivationFile
from llmc.quant.assign import Assignment


@dataclass(frozen=True)
class LayerRun:
    """One model's way through the layer: its layer, and its activations.

    Attributes:
        entry: what an MTP layer joins with an embedding; of a decoder layer x itself
        x: what enters attention
        out: the residual: x with the share of attention, and in the end that of the MLP
    """

    layer: DecoderLayer
    entry: ActivationFile
    x: ActivationFile
    out: ActivationFile

    @property
    def mixed(self) -> ActivationFile:
        """What `o_proj` reads."""
        return self.x.beside(f"{self.x.part}-mixed", self.layer.self_attn.spec.output_size)

    @property
    def hidden(self) -> ActivationFile:
        """What the MLP reads."""
        return self.x.beside(f"{self.x.part}-hidden")

    @property
    def shares(self) -> ActivationFile:
        """What leaves the MLP, where a norm follows before it is added to the residual."""
        return self.x.beside(f"{self.x.part}-shares")


InputFunction = Callable[[LayerRun, slice], torch.Tensor]  # rows of a run's text → a fresh [n, L, W]
Begin = Callable[[str], dict[str, Assignment]]
Tick = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Flow:
    """Activations of every run, made anew from what lies on disk whenever they are read.

    Attributes:
        phase: for whoever waits for it
        add_to: adds them to a file for each run, where they come in shares, token by token and expert by expert
    """

    read: InputFunction
    phase: str = ""
    add_to: Callable[[list[ActivationFile]], None] | None = None


def positions(x: torch.Tensor) -> torch.Tensor:
    """[B, S], of whole rows x [B, S, H]."""
    return torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)


@torch.no_grad()
def advance(layer: DecoderLayer, stream: ActivationFile, report: Callable[[int, int], None]) -> ActivationFile:
    """Take what enters a decoder layer through it; return what enters the next. report: is told how many tokens of how
    many are through.
    """
    target = stream.following()
    for rows in stream.micro_batches():
        x = stream.read(rows)
        target.write(rows, layer(x, positions(x)))
        report(rows.stop * stream.shape[1], stream.tokens)
    target.flush()
    return target


def rows_of(runs: list[LayerRun], phase: str, tick: Tick) -> Iterator[slice]:
    """Rows of the text, so many at a time as are worked on at once."""
    stream = runs[0].x
    for rows in stream.micro_batches():
        yield rows
        tick(phase, rows.stop * stream.shape[1], stream.tokens)
