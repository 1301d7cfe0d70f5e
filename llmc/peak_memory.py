"""What a pass over a model takes of memory and disk beside what it writes, known from the model's shapes."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence

from llmc.convert.model.causal_lm import empty_layer
from llmc.convert.spec import MixtureOfExpertsSpec, ModelSpec, StateSpec, working_channels
from llmc.quant.activation_file import MICRO_BATCH_TOKENS
from llmc.quant.assign import Assignment
from llmc.quant.ends import peak_bytes
from llmc.quant.layer_solver import linears, solve_batches
from llmc.quant.layerwise import DEFAULT_MEMORY_BUDGET

BASE_MEMORY = 490 << 20  # of Python, torch and what they keep for themselves; measured


def peak_memory(
    spec: ModelSpec,
    layer_bytes: Sequence[int],
    assigned: Mapping[int, dict[str, Assignment]],
    ends: bool,
    limit: int | None,
    on_gpu: bool,
) -> tuple[int, int]:
    """Return the peak of the single pass: a layer as it is stored, its codes, and what the solver takes on top; or the
    head. And what the solver and its Hessians may take at once, so that the peak stays below `limit` if it can.

    Args:
        spec: Of the original.
        layer_bytes: Of each layer as it is stored, and of its codes, one for each parameter.
        assigned: Layer → module's name inside of it → what it gets, of those that are not pruned.
        ends: Whether embedding or head are quantized.
        limit: Bytes; None: as many as usual.
        on_gpu: Whether a GPU does the work.
    """
    budget = DEFAULT_MEMORY_BUDGET
    if limit is not None:
        budget = max(1, limit - BASE_MEMORY - max(layer_bytes) - 2 * activation_bytes(spec))

    @functools.cache  # layers of one kind
    def solver(index: int) -> int:
        modules = linears(empty_layer(spec, index))
        found = solve_batches(assigned.get(index, {}), modules)
        # As `MLPCalibration.memory_budget` is divided; what does not fit its part, one matrix takes all the same.
        least = max((job.moments_bytes(modules) // (len(job.members) if job.expert else 1) for job in found), default=0)
        measured = max((job.moments_bytes(modules) for job in found), default=0)
        working = max((job.working_bytes(modules, budget // 4, on_gpu) for job in found), default=0)
        return working + max(least, min(measured, budget * 3 // 4))

    kinds = [
        (attention, mlp, spec.is_mtp(index))
        for index, (attention, mlp) in enumerate(zip(spec.attentions, spec.mlps, strict=True))
    ]
    largest = max(
        held + max(solver(kinds.index(kind)), activation_bytes(spec))
        for held, kind in zip(layer_bytes, kinds, strict=True)
    )
    return BASE_MEMORY + max(largest, peak_bytes(spec, ends)), budget


def activation_bytes(spec: ModelSpec) -> int:
    """Return the bytes of a micro-batch's widest intermediate results: an MLP's two projections and their product, or
    what a block that remembers in a state holds at once.
    """
    widths = [
        max(mlp.intermediate_size, mlp.shared_intermediate_size)
        if isinstance(mlp, MixtureOfExpertsSpec)
        else mlp.intermediate_size
        for mlp in spec.mlps
    ]
    states = [working_channels(attention) for attention in spec.attentions if isinstance(attention, StateSpec)]
    return 4 * MICRO_BATCH_TOKENS * (max(3 * max(widths), *states, 0) + 4 * spec.hidden_size)


def stream_bytes(spec: ModelSpec, assigned: Collection[Assignment], calibration: int, check: int) -> int:
    """Return the most bytes of activations between a layer's stations, float32, of so many tokens of each text.

    Of the check text what enters and leaves a layer, and what entered the one before it, in both models; of the
    calibration text that, what `o_proj` and what the MLP reads, in the quantized model and, where calibration is
    asymmetric, in the original. An MTP layer reads one more.
    """
    models = 1 + any(given.asymmetric for given in assigned)
    mixed = max(attention.output_size for attention in spec.attentions)
    widths = (4 + bool(spec.num_mtp_layers)) * spec.hidden_size + mixed
    return 4 * (2 * 3 * check * spec.hidden_size + models * calibration * widths)
