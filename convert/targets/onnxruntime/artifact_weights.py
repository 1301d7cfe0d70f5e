"""Weights as they lie in the artifact's safetensors, and the ops that make floats of them.

These ops have constant inputs only, so ONNX Runtime runs them once, while it loads the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import onnx_ir as ir

from llmc.convert.graph.rewrite import Rewriter
from llmc.convert.graph.weight import FLOAT_TYPES, WeightTensor

FLOAT = ir.DataType.FLOAT
_TYPES = FLOAT_TYPES | {"F8_E4M3": ir.DataType.FLOAT8E4M3FN}


class ArtifactWeights(Rewriter):
    """A rewriter whose initializers point into the checkpoint's files."""

    def stored(
        self,
        weight: WeightTensor,
        part: str | None = None,
        dtype: ir.DataType | None = None,
        shape: Sequence[int] | None = None,
        view: str = "stored",
    ) -> ir.Value:
        """The bytes of each `<module>.<part>`, or of the weight itself, as `dtype` and `shape`, or as stored; those of
        one tensor under another name for each `view` of them.

        Of a stacked weight, the tensors of all modules along a new first axis: one initializer if they follow
        one another in a file, otherwise one each and a Concat.
        """
        names = [f"{module}.{part}" for module in weight.modules] if part else weight.names
        tensors = [weight.checkpoint.stored(name) for name in names]
        if any(tensor.strides is not None for tensor in tensors):  # initializers lie one element behind the other
            layout, kind = replace(weight.layout, transposed=False, heads=None), dtype or weight.stored_dtype
            return self.initializer(WeightTensor(weight.checkpoint, weight.names, layout, f"{weight.name}.again", kind))
        if all((b.file, b.offset) == (a.file, a.offset + a.nbytes) for a, b in pairwise(tensors)):
            runs = [tensors]
        else:
            runs = [[tensor] for tensor in tensors]
        values = []
        for run in runs:
            first = run[0]
            tensor = ir.ExternalTensor(
                first.file.name,
                first.offset,
                sum(one.nbytes for one in run),
                dtype or _TYPES[first.dtype],
                shape=ir.Shape([len(run)] * weight.layout.stacked + list(shape or first.shape)),
                name=f"{first.name}.{view}",
            )
            values.append(self.initializer(tensor))
        return values[0] if len(values) == 1 else self.concat(*values, axis=0)

    def stored_codes(
        self,
        weight: WeightTensor,
        dtype: ir.DataType | None = None,
        shape: Sequence[int] | None = None,
        view: str = "stored",
    ) -> ir.Value:
        """The bytes of the quantized values, which must lie in rows of output channels."""
        assert weight.format is not None and weight.row_major
        return self.stored(weight, weight.format.qweight_part, dtype, shape, view)

    def as_float(self, x: ir.Value) -> ir.Value:
        return x if x.dtype == FLOAT else self.op("Cast", x, to=int(FLOAT))

    def scales(self, weight: WeightTensor) -> ir.Value:
        """float32, one per block; they must lie in rows of output channels."""
        assert weight.format is not None and weight.row_major
        (rows, columns), (high, wide) = weight.checkpoint.shape(weight.names[0]), weight.block
        shape = (-(-rows // high), -(-columns // wide))
        return self.as_float(self.stored(weight, weight.format.scales_part, shape=shape))

    def matrices(self, weight: WeightTensor) -> ir.Value:
        """float32 [out, in], or [E, out, in] of a stack: dequantized, not yet laid out."""
        if weight.kind is None:
            return self.as_float(self.stored(weight))
        kind = weight.kind
        as_stored = kind.code_type in ("float8_e4m3fn", "int4") and weight.row_major
        if not as_stored or kind.zero_points or kind.g_idx:
            layout = replace(weight.layout, transposed=False, heads=None)
            name = f"{weight.name}.plain"  # written again: few operators could decode it, none of them fast
            return self.initializer(WeightTensor(weight.checkpoint, weight.names, layout, name, FLOAT))
        rows, columns = weight.checkpoint.shape(weight.names[0])
        if weight.code_type == "int4":
            # Stored is c + 8, low nibble first: the bytes of an ONNX UINT4 tensor.
            codes = self.stored_codes(weight, ir.DataType.UINT4, (rows, columns))
            codes = self.op("Sub", self.as_float(codes), self.constant(8.0, FLOAT))
        else:
            codes = self.as_float(self.stored_codes(weight))
        # Scales [.., a, b] -> [.., a, rows of a block, b, columns of a block] -> [.., out, in]
        high, wide = weight.block
        down, across = -(-rows // high), -(-columns // wide)
        stack = weight.stack
        scales = self.op("Unsqueeze", self.scales(weight), self.constant([-3, -1]))
        scales = self.op("Expand", scales, self.constant([*stack, down, high, across, wide]))
        scales = self.reshape(scales, *stack, down * high, across * wide)
        ends, axes = self.constant([rows, columns]), self.constant([-2, -1])
        return self.op("Mul", codes, self.op("Slice", scales, self.constant([0, 0]), ends, axes))

    def lower_weights(self) -> None:
        """Replace every weight that no kernel has taken by its values, laid out as the graph wants them."""
        for value, weight in self.weights():
            with self.before(self.first_use(value)):
                value.replace_all_uses_with(self._laid_out(weight))

    def _laid_out(self, weight: WeightTensor) -> ir.Value:
        if weight.kind is None and weight.dtype == weight.stored_dtype:
            x = self.stored(weight)
        else:
            x = self.matrices(weight)
        layout, shape = weight.layout, weight.checkpoint.shape(weight.names[0])
        if layout.heads is not None:
            start, stop = (self.constant([row]) for row in layout.rows)
            x = self.op("Slice", self.reshape(x, layout.heads, -1, shape[1]), start, stop, self.constant([1]))
        if layout.transposed and len(shape) > 1:
            x = self.transpose(x, *((1, 0) if layout.heads is None else (0, 2, 1)))
        return x
