"""`llmc.Linear`: a product with one matrix, its weights as they are stored.

TensorRT decodes some of the codes that llmc knows in a kernel of its own, with each call; a kernel that multiplies by
what it decodes reads them once. It is the one for experts, with a single expert that all rows chose.

Where a step has few rows and a matrix few outputs, programs that each make some of the outputs would leave most of the
GPU idle. Each then takes a portion of the inputs only, and a second kernel adds up, in a fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmc.runtime.plugins.kernel_set import KernelSet
from llmc.runtime.plugins.mixture_of_experts import FEW, LEAST, MANY, STEP, ExpertWeights
from llmc.runtime.plugins.operation import MOST_MULTIPROCESSORS, Addresses, Gpu, InputSpec, Operation, OutputSpec, Shape

TWICE = 2 * FEW  # rows up to which weights are read again, from the L2 cache, rather than by larger and fewer programs
BUSY = 4  # programs of the kernel for few rows that a multiprocessor should have
MOST_PORTIONS, LEAST_STEPS = 8, 4  # so that neither sums nor the beginning of a program cost more than weights


@dataclass(frozen=True)
class LinearShape:
    """What a model fixes: x [N, inputs] times a matrix [outputs, inputs], stored as `weight`; `dtype` "bf16" or "fp16"
    of activations and of the bias, if there is one.
    """

    inputs: int
    outputs: int
    dtype: str
    weight: ExpertWeights
    bias: bool = False

    @classmethod
    def of(cls, told: dict[str, Any]) -> LinearShape:
        """From JSON."""
        return cls(**told | {"weight": ExpertWeights(**told["weight"])})


@dataclass(frozen=True)
class LinearLaunch:
    """Of the kernels for one SM: outputs that one program makes, by the rows of its tile; and sums of `add`."""

    channels: dict[str, int]
    sums: int


@dataclass(frozen=True)
class LinearPlan:
    """One launch for x [N, K] on a GPU of so many multiprocessors."""

    shape: LinearShape
    layout: LinearLaunch
    rows: int
    multiprocessors: int

    @property
    def tile(self) -> int:
        """Rows of a tile."""
        return LEAST if self.rows <= LEAST else FEW if self.rows <= TWICE else MANY

    @property
    def grid(self) -> tuple[int, int, int]:
        """Of the product."""
        return *self._programs, self.portions

    @property
    def portion(self) -> int:
        """Inputs that a program takes."""
        across, tiles = self._programs
        wanted = BUSY * min(self.multiprocessors, MOST_MULTIPROCESSORS) // (across * tiles) if self.tile != MANY else 1
        portions = max(1, min(wanted, MOST_PORTIONS, self._steps // LEAST_STEPS))
        return -(-self._steps // portions) * STEP

    @property
    def portions(self) -> int:
        return -(-self._steps * STEP // self.portion)

    @property
    def workspace(self) -> int:
        """Bytes of [portions, N, outputs], float32."""
        return 4 * self.portions * self.rows * self.shape.outputs if self.portions > 1 else 0

    @property
    def _programs(self) -> tuple[int, int]:
        return -(-self.shape.outputs // self.layout.channels[str(self.tile)]), -(-self.rows // self.tile)

    @property
    def _steps(self) -> int:
        return -(-self.shape.inputs // STEP)


class LinearPlugin(Operation):
    """x [N, K], then the matrix as `ExpertWeights` stores one expert, and its bias [out], if there is one → [N, out].

    Sums are float32, rounded to the type of x.
    """

    name = "Linear"

    def __init__(self, kernels: KernelSet) -> None:
        super().__init__(kernels)
        self.shape = LinearShape.of(kernels.shape)

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        shape = self.shape
        return (
            InputSpec(shape.dtype, (None, shape.inputs)),
            *shape.weight.inputs(1, shape.outputs, shape.inputs, shape.dtype),
            *[InputSpec(shape.dtype, (shape.outputs,))] * shape.bias,
        )

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        return (OutputSpec(self.shape.dtype, ((0, 0), self.shape.outputs)),)

    def workspace_bytes(self, most: Sequence[Shape]) -> int:
        """More rows may have fewer portions; until there is one tile more, they do not."""
        rows = most[0][0]
        layouts = [LinearLaunch(**each) for each in self.kernels.layouts.values()]
        return max(
            LinearPlan(self.shape, layout, min(rows, few), MOST_MULTIPROCESSORS).workspace
            for layout in layouts
            for few in (LEAST, *range(FEW, TWICE + 1, FEW))
        )

    def launch(
        self, gpu: Gpu, shapes: Sequence[Shape], inputs: Addresses, outputs: Addresses, workspace: int, stream: int
    ) -> None:
        layout = LinearLaunch(**self.kernels.layout(gpu.sm))
        plan = LinearPlan(self.shape, layout, shapes[0][0], gpu.multiprocessors)
        if not plan.rows:
            return
        x, weight, scales, *bias = inputs
        given: dict[str, float] = {
            "x": x, "weight": weight, "scales": scales, "y": outputs[0],
            "inputs": self.shape.inputs, "outputs": self.shape.outputs, "choices": plan.rows,
        }  # fmt: skip
        biases = dict(zip(("bias",), bias, strict=False))
        if plan.portions == 1:
            self.kernels.kernel(f"product_{plan.tile}", gpu.sm, gpu.device).launch(plan.grid, stream, **given | biases)
            return
        given |= {"y": workspace, "portion": plan.portion}
        self.kernels.kernel(f"portions_{plan.tile}", gpu.sm, gpu.device).launch(plan.grid, stream, **given)
        count = plan.rows * self.shape.outputs
        self.kernels.kernel("add", gpu.sm, gpu.device).launch(
            (-(-count // layout.sums), 1, 1), stream, parts=workspace, y=outputs[0], **biases,
            count=count, outputs=self.shape.outputs, portions=plan.portions,
        )  # fmt: skip


OPERATION = LinearPlugin
