"""The file: which type each tensor has, then tensor after tensor, each of which is in memory alone."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from llmc.contracts.progress import ProgressFunction
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.gguf.architectures import architecture, obstacle
from llmc.convert.gguf.arrangement import Arranged, arranged
from llmc.convert.targets.gguf.blocks import SIZE, common_type, encode, exact_type
from llmc.convert.targets.gguf.metadata import write_metadata
from llmc.convert.targets.gguf.tokenizer import write_tokenizer
from llmc.convert.tensor_names import module_of
from llmc.errors import InputError

if TYPE_CHECKING:
    from llmc.convert.targets.gguf import GgufOptions

FREQUENCIES = "rope_freqs.weight"
_FLOATS = {"F16": Type.F16, "BF16": Type.BF16, "F32": Type.F32}
_LOG = "gguf"  # the package warns of what is no trouble, in words for whoever converts models with its scripts
_EXACT = (Type.F32, Type.F16, Type.BF16)
_FILE_TYPES = {
    Type.F32: gguf.LlamaFileType.ALL_F32,
    Type.F16: gguf.LlamaFileType.MOSTLY_F16,
    Type.BF16: gguf.LlamaFileType.MOSTLY_BF16,
    Type.Q4_0: gguf.LlamaFileType.MOSTLY_Q4_0,
    Type.Q4_1: gguf.LlamaFileType.MOSTLY_Q4_1,
    Type.Q5_0: gguf.LlamaFileType.MOSTLY_Q5_0,
    Type.Q5_1: gguf.LlamaFileType.MOSTLY_Q5_1,
    Type.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0,
    Type.MXFP4: gguf.LlamaFileType.MOSTLY_MXFP4_MOE,
}

Array = NDArray[Any]


@dataclass
class Written:
    """What the file holds.

    Attributes:
        types: llama.cpp's name of a type → how many weights
        exact: what became of codes that kept their places: weights, scales, and scales that float16 rounds
        rounded: type → weights that were rounded to it, and the error relative to their norm
    """

    notes: list[str] = field(default_factory=list)
    types: dict[str, int] = field(default_factory=dict)
    weight_bytes: int = 0
    exact: dict[str, int] = field(default_factory=lambda: {"weights": 0, "scales": 0, "inexact_scales": 0})
    rounded: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def bits_per_weight(self) -> float:
        return round(8 * self.weight_bytes / max(1, sum(self.types.values())), 4)


def write(checkpoint: Checkpoint, options: GgufOptions, path: Path, progress: ProgressFunction) -> Written:
    """Write a checkpoint as GGUF.

    Args:
        checkpoint: With tokenizer.json beside it.
        options: The target's.
        path: Of the file, whose folder is made.
        progress: Is told of bytes.

    Raises:
        InputError: for a model, or a tokenizer, that llama.cpp does not have
    """
    spec, config = checkpoint.spec, checkpoint.family.text_config(checkpoint.config)
    found = architecture(spec.family)
    if (why := obstacle(spec, config)) or found is None:
        raise InputError(f"target gguf: {why}; take it out of `targets`")
    logging.getLogger(_LOG).setLevel(logging.ERROR)
    mtp = options.mtp and spec.num_mtp_layers > 0
    writing = _Writing(checkpoint, options)
    tensors = [(each, writing.type_of(each)) for each in arranged(spec, found, mtp)]
    writer = gguf.GGUFWriter(None, found.name)
    factors = write_metadata(writer, spec, found, config, mtp)
    writing.result.notes += write_tokenizer(writer, checkpoint.path, spec, options.pre_tokenizer)
    weights = Counter[Type]()
    for each, kind in tensors:
        weights[kind] += int(np.prod(each.shape)) if not each.plain else 0
        shape = gguf.quant_shape_to_byte_shape(each.shape, kind)
        nbytes = int(np.prod(shape))
        writing.result.weight_bytes += nbytes
        writer.add_tensor_info(each.name, list(shape), np.dtype(np.uint8), nbytes, kind)
    if factors:
        writer.add_tensor_info(FREQUENCIES, [len(factors)], np.dtype(np.float32), 4 * len(factors))
    writer.add_file_type(_FILE_TYPES[max(weights, key=lambda kind: (weights[kind], kind))])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        done = 0
        for each, kind in tensors:
            data = writing.data(each, kind)
            writer.write_tensor_data(data)
            done += data.nbytes
            progress("weights", done / writing.result.weight_bytes)
        if factors:
            writer.write_tensor_data(np.array(factors, np.float32))
    finally:
        writer.close()
    writing.tell(mtp)
    return writing.result


class _Writing:
    """Types and bytes of one checkpoint's tensors."""

    def __init__(self, checkpoint: Checkpoint, options: GgufOptions) -> None:
        self.checkpoint, self.options, self.result = checkpoint, options, Written()
        self._errors: dict[Type, tuple[int, float, float]] = {}  # weights, squared error, squared norm

    def type_of(self, each: Arranged) -> Type:
        """Return the type of one tensor, from headers."""
        if each.plain:
            return Type.F32
        columns = each.shape[-1]
        specs = [self.checkpoint.kind(name) for name in each.sources]
        quantized = [spec for spec in specs if spec is not None]
        if len(quantized) < len(specs):
            return self._float_type([name for name, spec in zip(each.sources, specs, strict=True) if spec is None])
        if not each.transposed:
            exact = common_type({exact_type(spec, columns) for spec in dict.fromkeys(quantized)})
            if exact is not None:
                return exact
        other = Type[self.options.other.upper()]
        return Type.F16 if other == Type.Q8_0 and columns % SIZE else other

    def _float_type(self, names: list[str]) -> Type:
        if self.options.floats != "as stored":
            return Type[self.options.floats.upper()]
        stored = {_FLOATS[self.checkpoint.stored(name).dtype] for name in names}
        return stored.pop() if len(stored) == 1 else Type.F32

    def data(self, each: Arranged, kind: Type) -> Array:
        """Return the bytes of one tensor, uint8, in the shape that the type gives them."""
        shape = gguf.quant_shape_to_byte_shape(each.shape, kind)
        if len(each.sources) == 1:
            return self._one(each, each.sources[0], kind, each.shape).reshape(shape)
        whole = np.empty(shape, np.uint8)
        for index, name in enumerate(each.sources):
            whole[index] = self._one(each, name, kind, each.shape[1:])
        return whole

    def _one(self, each: Arranged, name: str, kind: Type, shape: tuple[int, ...]) -> Array:
        weight = self.checkpoint.quantized_tensor(name)
        if weight is not None and not each.transposed and kind not in _EXACT:
            own = exact_type(weight.kind, weight.shape[1])
            if own is not None and common_type({own, kind}) == kind:
                encoded = encode(weight, kind, name)
                counts = self.result.exact
                counts["weights"] += weight.qweight.numel()
                counts["scales"] += encoded.scales
                counts["inexact_scales"] += encoded.inexact
                self._count(kind, weight.qweight.numel())
                blocks = encoded.blocks
                if encoded.inexact:
                    self._lost(kind, weight.dequantize().numpy(), blocks)
                return blocks if each.rows is None else blocks[each.rows]
        values = self.checkpoint.tensor(name) if weight is None else weight.dequantize()
        if each.rows is not None:
            values = values[torch.from_numpy(each.rows)]
        if each.transposed:
            values = values.unflatten(0, (shape[0], -1)).mT
        wide = values.reshape(shape).contiguous().numpy()
        self._count(kind, wide.size)
        made = gguf.quants.quantize(wide, kind)
        if not each.plain:
            self._lost(kind, wide, made)
        return np.ascontiguousarray(made).view(np.uint8)

    def _count(self, kind: Type, weights: int) -> None:
        self.result.types[kind.name] = self.result.types.get(kind.name, 0) + weights

    def _lost(self, kind: Type, wide: Array, made: Array) -> None:
        """Adds how far what was made is from what it was."""
        decoded = gguf.quants.dequantize(made, kind).reshape(wide.shape)
        error = float(np.square(decoded - wide, dtype=np.float64).sum())
        if error:
            weights, errors, norms = self._errors.get(kind, (0, 0.0, 0.0))
            norm = float(np.square(wide, dtype=np.float64).sum())
            self._errors[kind] = weights + wide.size, errors + error, norms + norm

    def tell(self, mtp: bool) -> None:
        """Adds the notes: what was lost, and what was left out."""
        result, spec = self.result, self.checkpoint.spec
        if inexact := result.exact["inexact_scales"]:
            result.notes.append(
                f"{inexact:,} of {result.exact['scales']:,} scales are rounded, since float16 does not hold them"
            )
        for kind, (weights, error, norm) in sorted(self._errors.items()):
            relative = float(np.sqrt(error / norm)) if norm else 0.0
            result.rounded[kind.name] = {"weights": weights, "relative_error": float(f"{relative:.4g}")}
            result.notes.append(f"{weights:,} weights are rounded to {kind.name}, a relative error of {relative:.2g}")
        if spec.num_mtp_layers:
            layers = f"{spec.num_mtp_layers} layer{'s' if spec.num_mtp_layers > 1 else ''} for multi-token prediction"
            result.notes.append(f"{layers}: {'written as nextn' if mtp else 'left out; `mtp: true` writes them'}")
        if spec.fp8_cache:
            result.notes.append("llama.cpp's cache is not FP8")
        if any(self.checkpoint.activations(module_of(name)) for name in self.checkpoint.names()):
            result.notes.append("the inputs of quantized layers are not rounded as the recipe says")
