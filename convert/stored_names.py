"""How the checkpoints of a family name and join what llmc knows under names of its own.

Reading gives every tensor its own name; one that is stored joined with others, or in a stack of experts, becomes a
`StoredTensor` that points at its rows or columns: nothing is read for it, and reading it reads no other expert. Writing
goes the other way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from llmc.convert.formats import cuts
from llmc.convert.layer_modules import layer_modules
from llmc.convert.safetensors_file import StoredTensor
from llmc.convert.spec import LinearSpec, MixtureOfExpertsSpec, ModelSpec
from llmc.convert.tensor_names import ModuleName, TensorName
from llmc.errors import InputError

EXPERTS = "mlp.experts"


@dataclass(frozen=True)
class StoredNames:
    """How a family names, joins and stacks the tensors of its checkpoints.

    Attributes:
        renamed: (stored, ours): dotted pieces of names, replaced in this order wherever they occur
        joined: by our name of the block and the stored projection, whose rows lie one below the other in it:
            {"self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj")}; of "mlp.experts" in a stack
        prefixes: how the names of a language model inside a larger one begin, in one or more spellings, each of them
            pairs (stored, ours)
        kept: beginnings of the names of tensors outside of the language model
        mtp: how the names of a layer for multi-token prediction begin, with {} for its number among them; empty: as
            ours, those of the layers behind the decoder's
        stacked: whether plain experts are stored as one tensor [E, rows, columns] per projection; quantized ones are
            not: no format has a stack of them; "where found": unless a checkpoint has them one by one
        transposed: whether plain matrices in a stack are [columns, rows]; "unless shaped": all but those whose shape
            is [rows, columns], as transformers reads and saves them
        interleaved: whether what is joined in a stack takes turns, row by row, instead of lying one below the other
    """

    renamed: tuple[tuple[str, str], ...] = ()
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    stacked: bool | Literal["where found"] = False
    transposed: bool | Literal["unless shaped"] = False
    interleaved: bool = False
    prefixes: tuple[tuple[tuple[str, str], ...], ...] = ()
    kept: tuple[str, ...] = ()
    mtp: str = ""

    def spelled_as(self, names: Iterable[str], spec: ModelSpec) -> StoredNames:
        """The same, for a model: with the one of its spellings that these names have most of, and the layers for
        multi-token prediction by their numbers.
        """
        spelling, names, stacked = self._prefixes, [*names], self.stacked
        if len(self.prefixes) > 1:
            counts = [sum(name.startswith(spelling[0][0]) for name in names) for spelling in self.prefixes]
            spelling = self.prefixes[counts.index(max(counts))]
        depths = range(spec.num_mtp_layers if self.mtp else 0)
        layers = [(f"{self.mtp.format(depth)}.", f"model.layers.{spec.num_layers + depth}.") for depth in depths]
        if stacked == "where found":
            stacked = not any(".experts.0." in name for name in names if not name.startswith(self.kept))
        return replace(self, stacked=stacked, prefixes=((*layers, *spelling),) if layers or spelling else ())

    # Reading -----------------------------------------------------------------------------------------------------

    def read(self, tensors: Mapping[str, StoredTensor], spec: ModelSpec) -> dict[str, StoredTensor]:
        """Tensors by our names; InputError for a joined one whose rows are not those of its parts."""
        if self == StoredNames():
            return dict(tensors)
        found: dict[str, StoredTensor] = {}
        for stored, tensor in tensors.items():
            if stored.startswith(self.kept):
                found[stored] = tensor
                continue
            ours = _replaced(_with_prefix(stored, self._prefixes), self.renamed)
            for name, part in self._parts(TensorName.parse(ours), tensor, spec):
                if (other := found.setdefault(str(name), part)) is not part:
                    raise InputError(f"{tensor.file}: {tensor.name} and {other.name} are the same tensor of the model")
        return found

    def _parts(
        self, name: TensorName, tensor: StoredTensor, spec: ModelSpec
    ) -> Iterator[tuple[TensorName, StoredTensor]]:
        module = name.module
        if module.layer is None or module.layer >= spec.num_all_layers:
            yield name, tensor
            return
        mlp, members = spec.mlps[module.layer], self.joined.get(_key(module), (module.projection,))
        if module.block == EXPERTS and module.expert is None and isinstance(mlp, MixtureOfExpertsSpec):
            experts = mlp.router.num_experts
            if tensor.shape[:1] != (experts,):
                raise InputError(f"{tensor.file}: {tensor.name} {list(tensor.shape)} is no stack of {experts} experts")
            for expert in range(experts):
                one = tensor.item(expert)
                mine = replace(name, module=replace(module, expert=expert))
                if self._is_transposed(mine, members, one, spec):
                    one = one.transposed()
                yield from _cut(mine, members, one, spec, self.interleaved)
        elif module.expert is None:
            yield from _cut(name, members, tensor, spec)
        else:
            yield name, tensor

    def _is_transposed(self, name: TensorName, members: Sequence[str], one: StoredTensor, spec: ModelSpec) -> bool:
        """Whether a matrix in a stack is."""
        if not self.transposed or name.part != "weight" or len(one.shape) != 2:
            return False
        linears = _linears(name, members, spec)
        shape = (sum(each.outputs for each in linears), linears[0].inputs) if linears else None
        return self.transposed is True or one.shape != shape

    # Writing -----------------------------------------------------------------------------------------------------

    def stored(self, name: str) -> str:
        """The name that the family's checkpoints have for a tensor, or a module, of ours."""
        if name.startswith(self.kept):
            return name
        if self.renamed:
            name = _replaced(name, [(ours, stored) for stored, ours in reversed(self.renamed)])
        return _with_prefix(name, [(ours, stored) for stored, ours in self._prefixes])

    @property
    def _prefixes(self) -> Sequence[tuple[str, str]]:
        return self.prefixes[0] if self.prefixes else ()

    def joined_module(self, module: ModuleName) -> tuple[ModuleName, tuple[ModuleName, ...]]:
        """The one, still by our names, in whose tensors a module is stored, and all that lie there."""
        for key, members in self.joined.items():
            block, _, whole = key.rpartition(".")
            if module.expert is None and block == module.block and module.projection in members:
                return replace(module, projection=whole), tuple(replace(module, projection=each) for each in members)
        return module, (module,)

    def stored_module(self, module: str) -> str:
        """The stored module that one of ours lies in; of experts in a stack that which it would be if quantized."""
        if self.joined:
            module = str(self.joined_module(ModuleName.parse(module))[0])
        return self.stored(module)

    def stacks(self, projections: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """By the stored projection of all experts: those of ours whose rows lie in each expert's part."""
        joined = {key.rpartition(".")[2]: parts for key, parts in self.joined.items() if key.startswith(f"{EXPERTS}.")}
        inside = {part for parts in joined.values() for part in parts}
        return joined | {each: (each,) for each in projections if each not in inside}

    def in_stack(self, part: str, members: Sequence[torch.Tensor]) -> torch.Tensor:
        """One expert's part of a stack: the tensors of ours that lie in it."""
        turns = self.interleaved and len(members) > 1
        whole = torch.stack(tuple(members), 1).flatten(0, 1) if turns else torch.cat(tuple(members))
        return whole.T if self.transposed and part == "weight" else whole


def _key(module: ModuleName) -> str:
    return f"{module.block}.{module.projection}"


def _with_prefix(name: str, pairs: Sequence[tuple[str, str]]) -> str:
    """A name, of a tensor or a module, that begins otherwise."""
    dotted = f"{name}."
    for before, after in pairs:
        if dotted.startswith(before):
            return (after + dotted.removeprefix(before))[:-1]
    return name


def _replaced(name: str, pairs: Sequence[tuple[str, str]]) -> str:
    dotted = f".{name}."
    for before, after in pairs:
        dotted = dotted.replace(f".{before}.", f".{after}.")
    return dotted[1:-1]


def _linears(name: TensorName, members: Sequence[str], spec: ModelSpec) -> list[LinearSpec]:
    """Those members of a joined module that there are in its layer."""
    assert name.module.layer is not None
    modules = layer_modules(spec, name.module.layer)
    found = (modules.get(replace(name.module, projection=member).inside) for member in members)
    return [each for each in found if isinstance(each, LinearSpec)]


def _cut(
    name: TensorName, members: Sequence[str], tensor: StoredTensor, spec: ModelSpec, interleaved: bool = False
) -> Iterator[tuple[TensorName, StoredTensor]]:
    """The rows of each member of a joined module."""
    if len(members) == 1:
        yield TensorName(replace(name.module, projection=members[0]), name.part), tensor
        return
    names = [replace(name.module, projection=member) for member in members]
    sizes = [each.outputs for each in _linears(name, members, spec)]
    if len(sizes) < len(members):  # not in this layer
        yield name, tensor
        return
    cut = cuts().get(name.part)
    if cut == "none":
        return
    if cut == "refused":
        raise InputError(
            f"{tensor.file}: {tensor.name}: modules that are stored as one are not read in GPTQ's own layout; use a "
            "checkpoint in compressed-tensors layout"
        )
    whole, turns, start = cut == "whole" or tensor.shape in ((), (1,)), len(names) if interleaved else 1, 0
    for module, size in zip(names, sizes, strict=True):
        stop = sum(sizes) if interleaved else start + size
        yield TensorName(module, name.part), tensor if whole else _rows(tensor, start, stop, sum(sizes), turns)
        start = start + 1 if interleaved else stop


def _rows(tensor: StoredTensor, start: int, stop: int, total: int, turns: int) -> StoredTensor:
    """Rows of a matrix of `total` rows, or what belongs to them of scales and packed zero points: one for some power of
    two of rows. Of `turns` matrices whose rows take turns, one.
    """
    count = tensor.shape[0] if tensor.shape else 0
    unit = total // count if count else 0
    if turns > 1 and count == total and total % turns == 0:
        return tensor.rows(start, stop, turns)
    if turns > 1 or not unit or unit * count != total or unit & (unit - 1) or start % unit or stop % unit:
        raise InputError(
            f"{tensor.file}: {tensor.name} {list(tensor.shape)} cannot be cut "
            + (f"in {turns} rows that take turns" if turns > 1 else f"at rows {start} and {stop}")
            + f" of the {total} that config.json asks for; one of the two belongs to another model"
        )
    return tensor.rows(start // unit, stop // unit)
