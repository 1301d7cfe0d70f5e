"""An engine asks for no memory in the middle of a step: such a step could not be captured as a CUDA graph."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from llmc.convert.engines.compiler import compile_engine
from llmc.tensorrt_package import TENSORRT_RTX

pytestmark = pytest.mark.slow

ROWS = 100_000_000  # the compiler leaves memory for as many to the time of the step, unless it is told not to


def test_all_memory_is_the_users(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    nodes = [("MatMul", ["x", "w"], ["a"]), ("Softmax", ["a"], ["b"]), ("MatMul", ["b", "w"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 64]) for name in "xy")
    graph = helper.make_graph([helper.make_node(*each) for each in nodes], "main", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    onnx.save(model, tmp_path / "main.onnx")
    profile = {"x": [[1, 64], [4, 64], [ROWS, 64]]}
    given = tmp_path / "main.onnx", tmp_path / "main.engine", [89], [profile], 120
    compile_engine(TENSORRT_RTX, *given, lambda _: None)
    program = (tmp_path / "main.engine").read_bytes()
    regions = re.findall(rb"region = \{ name=devmem\w+ size=(\d+) [^}]* type=(\w+) ", program)
    assert {kind for _, kind in regions} == {b"user"} and sum(int(size) for size, _ in regions) >= 2 * 4 * 64 * ROWS
    assert b"allocate={" not in program and b"userRunTime" not in program
