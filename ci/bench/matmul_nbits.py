#!/usr/bin/env python3
"""ONNX Runtime's product with quantized weights alone: microseconds and GB/s by bits, block size and tokens.

python ci/bench/matmul_nbits.py                 # a layer of `dense`, 24 of them after one another; half a minute
python ci/bench/matmul_nbits.py --rows 7168 --columns 2048 --threads 4
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from llmc.runtime.quiet_onnxruntime import onnxruntime

NODES = 24  # each with weights of its own, so that they come from memory as in a model


def model(rows: int, columns: int, bits: int, block: int) -> bytes:
    generator = np.random.default_rng(0)
    nodes, weights = [], []
    for i in range(NODES):
        shape = (rows, columns // block, block * bits // 8)
        weights.append(numpy_helper.from_array(generator.integers(0, 255, shape, dtype=np.uint8), f"codes{i}"))
        weights.append(numpy_helper.from_array(generator.random(shape[:2], dtype=np.float32), f"scales{i}"))
        sizes = {"K": columns, "N": rows, "bits": bits, "block_size": block, "accuracy_level": 4}
        inputs = ["x", f"codes{i}", f"scales{i}"]
        nodes.append(helper.make_node("MatMulNBits", inputs, [f"y{i}"], domain="com.microsoft", **sizes))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", columns])
    y = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["tokens", rows]) for i in range(NODES)]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "products", [x], y, weights)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def microseconds(session: onnxruntime.InferenceSession, tokens: int, columns: int) -> float:
    """Of one product, the best of many runs."""
    x = np.random.default_rng(0).standard_normal((tokens, columns), dtype=np.float32)
    best = float("inf")
    for _ in range(100 if tokens < 16 else 10):
        start = time.perf_counter()
        session.run(None, {"x": x})
        best = min(best, time.perf_counter() - start)
    return best / NODES * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--columns", type=int, default=768)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 2, 256])
    args = parser.parse_args()
    title = f"{args.rows} x {args.columns}, {args.threads} threads: microseconds (GB/s of codes)"
    table = Table("bits", "block", *(f"{n} tokens" for n in args.tokens), title=title, title_justify="left")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    for bits, block in [(4, 32), (4, 64), (4, 128), (4, 256), (8, 32), (8, 128)]:
        made = model(args.rows, args.columns, bits, block)
        session = onnxruntime.InferenceSession(made, options, providers=["CPUExecutionProvider"])
        times = [microseconds(session, tokens, args.columns) for tokens in args.tokens]
        size = args.rows * args.columns * bits / 8
        table.add_row(str(bits), str(block), *(f"{t:.0f} ({size / t / 1e3:.1f})" for t in times))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
