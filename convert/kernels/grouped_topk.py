"""`llmc.GroupedTopK` as a kernel (DeepSeek-V3, section 2.1.2); see `llmc.convert.graph.grouped_topk`."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from llmc.convert.kernels.ahead_of_time import KernelSource
from llmc.runtime.plugins.grouped_topk import RoutingShape
from llmc.runtime.plugins.operation import FixedLaunch

_NONE = tl.constexpr(-(1 << 63))  # below all keys


@triton.jit
def _keys(score: tl.tensor, number: tl.tensor) -> tl.tensor:
    """Integers in the order of scores; of the same score, those of lower numbers are larger. -0 is 0."""
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.to(tl.int64) << 32) - number


@triton.jit
def _route(
    logits: tl.tensor, bias: tl.tensor, index: tl.tensor, weight: tl.tensor,
    EXPERTS: tl.constexpr, GROUPS: tl.constexpr, TOP_K: tl.constexpr, TOP_GROUPS: tl.constexpr, BEST: tl.constexpr,
    SIGMOID: tl.constexpr, NORMALIZE: tl.constexpr, SCALING: tl.constexpr,
    WIDTH: tl.constexpr, HEIGHT: tl.constexpr, CHOSEN: tl.constexpr,
) -> None:  # fmt: skip
    """One token, its experts as [groups, experts of a group], both filled up to powers of two."""
    token = tl.program_id(0).to(tl.int64)
    size: tl.constexpr = EXPERTS // GROUPS
    group, place = tl.arange(0, HEIGHT)[:, None], tl.arange(0, WIDTH)[None, :]
    number, real = group * size + place, (group < GROUPS) & (place < size)
    logit = tl.load(logits + token * EXPERTS + number, mask=real, other=float("-inf"))
    if SIGMOID:
        score = tl.div_rn(1.0, 1.0 + tl.exp(-logit))
    else:
        score = tl.exp(logit - tl.max(logit))
        score = tl.div_rn(score, tl.sum(score) + tl.zeros_like(score))
    choice = score + tl.load(bias + number, mask=real, other=0.0)
    key = tl.where(real, _keys(choice, number), _NONE)
    if GROUPS > 1:
        first = tl.max(key, axis=1)
        best = tl.sum(tl.where(key == first[:, None], choice, 0.0), axis=1)
        if BEST == 2:
            others = tl.where(key == first[:, None], _NONE, key)
            second = tl.max(others, axis=1)
            best += tl.sum(tl.where((others == second[:, None]) & real, choice, 0.0), axis=1)
        row = tl.arange(0, HEIGHT)
        group_key = tl.where(row < GROUPS, _keys(best, row), _NONE)
        opened = row < 0
        for _ in range(TOP_GROUPS):
            this = group_key == tl.max(group_key)
            opened |= this
            group_key = tl.where(this, _NONE, group_key)
        closed = _keys(tl.full((HEIGHT, WIDTH), float("-inf"), tl.float32), number)
        key = tl.where(real & (opened[:, None] == 0), closed, key)
    slot = tl.arange(0, CHOSEN)
    experts, weights = tl.zeros((CHOSEN,), tl.int64), tl.zeros((CHOSEN,), tl.float32)
    for k in range(TOP_K):
        this = key == tl.max(key)
        experts = tl.where(slot == k, tl.sum(tl.where(this, number, 0)), experts)
        weights = tl.where(slot == k, tl.sum(tl.where(this, score, 0.0)), weights)
        key = tl.where(this, _NONE, key)
    if NORMALIZE:
        weights = tl.div_rn(weights, tl.sum(weights) + tl.zeros_like(weights))
    at = token * TOP_K + slot
    tl.store(index + at, experts, mask=slot < TOP_K)
    tl.store(weight + at, (weights * SCALING).to(weight.dtype.element_ty), mask=slot < TOP_K)


def layout_for(shape: RoutingShape, sm: int) -> FixedLaunch:
    """A program takes one token."""
    return FixedLaunch()


def sources(shape: RoutingShape, sm: int) -> dict[str, KernelSource]:
    types = {"logits": "*fp32", "bias": "*fp32", "index": "*i64", "weight": f"*{shape.dtype}"}
    # One warp, whose threads need no shared memory to compare.
    return {"route": KernelSource(_route, types, routing_constants(shape), warps=1)}


def routing_constants(shape: RoutingShape) -> dict[str, Any]:
    """What the kernel is compiled for."""
    return {
        "EXPERTS": shape.experts,
        "GROUPS": shape.groups,
        "TOP_K": shape.top_k,
        "TOP_GROUPS": shape.top_groups,
        "BEST": shape.best,
        "SIGMOID": shape.scoring == "sigmoid",
        "NORMALIZE": shape.normalize,
        "SCALING": shape.scaling_factor,
        "WIDTH": triton.next_power_of_2(shape.experts // shape.groups),
        "HEIGHT": triton.next_power_of_2(shape.groups),
        "CHOSEN": triton.next_power_of_2(shape.top_k),
    }
