"""What a build will take and give, from the checkpoint's headers alone: no weight is read."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from llmc import machine
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.formats import layout
from llmc.convert.quantized_weight import QuantizedWeight
from llmc.convert.spec import (
    CACHE_SCALES,
    LatentAttentionSpec,
    MixtureOfExpertsSpec,
    MLPSpec,
    ModelSpec,
    StateSpec,
    state_bytes,
)
from llmc.convert.targets import PlannedWeights, Target, target
from llmc.convert.tensor_names import ModuleName, TensorName
from llmc.default_rules import rules_of
from llmc.default_targets import target_notes
from llmc.errors import InputError, MachineError
from llmc.peak_memory import BASE_MEMORY, activation_bytes, peak_memory, stream_bytes
from llmc.progress import size
from llmc.quant.assign import Assignment, assign, stale_copies
from llmc.quant.output_hessian_pass import scratch_bytes
from llmc.quant.prune import kept_per_group, routers
from llmc.quant.schemes import scheme
from llmc.quant.schemes.base import Scheme
from llmc.recipe import Recipe
from llmc.sizes import Size, tensor_sizes


@dataclass(frozen=True)
class Change:
    """A role or a layer, before and after the build."""

    before: Size
    after: Size

    def __add__(self, other: Change) -> Change:
        return Change(self.before + other.before, self.after + other.after)


_NOTHING = Change(Size(0, 0), Size(0, 0))


@dataclass(frozen=True)
class Point:
    """One size that a model could have.

    Attributes:
        bytes: Of the safetensors.
        bits: Mean bits of the parameters that may be quantized, scales included.
        kl: Predicted, in nats per token.
    """

    bytes: int
    bits: float
    kl: float


@dataclass(frozen=True)
class PlannedBudget:
    """How a budget would be spent.

    Attributes:
        asked: As the recipe says it.
        measured: What sensitivities were measured on; None: they were not, and what gets how many bits is a guess.
        point: What comes of it; its `kl` is NaN for a guess.
        curve: What other sizes would cost; empty for a guess.
    """

    asked: str
    measured: str | None
    point: Point
    curve: list[Point]


@dataclass(frozen=True)
class Plan:
    """What a build takes and gives, from headers alone; memory, work_disk and target_bytes are estimates.

    Attributes:
        roles: What becomes of each role.
        schemes: Role → scheme → parameters that are left after pruning.
        cache_bytes: Per token, as the cache is stored.
        cache_bytes_expanded: Per token, as keys and values of every head.
        hessian_memory: What the solver and the Hessians that are worked on at once may take; the result does not depend
            on it.
        notes: Lines about what is not as usual, and why.
        budget: How the recipe's would be spent; None: it has none.
    """

    name: str
    family: str
    layers: int
    mtp_layers: int
    experts: list[int]  # before and after pruning; empty for a dense model
    roles: dict[str, Change]
    schemes: dict[str, dict[str, int]]  # role -> scheme -> parameters
    total: Change
    cache_bytes: int
    cache_bytes_expanded: int
    memory: int
    gpu_memory: int | None
    hessian_memory: int
    work_disk: int
    target_bytes: dict[str, int]
    memory_available: int
    gpu_memory_available: int
    disk_free: int
    notes: list[str] = field(default_factory=list)
    budget: PlannedBudget | None = None

    @property
    def output_disk(self) -> int:
        return self.total.after.bytes + sum(self.target_bytes.values())

    @property
    def fits_memory(self) -> bool:
        return self.memory <= self.memory_available

    @property
    def fits_gpu(self) -> bool:
        return self.gpu_memory is None or self.gpu_memory <= self.gpu_memory_available

    @property
    def fits_disk(self) -> bool:
        return self.work_disk + self.output_disk <= self.disk_free

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "output_disk": self.output_disk,
            "fits_memory": self.fits_memory,
            "fits_disk": self.fits_disk,
        }

    def require(self, output: Path, already: int) -> None:
        """MachineError if the build cannot fit; `already` bytes of it lie on the disk."""
        needed = self.work_disk + self.output_disk - already
        if needed > self.disk_free:
            raise MachineError(
                f"{output}: the build needs {size(needed)} of disk, but only {size(self.disk_free)} are free; "
                "free some, or choose another --output"
            )
        if not self.fits_memory:
            raise MachineError(
                f"the build needs about {size(self.memory)} of memory, but only {size(self.memory_available)} are "
                "free or allowed; stop other programs, raise --memory, or use a larger machine"
            )
        if not self.fits_gpu:
            raise MachineError(
                f"the build needs about {size(self.gpu_memory or 0)} of GPU memory, more than the "
                f"{size(self.gpu_memory_available)} allowed; raise --gpu-memory, or leave it out to work on the CPU"
            )


def plan(
    checkpoint: Checkpoint, recipe: Recipe, output: Path, memory: int | None = None, gpu_memory: int | None = None
) -> Plan:
    """The plan of a build into `output` that may use `memory` bytes, and as many of a GPU if that is to do the work;
    InputError for what of the recipe does not fit the model.
    """
    spec = checkpoint.spec
    calibration, check = (part.windows(spec.max_position_embeddings) for part in (recipe.calibration, recipe.check))
    rules = rules_of(recipe, spec)
    assigned = assign(checkpoint, rules.rules)
    experts = experts_of(checkpoint, recipe)
    _check_targets(recipe, pruned_spec(spec, experts[1]) if experts else spec, assigned)
    kept = experts[1] / experts[0] if experts else 1.0

    changes: dict[str, Change] = {}
    schemes: dict[str, dict[str, int]] = {}
    layers = [_NOTHING for _ in range(spec.num_all_layers)]
    left_out = stale_copies(checkpoint, assigned)
    for name, before in tensor_sizes(checkpoint).items():
        role = checkpoint.role(name)
        parameters, count = (0, 0) if name in left_out else (before.parameters, before.bytes)
        tensor = TensorName.parse(name)
        assignment = assigned.get(str(tensor.module)) if tensor.part == "weight" else None
        if assignment:
            rows, columns = checkpoint.shape(name)
            count = stored_bytes(recipe.layout, assignment.scheme, (rows, columns))
        if tensor.module.is_router:
            parameters, count = round(parameters * kept), round(count * kept)
        if is_pruned(tensor.module, experts[1] if experts else 0):
            parameters = count = 0
        change = Change(before, Size(parameters, count))
        changes[role] = changes.get(role, _NOTHING) + change
        if tensor.module.layer is not None:
            layers[tensor.module.layer] += change
        if assignment and parameters:
            by_scheme = schemes.setdefault(role, {})
            by_scheme[assignment.scheme.name] = by_scheme.get(assignment.scheme.name, 0) + parameters
    if recipe.kv_cache == "fp8" and not spec.fp8_cache:
        cached = [index for index in range(len(layers)) if spec.is_cached(index)]
        for name in (f"model.layers.{index}.self_attn.{scale}" for index in cached for scale in CACHE_SCALES):
            changes[checkpoint.role(name)] += Change(Size(0, 0), Size(1, 4))
    total = sum(changes.values(), _NOTHING)
    parameters_by_spec = {
        role: {scheme(name).spec: count for name, count in counts.items()} for role, counts in schemes.items()
    }
    weights = PlannedWeights(spec, total.after.bytes, parameters_by_spec)
    cache, expanded = cache_bytes_per_token(spec, spec.fp8_cache or recipe.kv_cache == "fp8")
    limit = memory if gpu_memory is None else gpu_memory
    needed, hessian_memory = peak_memory(
        spec,
        [layer.before.bytes + layer.before.parameters for layer in layers],
        _by_layer(assigned, experts[1] if experts else 0),
        any(ModuleName.parse(module).layer is None for module in assigned),
        limit,
        on_gpu=gpu_memory is not None,
    )
    on_host = needed
    if gpu_memory is not None:  # there a layer is only read and written
        on_host = min(needed, BASE_MEMORY + 2 * max(layer.before.bytes for layer in layers) + activation_bytes(spec))
    way_back = 0  # before any layer is quantized
    if any(given.method == "yaqa" for given in assigned.values()):
        way_back = scratch_bytes(*calibration, spec.hidden_size, spec.num_all_layers)
    return Plan(
        name=recipe.name or "",
        family=checkpoint.family.name,
        layers=spec.num_layers,
        mtp_layers=spec.num_mtp_layers,
        experts=experts,
        roles=changes,
        schemes=schemes,
        total=total,
        cache_bytes=cache,
        cache_bytes_expanded=expanded,
        memory=on_host,
        gpu_memory=None if gpu_memory is None else needed,
        gpu_memory_available=gpu_memory or 0,
        hessian_memory=hessian_memory,
        # Activations, and a shard on its way into its file.
        work_disk=max(stream_bytes(spec, assigned.values(), math.prod(calibration), math.prod(check)), way_back)
        + max(layer.after.bytes for layer in layers),
        target_bytes={each.name: each.estimate_bytes(weights, options) for each, options in targets_of(recipe)},
        memory_available=machine.memory() if memory is None else min(memory, machine.memory()),
        disk_free=machine.free_disk(output),
        notes=[*rules.notes, *target_notes(recipe, spec), *checkpoint.notes(), *_state(spec)],
    )


def experts_of(checkpoint: Checkpoint, recipe: Recipe) -> list[int]:
    """How many a layer has before and after pruning; none: empty, or InputError if some are to go."""
    if found := routers(checkpoint.spec.mlps):
        before = found[0].num_experts
        return [before, kept_per_group(found[0], recipe.prune.keep) * found[0].num_groups if recipe.prune else before]
    if recipe.prune:
        raise InputError(f"{checkpoint.path}: this model has no experts to prune; remove `prune` from the recipe")
    return []


def _check_targets(recipe: Recipe, spec: ModelSpec, assigned: Mapping[str, Assignment]) -> None:
    """InputError for what a target would refuse when everything else is done."""
    schemes = {module: given.scheme.name for module, given in assigned.items()}
    for each, options in targets_of(recipe):
        each.check(spec, options, schemes)


def targets_of(recipe: Recipe) -> list[tuple[Target[Any], Any]]:
    """With the options of each."""
    named = [(target(name), options) for each in recipe.targets for name, options in each.items()]
    return [(found, found.Options.model_validate(options or {})) for found, options in named]


def pruned_spec(spec: ModelSpec, experts: int) -> ModelSpec:
    def pruned(mlp: MLPSpec) -> MLPSpec:
        if not isinstance(mlp, MixtureOfExpertsSpec):
            return mlp
        return replace(mlp, router=replace(mlp.router, num_experts=experts))

    return replace(spec, mlps=tuple(map(pruned, spec.mlps)))


@functools.cache
def stored_bytes(layout_name: str, scheme: Scheme, shape: tuple[int, int]) -> int:
    """Bytes on disk of a weight in a scheme: its own code, run on tensors without memory."""
    weight = torch.empty(shape, device="meta")
    scales, zeros = scheme.grid(weight)
    codes = scheme.to_codes(weight, None if zeros is None else scheme.expand(zeros, shape))
    groups = torch.empty(shape[1], dtype=torch.int32, device="meta") if scheme.dynamic_groups else None
    activations = scheme.activations and scheme.activations.at(1.0)
    block = scheme.block(shape)
    levels = scheme.two_level(scales)
    quantized = QuantizedWeight(codes, scales, block, scheme.code_type, zeros, groups, activations, levels)
    stored = layout(layout_name).format_of(scheme.spec).encode("m", quantized, scheme.spec)
    return sum(tensor.nbytes for tensor in stored.values())


def cache_bytes_per_token(spec: ModelSpec, fp8: bool) -> tuple[int, int]:
    """Bytes per token: as kept, and as one key and one value per head."""
    entry, kept, expanded = 1 if fp8 else 2, 0, 0
    for attention in spec.attentions:
        mine = sum(heads * channels for heads, channels in attention.cache_entry().values())
        kept += entry * mine
        if isinstance(attention, LatentAttentionSpec):
            head = attention.qk_nope_head_dim + attention.qk_rope_head_dim + attention.v_head_dim
            mine = attention.num_heads * head
        expanded += entry * mine
    return kept, expanded


def _state(spec: ModelSpec) -> list[str]:
    """A line on what is remembered beside the cache."""
    layers = [attention for attention in spec.attentions if isinstance(attention, StateSpec)]
    if not layers:
        return []
    cached = sum(map(spec.is_cached, range(spec.num_all_layers)))
    remembered = size(sum(map(state_bytes, layers)))
    return [
        f"of {spec.num_all_layers} layers {cached} have a cache that grows; {len(layers)} others remember {remembered} "
        "of a text, however long it is"
    ]


def _by_layer(assigned: Mapping[str, Assignment], kept: int) -> dict[int, dict[str, Assignment]]:
    """Layer → module's name inside of it → what it gets, of modules that are left."""
    found: dict[int, dict[str, Assignment]] = {}
    for module, assignment in assigned.items():
        name = ModuleName.parse(module)
        if name.layer is not None and not is_pruned(name, kept):
            found.setdefault(name.layer, {})[name.inside] = assignment
    return found


def is_pruned(module: ModuleName, kept: int) -> bool:
    """Whether it goes with its expert. All experts of a layer are alike, so which of them go does not matter here.
    Those outside of the layers, which are kept as they are, stay.
    """
    return module.layer is not None and module.expert is not None and module.expert >= kept
