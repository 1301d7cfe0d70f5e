"""Initializers that know the checkpoint tensors they are made of, and read them only when written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO

import numpy as np
import onnx_ir as ir
import torch

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.formats import Format
from llmc.convert.quantized_weight import QuantizedWeight, QuantSpec, held_type
from llmc.convert.safetensors_file import DTYPES
from llmc.convert.tensor_names import module_of
from llmc.errors import InputError

# Values of E2M1 are values of E4M3, which programs have decoded since ONNX 1.14.
CODE_TYPES = {
    "int4": ir.DataType.INT4,
    "int8": ir.DataType.INT8,
    "float8_e4m3fn": ir.DataType.FLOAT8E4M3FN,
    "float4_e2m1fn": ir.DataType.FLOAT8E4M3FN,
}
# safetensors name -> ONNX type
FLOAT_TYPES = {"F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class WeightView:
    """How a checkpoint matrix [out, in] lies in the graph.

    Attributes:
        transposed: [in, out], as MatMul wants it, instead of [out, in]; a vector is a vector
        heads: the rows are that many equal parts, which become a leading axis,
        rows: and of each part only the rows [start, stop) are taken
        stacked: the matrices of several modules along a new leading axis: [E, in, out]
    """

    transposed: bool = True
    heads: int | None = None
    rows: tuple[int, int] = (0, 0)
    stacked: bool = False

    @property
    def input_axis(self) -> int:
        """Which axis of the result runs along the matrix's input channels."""
        return (0 if self.transposed else 1) + (self.heads is not None or self.stacked)

    def apply(self, matrix: torch.Tensor) -> torch.Tensor:
        """One module's [out, n], where n is `in`, or for scales the number of groups along it."""
        if self.heads is not None:
            matrix = matrix.unflatten(0, (self.heads, -1))[:, slice(*self.rows)]
        return matrix.transpose(-1, -2) if self.transposed and matrix.dim() > 1 else matrix

    def shape(self, shape: tuple[int, ...], modules: int) -> tuple[int, ...]:
        """What becomes of that many tensors of `shape`."""
        if self.heads is not None:
            shape = (self.heads, self.rows[1] - self.rows[0], shape[1])
        if self.transposed and len(shape) > 1:
            shape = (*shape[:-2], shape[-1], shape[-2])
        return (modules, *shape) if self.stacked else shape


class ChunkedTensor(ir.LazyTensor):
    """A tensor that is computed when it is written, piece by piece: its bytes are theirs in order."""

    def __init__(
        self,
        pieces: Callable[[], Iterator[ir.TensorProtocol]],
        dtype: ir.DataType,
        shape: tuple[int, ...],
        name: str,
    ) -> None:
        super().__init__(self._joined, dtype, ir.Shape(shape), name=name)
        self._pieces = pieces

    def tofile(self, file: BinaryIO) -> None:
        for piece in self._pieces():
            file.write(piece.tobytes())

    def _joined(self) -> ir.TensorProtocol:
        joined = np.concatenate([piece.numpy().reshape(-1) for piece in self._pieces()])
        return ir.Tensor(joined.reshape(self.shape.numpy()), dtype=self.dtype, name=self.name)


