"""Activations that outgrow float32, as those of finite weights may: noticed where they arise, told with a cause."""

from __future__ import annotations

import torch

from llmc.convert.checkpoint import Checkpoint
from llmc.errors import InputError

# Squares of such numbers, as norms and Hessians sum them up, still fit float32; activations of a model that works
# are ten orders of magnitude below.
LARGEST = 2.0**50
_SUSPICIOUS = 2.0**16  # a weight that no training arrives at


class OverflowInModelError(ArithmeticError):
    """Activations beyond `LARGEST`, infinite or NaN; the message begins with what they are."""


def refuse_overflow(x: torch.Tensor, what: str) -> float:
    """The largest magnitude in x, of any shape; OverflowInModelError, with `what` x is, if that is too large."""
    if not x.numel():
        return 0.0
    low, high = x.aminmax()
    peak = torch.maximum(-low, high).item()  # NaN where there is one
    if not peak <= LARGEST:
        found = "hold NaN" if peak != peak else f"reach {peak:.3g}"
        raise OverflowInModelError(f"{what} {found}, beyond what float32 can compute with")
    return peak


def explained(error: OverflowInModelError, checkpoint: Checkpoint, modules: tuple[str, ...]) -> InputError:
    """The error as a user meets it: in which modules it arose, and the largest of their weights."""
    prefixes = tuple(f"{module}." for module in modules)
    peak, name = max(
        (checkpoint.tensor(name).abs().max().item(), name)
        for name in checkpoint.names()
        if name.startswith(prefixes) and checkpoint.shape(name)
    )
    advice = "quantize these modules in more bits"
    if peak > _SUSPICIOUS or "original" in str(error):
        advice = "the model itself is broken: compare it with the one it was made from, or use another"
    return InputError(
        f"{checkpoint.path}: {' and '.join(modules)}: {error}, although all weights are finite; the largest weight "
        f"there is {peak:.3g}, in {name}; {advice}"
    )
