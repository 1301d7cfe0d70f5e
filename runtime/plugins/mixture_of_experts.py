"""`llmc.MixtureOfExperts` over the chosen experts alone, their weights as they are stored.

Choices are grouped by expert; one product makes SwiGLU's inner channels of every choice, another its outputs, and a sum
over each token's choices, in their order, ends it. Nothing is added atomically: two runs agree bit for bit. Token n's
choice k has the number n K + k. How many tiles of choices there are depends on the routing, which the host does not
know, so all there can be are launched; those too many have no expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmc.runtime.plugins.kernel_set import KernelSet
from llmc.runtime.plugins.operation import Addresses, Gpu, InputSpec, Operation, OutputSpec, Shape

ALIGNMENT = 256  # bytes, of each tensor in the workspace
# Choices of a tile: of kernels for few tokens, which read weights, and for many, which multiply.
LEAST, FEW, MANY = HEIGHTS = 8, 16, 64
WORDS = 16  # of a block
CODES = {"int4": 8, "fp4": 8, "fp8": 4}  # of a word
STEP = 128  # inputs that kernels take at a time, if there are as many


@dataclass(frozen=True)
class ExpertWeights:
    """How an expert's matrix [out, in] is stored: `form` "int4", "fp4", "fp8" or "plain", a scale of type `scales` for
    `group` inputs of `rows` outputs; see `llmc.convert.kernels.expert_weights`.
    """

    form: str
    group: int = 1
    rows: int = 1
    scales: str = ""

    def inputs(self, experts: int, out: int, columns: int, dtype: str) -> list[InputSpec]:
        """The tensors of a stack of them."""
        if self.form == "plain":
            return [InputSpec(dtype, (experts, out, columns))]
        blocks = -(-columns // (CODES[self.form] * WORDS))
        groups = -(-blocks * CODES[self.form] * WORDS // self.group)
        return [
            InputSpec("i32", (experts, out, WORDS * blocks)),
            InputSpec(self.scales, (experts, groups, -(-out // self.rows))),
        ]


@dataclass(frozen=True)
class ExpertsShape:
    """What a model fixes: E, K, H and I; `dtype` "bf16" or "fp16" of activations and plain weights, `weighting` that of
    the router's weights. gate and up are stored alike. With `bias` gate, up and down have one. With `limit` the
    activation is `(up + 1) * gate * sigmoid(alpha * gate)` of a gate of at most `limit`, and of up between -`limit` and
    `limit`; 0: SwiGLU.
    """

    experts: int
    top_k: int
    hidden: int
    inner: int
    dtype: str
    weighting: str
    gate_up: ExpertWeights
    down: ExpertWeights
    bias: bool = False
    alpha: float = 1.0
    limit: float = 0.0

    @classmethod
    def of(cls, told: dict[str, Any]) -> ExpertsShape:
        """From JSON."""
        return cls(**told | {name: ExpertWeights(**told[name]) for name in ("gate_up", "down")})


@dataclass(frozen=True)
class ExpertsLaunch:
    """Of the kernels for one SM: outputs that one program makes, by the rows of its tile; and of a token's sum."""

    gate_up: dict[str, int]
    down: dict[str, int]
    combine: int


