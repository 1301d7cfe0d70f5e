"""`llmc.GroupedTopK`: which experts a token is sent to, in one kernel where standard operators take eight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmc.runtime.plugins.kernel_set import KernelSet
from llmc.runtime.plugins.operation import Addresses, Gpu, InputSpec, Operation, OutputSpec, Shape


@dataclass(frozen=True)
class RoutingShape:
    """A router, as `llmc.convert.spec.RouterSpec` describes it; `best`: how many experts a group is ranked by; `dtype`,
    "bf16", "fp16" or "fp32", is that of the weights.
    """

    experts: int
    top_k: int
    groups: int
    top_groups: int
    scoring: str
    best: int
    normalize: bool
    scaling_factor: float
    dtype: str


class GroupedTopKPlugin(Operation):
    """logits [N, E] and bias [E], float32 → index [N, K] int64, weight [N, K].

    Computed in float32; of experts and groups that are alike, those come first that have lower numbers.
    """

    name = "GroupedTopK"

    def __init__(self, kernels: KernelSet) -> None:
        super().__init__(kernels)
        self.shape = RoutingShape(**kernels.shape)

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        return InputSpec("fp32", (None, self.shape.experts)), InputSpec("fp32", (self.shape.experts,))

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        shape = ((0, 0), self.shape.top_k)
        return OutputSpec("i64", shape), OutputSpec(self.shape.dtype, shape)

    def launch(
        self, gpu: Gpu, shapes: Sequence[Shape], inputs: Addresses, outputs: Addresses, workspace: int, stream: int
    ) -> None:
        tokens = shapes[0][0]
        if not tokens:
            return
        logits, bias = inputs
        index, weight = outputs
        kernel = self.kernels.kernel("route", gpu.sm, gpu.device)
        kernel.launch((tokens, 1, 1), stream, logits=logits, bias=bias, index=index, weight=weight)


OPERATION = GroupedTopKPlugin
