"""Writing the quantized checkpoint: one shard per layer, in an order that keeps equal experts' tensors together."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from llmc.convert.checkpoint import INDEX, Checkpoint
from llmc.convert.model import DecoderLayer
from llmc.convert.quantized_weight import QuantizedWeight
from llmc.convert.safetensors_file import SafetensorsWriter, read_header
from llmc.quant.durable import write_json
from llmc.quant.layouts.layout import Layout
from llmc.quant.schemes import schemes
from llmc.quant.schemes.scheme import Scheme


def shard_path(directory: Path, number: int, count: int) -> Path:
    """`model-00001-of-00005.safetensors` for number 0 of 5: the ends of the model first, then its layers."""
    return directory / f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def scheme_of(weight: QuantizedWeight, layout: Layout, wanted: Scheme | None = None) -> Scheme | None:
    """The scheme that stores these codes as they are, `wanted` if it does; None when none of the layout's does."""
    known = [*([wanted] if wanted else []), *schemes().values()]
    return next((scheme for scheme in known if scheme.stores(weight) and layout.takes(scheme)), None)


def write_ends(checkpoint: Checkpoint, path: Path) -> None:
    """Embedding, final norm and head, bit for bit; of codes their values, in bfloat16."""
    with SafetensorsWriter(path) as writer:
        for name in checkpoint.names():
            if not name.startswith("model.layers."):
                codes = checkpoint.quantized(name.removesuffix(".weight"))
                writer.add(name, codes.dequantize(torch.bfloat16) if codes else checkpoint.stored(name).read())


def write_layer(
    checkpoint: Checkpoint,
    index: int,
    layer: DecoderLayer | None,
    kept: list[int] | None,
    weights: dict[str, QuantizedWeight],
    assigned: dict[str, Scheme],
    path: Path,
    layout: Layout,
) -> dict[str, str]:
    """Writes `model.layers.<index>`; returns module → scheme for all that is stored quantized.

    kept: the surviving experts by their original numbers, None: all
    weights: quantized modules by name inside the layer, experts renumbered; all else is copied from the
        checkpoint, quantized modules of its own included, and the router from `layer`, where it is pruned
    assigned: the scheme that each module is to be stored in, by the same names
    """
    prefix = f"model.layers.{index}."
    renumbered = {old: new for new, old in enumerate(kept)} if kept is not None else None
    used: dict[str, str] = {}

    def tensors(old: str, new: str) -> dict[str, torch.Tensor]:
        """What is stored for the tensor named `old` in the checkpoint and `new` in the result."""
        module = new.removesuffix(".weight").removeprefix(prefix)
        weight = weights.get(module)
        if weight is None and old.endswith(".weight"):
            weight = checkpoint.quantized(old.removesuffix(".weight"))
        if weight is not None:
            scheme = scheme_of(weight, layout, assigned.get(module))
            if scheme is not None:
                used[prefix + module] = scheme.name
                return layout.tensors(prefix + module, scheme, weight)
            return {new: weight.dequantize(torch.bfloat16)}
        stored = checkpoint.stored(old).read()
        if layer is not None and kept is not None and new.startswith(f"{prefix}mlp.gate."):
            stored = stored[kept]
        return {new: stored}

    scales = layer.self_attn.cache_scales if layer is not None else {}
    names = [name for name in checkpoint.names() if name.startswith(prefix)]
    experts: dict[str, list[tuple[int, str]]] = {}
    with SafetensorsWriter(path) as writer:
        for name in names:
            match = re.fullmatch(r"(.*\.experts\.)(\d+)(\..*)", name)
            if match is None:
                for key, tensor in tensors(name, name).items():
                    writer.add(key, tensor)
            elif renumbered is None or int(match[2]) in renumbered:
                number = int(match[2]) if renumbered is None else renumbered[int(match[2])]
                experts.setdefault(match[1] + "*" + match[3], []).append((number, name))
        for name, scale in scales.items():
            if f"{prefix}self_attn.{name}" not in checkpoint:
                writer.add(f"{prefix}self_attn.{name}", torch.tensor([scale]))
        for pattern, members in sorted(experts.items()):
            # All experts' packed weights first, then all their scales: each kind is one stack on disk.
            columns = [tensors(name, pattern.replace("*", str(number))) for number, name in sorted(members)]
            for column in zip(*(stored.items() for stored in columns), strict=True):
                for key, tensor in column:
                    writer.add(key, tensor)
    return used


def write_index(shards: list[Path]) -> None:
    """`model.safetensors.index.json` for shards that are all there."""
    headers = {path.name: read_header(path) for path in shards}
    weight_map = {name: file for file, tensors in headers.items() for name in tensors}
    total = sum(tensor.nbytes for tensors in headers.values() for tensor in tensors.values())
    write_json(shards[0].parent / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