class WeightTensor(ChunkedTensor):
    """One or more tensors of a checkpoint, laid out for the graph; nothing is read before it is written out.

    As a tensor it is the dequantized weight in `dtype`. A lowering that wants the stored numbers looks at
    `code_type` and `block` and takes `codes()` and `scales()`, which are laid out the same way.

    Attributes:
        names: checkpoint tensor names; more than one only for a stacked layout
    """

    def __init__(
        self, checkpoint: Checkpoint, names: tuple[str, ...], layout: WeightView, name: str, dtype: ir.DataType
    ) -> None:
        shape = checkpoint.shape(names[0])
        if any(checkpoint.shape(other) != shape for other in names):
            raise InputError(f"{name}: the experts' weights differ in shape")
        self.checkpoint = checkpoint
        self.names = names
        self.layout = layout
        super().__init__(self._dequantized, dtype, layout.shape(shape, len(names)), name)

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(module_of(name) for name in self.names)

    @cached_property
    def kind(self) -> QuantSpec | None:
        """How the codes are stored, from headers, see `QuantizedWeight.kind`; None: as plain floats."""
        return self.checkpoint.kind(self.names[0])

    @property
    def stack(self) -> tuple[int, ...]:
        """The leading axis of a stacked layout."""
        return (len(self.names),) if self.layout.stacked else ()

    @property
    def code_type(self) -> str | None:
        """`int4`, `int8` or `float8_e4m3fn`; None where the weight is stored as plain floats, or in groups of scattered
        channels (dynamic act-order), which no operator knows. Codes of fewer bits are codes of 4 or 8, too.
        """
        if self.kind is None or self.kind.g_idx:
            return None
        return held_type(self.kind.code_type)

    @property
    def has_zeros(self) -> bool:
        """Whether `zeros` belong to the codes."""
        return self.kind is not None and self.kind.zero_points

    @property
    def block(self) -> tuple[int, int]:
        """(output channels, input channels) that share one scale; see `QuantizedWeight`."""
        return (1, 1) if self.kind is None else self.kind.block

    @property
    def stored_dtype(self) -> ir.DataType:
        """The float type of an unquantized weight on disk."""
        return stored_dtype(self.checkpoint, self.names[0])

    def as_stored(self) -> WeightTensor:
        """An unquantized weight in the type it is stored in, under another name."""
        name = f"{self.name}.stored"
        return WeightTensor(self.checkpoint, self.names, self.layout, name, self.stored_dtype)

    def codes(self) -> ChunkedTensor:
        """The stored codes in this tensor's shape: INT4, INT8 or FLOAT8E4M3FN."""
        return self._part("codes", CODE_TYPES[str(self.code_type)], self.shape.numpy(), lambda weight: weight.qweight)

    def zeros(self) -> ChunkedTensor:
        """Laid out like `scales`, in the type of `codes`."""

        def read(weight: QuantizedWeight) -> torch.Tensor:
            assert weight.zero_points is not None
            return weight.zero_points

        return self._part("zeros", CODE_TYPES[str(self.code_type)], self._blockwise_shape(), read)

    def scales(self, dtype: ir.DataType = ir.DataType.FLOAT) -> ChunkedTensor:
        """One scale per output channel and group of `block[1]` input channels: this tensor's shape with the
        input axis divided by `block[1]`. Blocks that span several output channels are repeated, so that every
        scheme looks the same: blocked along `layout.input_axis`.
        """

        def per_channel(weight: QuantizedWeight) -> torch.Tensor:
            rows = weight.scales.float().repeat_interleave(weight.block[0], 0)
            return rows[: weight.qweight.shape[0]]

        return self._part("scales", dtype, self._blockwise_shape(), per_channel)

    def _blockwise_shape(self) -> tuple[int, ...]:
        shape = list(self.shape.numpy())
        shape[self.layout.input_axis] = -(-shape[self.layout.input_axis] // self.block[1])
        return tuple(shape)

    def _part(
        self,
        kind: str,
        dtype: ir.DataType,
        shape: tuple[int, ...],
        part: Callable[[QuantizedWeight], torch.Tensor],
    ) -> ChunkedTensor:
        def read() -> Iterator[ir.TensorProtocol]:
            return (tensor_of(self.layout.apply(part(weight)), dtype) for weight in self.stored_weights())

        return ChunkedTensor(read, dtype, shape, f"{self.name}.{kind}")

    @property
    def format(self) -> Format | None:
        """How the checkpoint stores it; None: as plain floats."""
        return self.checkpoint.format_of(self.names[0])

    @property
    def row_major(self) -> bool:
        """Whether values and scales lie in the checkpoint as ONNX would lay them out."""
        if self.format is None or not self.format.row_major:
            return False
        return all(part.strides is None for name in self.names for part in self.checkpoint.parts(name).values())

    @property
    def scales_dtype(self) -> torch.dtype | None:
        """The type that its scales are stored in; None: it has none."""
        if self.format is None:
            return None
        return DTYPES[self.checkpoint.parts(self.names[0])[self.format.scales_part].dtype]

    def stored_weights(self) -> Iterator[QuantizedWeight]:
        """Each module's codes, as it is in the checkpoint; all of one kind."""
        for module in self.modules:
            weight = self.checkpoint.quantized(module)
            if weight is None or weight.kind != self.kind:
                raise InputError(f"{module}: quantized differently from {self.modules[0]}, its fellow expert")
            yield weight

    def read(self) -> Iterator[torch.Tensor]:
        """Each module's tensor, dequantized in float32, as it is in the checkpoint."""
        return map(self.checkpoint.tensor, self.names)

    def _dequantized(self) -> Iterator[ir.TensorProtocol]:
        return (tensor_of(self.layout.apply(tensor), self.dtype) for tensor in self.read())


def stored_dtype(checkpoint: Checkpoint, name: str) -> ir.DataType:
    """The float type a tensor is stored in; FLOAT where it is quantized."""
    if checkpoint.format_of(name) is not None:
        return ir.DataType.FLOAT
    return FLOAT_TYPES[checkpoint.stored(name).dtype]


def tensor_of(values: torch.Tensor, dtype: ir.DataType) -> ir.TensorProtocol:
    """A torch tensor as an ONNX tensor of `dtype`; int4 comes as int8 and is packed, low nibble first."""
    if dtype == ir.DataType.INT4:
        flat = values.contiguous().view(torch.uint8).flatten() & 15
        flat = torch.nn.functional.pad(flat, (0, flat.numel() % 2))
        packed = flat[0::2] | flat[1::2] << 4
        return ir.PackedTensor(packed.numpy(), dtype, shape=ir.Shape(values.shape))
    if dtype == ir.DataType.FLOAT8E4M3FN:
        array = values.contiguous().view(torch.uint8).numpy().view(dtype.numpy())
    elif dtype == ir.DataType.BFLOAT16:
        array = values.to(torch.bfloat16).contiguous().view(torch.uint16).numpy().view(dtype.numpy())
    else:
        array = values.contiguous().numpy().astype(dtype.numpy(), copy=False)
    return ir.Tensor(array, dtype=dtype)
