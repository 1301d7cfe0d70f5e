"""Writing the quantized checkpoint: one shard per layer, in an order that keeps equal experts' tensors together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import torch

from llmc.convert.checkpoint import INDEX, Checkpoint
from llmc.convert.formats import Layout
from llmc.convert.model import DecoderLayer
from llmc.convert.quantized_weight import QuantizedWeight
from llmc.convert.safetensors_file import SafetensorsWriter, read_header
from llmc.convert.tensor_names import ModuleName, TensorName, module_of, part_of
from llmc.errors import InputError
from llmc.quant.durable import write_json
from llmc.quant.prune import original_name
from llmc.quant.schemes import schemes
from llmc.quant.schemes.base import Scheme


def shard_path(directory: Path, number: int, count: int) -> Path:
    """`model-00001-of-00005.safetensors` for number 0 of 5: the ends of the model first, then its layers."""
    return directory / f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def scheme_of(weight: QuantizedWeight, layout: Layout, wanted: Scheme | None = None) -> Scheme | None:
    """The scheme that stores these codes as they are, `wanted` if it does; None when none of the layout's does."""
    known = [*([wanted] if wanted else []), *schemes.all.values()]
    return next((scheme for scheme in known if scheme.stores(weight) and layout.takes(scheme.spec)), None)


def write_ends(
    checkpoint: Checkpoint,
    path: Path,
    layout: Layout,
    weights: Mapping[str, QuantizedWeight] = MappingProxyType({}),
    assigned: Mapping[str, Scheme] = MappingProxyType({}),
) -> None:
    """Embedding, final norm and head: quantized where `weights` has codes of the scheme `assigned` to them, by module;
    all else bit for bit, of codes their values, in bfloat16.
    """
    stored = checkpoint.stored_names.stored
    with SafetensorsWriter(path) as writer:
        for name in map(str, checkpoint.names_of(None)):
            module = module_of(name)
            if part_of(name) == "weight" and module in weights:
                spec = assigned[module].spec
                tensors = layout.format_of(spec).encode(module, weights[module], spec)
            elif codes := checkpoint.quantized_tensor(name):
                tensors = {name: codes.dequantize(torch.bfloat16)}
            else:
                tensors = {name: checkpoint.stored(name).read()}
            for each, tensor in tensors.items():
                writer.add(stored(each), tensor)


def write_layer(
    checkpoint: Checkpoint,
    index: int,
    layer: DecoderLayer | None,
    kept: list[int] | None,
    weights: dict[str, QuantizedWeight],
    assigned: dict[str, Scheme],
    path: Path,
    layout: Layout,
    left_out: Collection[str] = (),
) -> dict[str, str]:
    """Writes `model.layers.<index>` under the names of the checkpoint's family; returns module → scheme for all that is
    stored quantized, by our names.

    Args:
        kept: the surviving experts by their original numbers, None: all
        weights: quantized modules by name inside the layer, experts renumbered; all else is copied from the checkpoint,
            quantized modules of its own included, and the router from `layer`, where it is pruned
        assigned: the scheme that each module is to be stored in, by the same names
        left_out: tensors of the checkpoint that are not written
    """
    shard = _LayerShard(checkpoint, kept, weights, assigned, layout)
    scales = layer.self_attn.cache_scales if layer is not None else {}
    with SafetensorsWriter(path) as writer:

        def add(tensors: dict[str, torch.Tensor]) -> None:
            for name, tensor in tensors.items():
                if f"{name.rpartition('.')[0]}.k_proj.weight" in checkpoint:
                    name = layout.cache_scale(name)
                writer.add(checkpoint.stored_names.stored(name), tensor)

        experts: dict[TensorName, list[TensorName]] = {}
        done: set[TensorName] = set()
        for name in checkpoint.names_of(index):
            if name in done or str(name) in left_out:
                continue
            if name.module.expert is None:
                members = shard.members(name)
                add(shard.tensors(members))
                done.update(members)
            elif (new := shard.renumbered(name)) is not None:
                experts.setdefault(TensorName(replace(name.module, expert=None), name.part), []).append(new)
        for key, scale in scales.items():
            name = TensorName(ModuleName(index, "self_attn", None, ""), key)
            if str(name) not in checkpoint:
                add({str(name): torch.tensor([scale])})
        for tensors in shard.of_experts(experts):
            add(tensors)
    return shard.used


