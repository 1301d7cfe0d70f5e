"""Nodes that are plugins, and the kernels that they wait for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir

from llmc.convert.graph.builder import DOMAIN
from llmc.convert.graph.rewrite import Rewriter, producer
from llmc.convert.kernels.kernel_sets import KernelRequest, kernel_sets
from llmc.errors import MissingPackageError
from llmc.extras import install
from llmc.runtime.plugins.kernel_set import KernelSet
from llmc.tensorrt_package import TensorRTPackage

TYPES = {ir.DataType.BFLOAT16: "bf16", ir.DataType.FLOAT16: "fp16", ir.DataType.FLOAT: "fp32"}


def require_triton(package: TensorRTPackage) -> None:
    """MissingPackageError if kernels cannot be compiled."""
    if importlib.util.find_spec("triton") is None:
        raise MissingPackageError(
            f"target {package.name}: Triton, which compiles the plugins' kernels, is not installed",
            f"{install('triton')}, or set `plugins: false`",
        )


class Plugins:
    """Of the graphs that share their kernels."""

    def __init__(self) -> None:
        self._waiting: list[tuple[ir.Node, KernelRequest]] = []

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, b: Rewriter, wanted: KernelRequest, *inputs: ir.Value, **scalars: float) -> ir.Value:
        """The output of a new node. A function of its name goes: the parser would prefer it to the plugin."""
        return self.add_all(b, wanted, 1, *inputs, **scalars)[0]

    def add_all(
        self, b: Rewriter, wanted: KernelRequest, outputs: int, *inputs: ir.Value, **scalars: float
    ) -> Sequence[ir.Value]:
        """The same where there are several outputs."""
        b.model.functions.pop((DOMAIN, wanted.operation, ""), None)
        attributes: dict[str, Any] = {"kernels": "", **scalars}
        found = b.op(wanted.operation, *inputs, domain=DOMAIN, outputs=outputs, **attributes)
        values: Sequence[ir.Value] = found if outputs > 1 else (found,)
        self._waiting.append((producer(values[0]), wanted))
        return values

    def compile(self, sms: Sequence[int], progress: Callable[[float], None]) -> list[KernelSet]:
        """The kernels; the nodes get their keys."""
        wanted = list(dict.fromkeys(each for _, each in self._waiting))
        found = dict(zip(wanted, kernel_sets(wanted, sms, progress), strict=True))
        for node, each in self._waiting:
            node.attributes["kernels"] = ir.AttrString("kernels", found[each].key)
        return list(found.values())
