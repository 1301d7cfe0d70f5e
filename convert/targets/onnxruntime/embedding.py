"""Rows of a quantized embedding: com.microsoft GatherBlockQuantized for integers, standard ops for FP8."""

from __future__ import annotations

import onnx_ir as ir

from llmc.convert.graph.embedding import looked_up, quantized_lookups
from llmc.convert.targets.onnxruntime.artifact_weights import ArtifactWeights
from llmc.convert.targets.onnxruntime.nbits import gather_nbits


def lower_embedding(rewriter: ArtifactWeights) -> None:
    """Look tokens up in the codes as they lie in the artifact, whatever the accuracy level: no row is rounded."""
    for node, table in quantized_lookups(rewriter):
        ids = node.inputs[1]
        with rewriter.before(node):
            found = gather_nbits(rewriter, table, ids)
            if found is None:
                is_fp8 = table.kind is not None and table.kind.code_type == "float8_e4m3fn"
                codes = None
                if is_fp8 and table.row_major:
                    shape = table.checkpoint.shape(table.names[0])
                    codes = rewriter.stored_codes(table, ir.DataType.UINT8, shape, "rows")
                found = looked_up(rewriter, table, ids, codes)
            rewriter.replace(node, found)