@dataclass
class _LayerShard:
    """What is stored for tensors of a layer; names are ours, experts renumbered."""

    checkpoint: Checkpoint
    kept: list[int] | None
    weights: dict[str, QuantizedWeight]
    assigned: dict[str, Scheme]
    layout: Layout
    used: dict[str, str] = field(default_factory=dict)

    def members(self, name: TensorName) -> list[TensorName]:
        """All tensors that are stored as one with this one."""
        _, modules = self.checkpoint.stored_names.joined_module(name.module)
        return [each for module in modules if str(each := TensorName(module, name.part)) in self.checkpoint]

    def renumbered(self, name: TensorName) -> TensorName | None:
        """The name of an expert's tensor in the result; None: the expert is pruned."""
        if self.kept is None or name.module.expert is None:
            return name
        if name.module.expert not in self._numbers:
            return None
        return TensorName(replace(name.module, expert=self._numbers[name.module.expert]), name.part)

    @cached_property
    def _numbers(self) -> dict[int, int]:
        return {old: new for new, old in enumerate(self.kept or ())}

    def _source(self, name: TensorName) -> str:
        """Its name in the checkpoint."""
        return f"{original_name(str(name.module), self.kept)}.{name.part}"

    def weight(self, name: TensorName) -> QuantizedWeight | None:
        """The codes that it becomes or is; None where it stays plain."""
        new = self.weights.get(name.module.inside) if name.part == "weight" else None
        return self.checkpoint.quantized_tensor(self._source(name)) if new is None else new

    def plain(self, name: TensorName) -> torch.Tensor:
        stored = self.checkpoint.stored(self._source(name)).read()
        return stored[self.kept] if self.kept is not None and name.module.is_router else stored

    def tensors(self, names: list[TensorName]) -> dict[str, torch.Tensor]:
        """What is stored for these, which are stored as one."""
        first, stored_names = names[0], self.checkpoint.stored_names
        module = stored_names.joined_module(first.module)[0]
        weights = [weight for name in names if (weight := self.weight(name)) is not None]
        if not weights:
            parts = [self.plain(name) for name in names]
            return {str(TensorName(module, first.part)): torch.cat(parts) if len(parts) > 1 else parts[0]}
        if len(weights) < len(names):
            raise InputError(
                f"{module}: some of what is stored as this is quantized and some is not; let one rule of `quantize` "
                "match all of it"
            )
        weight = joined(str(module), weights)
        scheme = scheme_of(weight, self.layout, self.assigned.get(first.module.inside))
        if scheme is None:
            return {str(TensorName(module, first.part)): weight.dequantize(torch.bfloat16)}
        self.used |= {str(name.module): scheme.name for name in names}
        return self.layout.format_of(scheme.spec).encode(str(module), weight, scheme.spec)

    def of_experts(self, experts: dict[TensorName, list[TensorName]]) -> Iterator[dict[str, torch.Tensor]]:
        """Tensors of routed experts, all of one projection behind one another."""
        ordered = sorted(experts.items(), key=lambda item: str(item[0]))
        names = self.checkpoint.stored_names
        if experts and names.stacked and all(self._is_stacked(members[0]) for members in experts.values()):
            yield from self._stacks(experts)
            return
        for _, members in ordered:
            # All experts' packed weights first, then all their scales: each kind is one stack on disk.
            columns = [self.tensors([name]) for name in sorted(members, key=lambda name: name.module.expert or 0)]
            for column in zip(*(stored.items() for stored in columns), strict=True):
                yield dict(column)

    def _is_stacked(self, name: TensorName) -> bool:
        """Whether an expert's tensor stays in a stack."""
        weight = self.weight(name)
        if weight is None:
            return True
        scheme = scheme_of(weight, self.layout, self.assigned.get(name.module.inside))
        return scheme is not None and self.layout.format_of(scheme.spec).stacked

    def _stacks(self, experts: dict[TensorName, list[TensorName]]) -> Iterator[dict[str, torch.Tensor]]:
        """One tensor [E, rows, …], or transposed, for each stored projection and what it is stored in."""
        stored_names = self.checkpoint.stored_names
        for part in sorted({name.part for name in experts}):
            mine = {name.module.projection: name for name in experts if name.part == part}
            for projection, members in stored_names.stacks(mine).items():
                names = [mine[member] for member in members]
                columns = [sorted(experts[name], key=lambda each: each.module.expert or 0) for name in names]
                stored: dict[str, list[torch.Tensor]] = {}
                for one in zip(*columns, strict=True):
                    for tensors in zip(*(self.tensors([each]).items() for each in one), strict=True):
                        kind = part_of(tensors[0][0])
                        stored.setdefault(kind, []).append(stored_names.in_stack(kind, [each for _, each in tensors]))
                module = replace(names[0].module, projection=projection)
                for kind, found in stored.items():
                    yield {str(TensorName(module, kind)): torch.stack(found)}


def joined(module: str, weights: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """The weights below each other; InputError where that is no weight of one scheme."""
    first = weights[0]
    if len(weights) == 1:
        return first
    rows = sum(weight.shape[0] for weight in weights)
    same = all(
        (weight.kind, weight.scales.dtype, weight.activations) == (first.kind, first.scales.dtype, first.activations)
        and (weight.g_idx is None or (first.g_idx is not None and torch.equal(weight.g_idx, first.g_idx)))
        and weight.shape[0] % weight.block[0] == 0
        for weight in weights
    )
    first_level = [weight.two_level for weight in weights]
    same = same and len({None if level is None else level.divisor.item() for level in first_level}) == 1
    if not same or first.block[0] not in (1, 128):
        raise InputError(
            f"{module}: {', '.join(dict.fromkeys(str(weight.kind) for weight in weights))}: what is stored as this has "
            f"no scales that fit one matrix of {rows} rows; use a scheme with groups or channels for it"
        )

    def parts(name: str) -> torch.Tensor | None:
        found = [getattr(weight, name) for weight in weights]
        return None if found[0] is None else torch.cat(found)

    qweight, scales = parts("qweight"), parts("scales")
    assert qweight is not None and scales is not None
    two_level = first.two_level
    if two_level is not None:
        two_level = replace(two_level, codes=torch.cat([level.codes for level in first_level if level is not None]))
    return replace(first, qweight=qweight, scales=scales, zero_points=parts("zero_points"), two_level=two_level)


def write_index(shards: list[Path]) -> None:
    """`model.safetensors.index.json` for shards that are all there."""
    headers = {path.name: read_header(path) for path in shards}
    weight_map = {name: file for file, tensors in headers.items() for name in tensors}
    total = sum(tensor.nbytes for tensors in headers.values() for tensor in tensors.values())
    write_json(shards[0].parent / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
