"""What has weights, and their shapes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearSpec:
    """A linear layer: weight [outputs, inputs].

    Attributes:
        reads_block: whether it reads what enters its block, as others there do, and not an input of its own
    """

    outputs: int
    inputs: int
    bias: bool = False
    reads_block: bool = False

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.outputs, self.inputs)} | ({"bias": (self.outputs,)} if self.bias else {})


@dataclass(frozen=True)
class NormSpec:
    """RMS norm over `size` channels.

    Attributes:
        unit_offset: whether it multiplies by 1 + weight (Gemma) instead of by the weight
    """

    size: int
    eps: float
    unit_offset: bool = False

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.size,)}


@dataclass(frozen=True)
class GateSpec:
    """What scores experts: a row per expert, and a bias of the scores, or one that they are selected with."""

    num_experts: int
    inputs: int
    selection_bias: bool
    bias: bool = False

    def shapes(self) -> dict[str, tuple[int, ...]]:
        biases = {"bias": self.bias, "e_score_correction_bias": self.selection_bias}
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.num_experts, self.inputs)}
        return shapes | {name: (self.num_experts,) for name, there in biases.items() if there}


@dataclass(frozen=True)
class VectorSpec:
    """Numbers of a block's own, such as a score for each head."""

    size: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.size,)}


@dataclass(frozen=True)
class ConvolutionSpec:
    """A convolution of every channel by itself over the last `width` tokens."""

    channels: int
    width: int
    bias: bool = False

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.channels, 1, self.width)} | ({"bias": (self.channels,)} if self.bias else {})


@dataclass(frozen=True)
class MatrixSpec:
    """A matrix that is not quantized: weight [outputs, inputs]."""

    outputs: int
    inputs: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.outputs, self.inputs)}


# What has weights, and their shapes.
ModuleSpec = LinearSpec | NormSpec | GateSpec | VectorSpec | ConvolutionSpec | MatrixSpec