@dataclass(frozen=True)
class ExpertsPlan:
    """One launch for x [N, H]."""

    shape: ExpertsShape
    layout: ExpertsLaunch
    tokens: int

    @property
    def choices(self) -> int:
        return self.tokens * self.shape.top_k

    @property
    def rows(self) -> int:
        """Choices of a tile. While there are few, most experts have one tile, and weights are read once. Artifacts
        that were built earlier have no tiles of 8.
        """
        *low, high = sorted(map(int, self.layout.gate_up))
        return min((rows for rows in low if self.choices <= rows // 2 * self.shape.experts), default=high)

    @property
    def tiles(self) -> int:
        return most_tiles(self.choices, self.shape.experts, self.rows)

    @property
    def grids(self) -> dict[str, tuple[int, int, int]]:
        """By kernel, in the order of their launch."""
        shape, layout, rows = self.shape, self.layout, str(self.rows)
        return {
            "group": (shape.experts, 1, 1),
            "gate_up": (-(-shape.inner // layout.gate_up[rows]), self.tiles, 1),
            "down": (-(-shape.hidden // layout.down[rows]), self.tiles, 1),
            "combine": (self.tokens, -(-shape.hidden // layout.combine), 1),
        }

    @property
    def workspace(self) -> dict[str, int]:
        """Bytes: tile_choices [tiles, rows], tile_expert [tiles] int32; inner [N K, I], outer [N K, H] in 16 bits."""
        return {
            "tile_choices": _aligned(4 * self.tiles * self.rows),
            "tile_expert": _aligned(4 * self.tiles),
            "inner": _aligned(2 * self.choices * self.shape.inner),
            "outer": _aligned(2 * self.choices * self.shape.hidden),
        }


def most_tiles(choices: int, experts: int, rows: int) -> int:
    """Of any routing: as many experts as can be have one choice more than fills their tiles."""
    chosen = min(choices, experts)
    return chosen + (choices - chosen) // rows


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class MixtureOfExpertsPlugin(Operation):
    """x [N, H], index [N, K] int64, weight [N, K], then gate, up and down as `ExpertWeights` stores them, and the
    biases [E, I], [E, I] and [E, H], if there are any → [N, H].

    An expert's outputs are rounded to the type of x and summed in float32. A choice that is no expert counts nothing.
    """

    name = "MixtureOfExperts"

    def __init__(self, kernels: KernelSet) -> None:
        super().__init__(kernels)
        self.shape = ExpertsShape.of(kernels.shape)

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        shape = self.shape
        gate_up = shape.gate_up.inputs(shape.experts, shape.inner, shape.hidden, shape.dtype)
        return (
            InputSpec(shape.dtype, (None, shape.hidden)),
            InputSpec("i64", (None, shape.top_k)),
            InputSpec(shape.weighting, (None, shape.top_k)),
            *gate_up,
            *gate_up,
            *shape.down.inputs(shape.experts, shape.hidden, shape.inner, shape.dtype),
            *(
                InputSpec(shape.dtype, (shape.experts, out))
                for out in (shape.inner, shape.inner, shape.hidden)[: self._biases]
            ),
        )

    @property
    def _biases(self) -> int:
        return 3 if self.shape.bias else 0

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        return (OutputSpec(self.shape.dtype, ((0, 0), self.shape.hidden)),)

    def workspace_bytes(self, most: Sequence[Shape]) -> int:
        """Fewer tokens may have more tiles, as those are lower."""
        layout = ExpertsLaunch(**next(iter(self.kernels.layouts.values())))
        tokens = most[0][0]
        last = [rows // 2 * self.shape.experts // self.shape.top_k for rows in (LEAST, FEW)]
        plans = [ExpertsPlan(self.shape, layout, max(1, min(tokens, n))).workspace for n in (tokens, *last)]
        return sum(max(plan[name] for plan in plans) for name in plans[0])

    def launch(
        self, gpu: Gpu, shapes: Sequence[Shape], inputs: Addresses, outputs: Addresses, workspace: int, stream: int
    ) -> None:
        layout = ExpertsLaunch(**self.kernels.layout(gpu.sm))
        chosen = ExpertsPlan(self.shape, layout, shapes[0][0])
        if not chosen.tokens:
            return
        place = {}
        for name, size in chosen.workspace.items():
            place[name] = workspace
            workspace += size
        x, index, weight, *stacks = inputs
        stacks, biases = stacks[: len(stacks) - self._biases], stacks[len(stacks) - self._biases :]
        of_gate_up = dict(zip(("bias", "up_bias"), biases, strict=False))
        of_down_bias = dict(zip(("bias",), biases[2:], strict=False))
        of_gate = 1 if self.shape.gate_up.form == "plain" else 2
        gate, up, down = stacks[:of_gate], stacks[of_gate : 2 * of_gate], stacks[2 * of_gate :]
        tiles = {name: place[name] for name in ("tile_choices", "tile_expert")}
        sizes = {"choices": chosen.choices, "choices_of_row": self.shape.top_k}
        hidden = {"inputs": self.shape.hidden, "outputs": self.shape.inner}
        given: dict[str, dict[str, float]] = {
            "group": {"index": index, **tiles, "choices": chosen.choices, "tiles": chosen.tiles},
            "gate_up": {
                "x": x, "y": place["inner"], **tiles, **_pair(gate), **_pair(up, "up_"), **of_gate_up,
                **hidden, **sizes,
            },
            "down": {
                "x": place["inner"], "y": place["outer"], **tiles, **_pair(down), **of_down_bias,
                "inputs": self.shape.inner, "outputs": self.shape.hidden, **sizes, "choices_of_row": 1,
            },
            "combine": {
                "outer": place["outer"], "index": index, "weight": weight, "y": outputs[0],
                "hidden": self.shape.hidden, "top_k": self.shape.top_k,
            },
        }  # fmt: skip
        for name, grid in chosen.grids.items():
            kernel = self.kernels.kernel(name if name == "combine" else f"{name}_{chosen.rows}", gpu.sm, gpu.device)
            kernel.launch(grid, stream, **given[name])


def _pair(stack: Addresses, prefix: str = "") -> dict[str, int]:
    """As the product calls a stack's codes and its scales, which plain weights have none of."""
    names = (prefix.rstrip("_") or "weight", f"{prefix}scales")
    return dict(zip(names, stack, strict=False))


OPERATION = MixtureOfExpertsPlugin
