"""What a program is told while llmc works."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class ProgressFunction(Protocol):
    """The call alone, which is all that a single step needs: a function will do."""

    def __call__(self, phase: str, done: float, total: float = 1.0, layer: int = 0, layers: int = 1) -> None:
        """Be told that so much of a phase is done.

        Args:
            phase: what is done, in words
            done: tokens where text goes through the model, bytes where files are read, otherwise a share of 1
            total: how much there is to do in this phase
            layer: the layer at work, from 0 and including MTP layers, where a model is passed layer by layer
            layers: how many there are
        """
        return None


class Progress(ProgressFunction, Protocol):
    """Whoever wants to know how far something is. A subclass overrides what it cares about; the rest tells nobody."""

    def stage(self, name: str, weights: Sequence[int] = ()) -> AbstractContextManager[None]:
        """Return what is entered for the time of a stage, to which the phases in between belong.

        Args:
            name: what is done, in words
            weights: how long each layer takes, up to a factor, where a model is passed layer by layer
        """
        return nullcontext()

    def line(self, text: str) -> None:
        """Be told something worth keeping, in one line: what was finished, left out, or found damaged."""
        return None


class Silent(Progress):
    """Tells nobody anything."""
