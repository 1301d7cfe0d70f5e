"""A product of each choice with the weights of its expert: int4 in groups, FP8 in blocks, or plain.

Products are transposed, an expert's outputs by its choices. Decoded weights are the left side then, which tensor cores
take from registers on every GPU up to sm_90, and a tile may be as narrow as 8 choices, where the left side needs 16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from llmc.convert.kernels.ahead_of_time import SHARED_LIMIT
from llmc.convert.kernels.decoding import decode, factor
from llmc.runtime.plugins.mixture_of_experts import CODES, FEW, LEAST, WORDS, ExpertWeights


@dataclass(frozen=True)
class Tile:
    """What a program makes: `channels` outputs, or of gate and up as many of each, for `rows` choices of an expert."""

    rows: int
    channels: int
    warps: int
    stages: int
    registers: int | None = None

    @classmethod
    def of(cls, rows: int, has_up: bool, sm: int) -> Tile:
        """For few rows, a step is what the weights take to read. Programs are small then, so that there are enough to
        keep every multiprocessor reading: 512 for gate and up and one token of DeepSeek-R1, 192 for Qwen3-30B-A3B. For
        many, weights are shared between rows and inputs between channels, as far as registers go. A program reads as
        many weights with `up` as without.

        On sm_100 the compiler would keep products of 64 channels by 4 warps in tensor memory, one for each part of a
        word, until it is full. What is smaller goes to the older instructions.
        """
        wide = 1 if has_up else 2
        if rows <= FEW:
            # Where a multiprocessor has little shared memory, as many programs as come to it have to fit.
            stages = 4 if SHARED_LIMIT[sm] < 100 << 10 else 6
            return cls(rows, 32 * wide, 2, stages, 128 if rows == LEAST else None)
        return cls(rows, 32, 4, 3) if sm // 10 == 10 else cls(rows, 64 * wide, 4 * wide, 3)

    @property
    def scale_first(self) -> bool:
        """Whether weights are scaled, not the sums of a group. In low tiles there are fewer sums than weights; in high
        tiles as many, and no registers for both sums and totals.
        """
        return self.rows > FEW


@triton.jit
def _ready(scale: tl.tensor, TYPE: tl.constexpr, FACTOR: tl.constexpr, SCALE_FIRST: tl.constexpr) -> tl.tensor:
    """Scales as float32. If the compiler is shown that they have no more than 16 bits, it scales codes in these, which
    rounds once, as well.
    """
    ready = scale[:, None].to(tl.float32) * FACTOR
    return ready.to(TYPE).to(tl.float32) if SCALE_FIRST and scale.dtype == TYPE else ready


@triton.jit
def multiply(
    x: tl.tensor, weight: tl.tensor, up: tl.tensor, scales: tl.tensor, up_scales: tl.tensor,
    bias: tl.tensor, up_bias: tl.tensor, y: tl.tensor,
    tile_choices: tl.tensor, tile_expert: tl.tensor,
    inputs: tl.tensor, outputs: tl.tensor, choices: tl.tensor, choices_of_row: tl.tensor, portion: tl.tensor,
    FORM: tl.constexpr, GROUP: tl.constexpr, SHARING: tl.constexpr, PARTS: tl.constexpr, ACROSS: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, SCALE_FIRST: tl.constexpr, ALPHA: tl.constexpr, LIMIT: tl.constexpr,
    EVEN: tl.constexpr, PAIRS: tl.constexpr,
) -> None:  # fmt: skip
    """y[choice] = SwiGLU of its row of x by the expert's `weight` and `up`, or the product if there is no `up`. With a
    LIMIT that is `ExpertsShape`'s other activation. Without `tile_choices` there is one expert, and every row chose it.

    With a `portion`, a multiple of a step, programs of the third axis take so many inputs each, and y is what each of
    them summed up, one [choices, outputs] after the other.

    Programs of one tile follow each other, so that its inputs, and weights that the next tile shares, stay in L2.
    Weights as codes are exact in 16 bits; those of SCALE_FIRST are rounded, as they are where a checkpoint is decoded.
    """
    tile = tl.program_id(1)
    if tile_choices is None:
        expert = (tile * 0).to(tl.int64)
        choice = tile * ROWS + tl.arange(0, ROWS)
    else:
        expert = tl.load(tile_expert + tile).to(tl.int64)  # offsets pass 2^31
        if expert < 0:
            return
        choice = tl.load(tile_choices + tile * ROWS + tl.arange(0, ROWS))
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside, real = channel < outputs, choice < choices
    # What is not there is read from where something is, and not written: masks would cost more.
    known = tl.minimum(channel, outputs - 1)
    across = tl.arange(0, ACROSS)  # inputs of a part
    step: tl.constexpr = ACROSS * PARTS
    steps = (inputs + step - 1) // step
    words = inputs if FORM == "plain" else steps * ACROSS  # of a row
    begin, end = 0, steps * step
    if portion is not None:
        begin = tl.program_id(2) * portion
        end = tl.minimum(begin + portion, end)
    at = (expert * outputs + known[:, None]) * words + begin // PARTS + across[None, :]
    x += (tl.minimum(choice, choices - 1) // choices_of_row).to(tl.int64)[None, :] * inputs + begin + across[:, None]
    if FORM != "plain":
        BF16: tl.constexpr = x.dtype.element_ty == tl.bfloat16
        FACTOR: tl.constexpr = factor(FORM, "bf16" if BF16 else "fp16")
        span: tl.constexpr = min(GROUP, step)  # of inputs with one scale
        group: tl.constexpr = span // ACROSS
        scaled = (outputs + SHARING - 1) // SHARING
        groups = (steps * step + GROUP - 1) // GROUP
        at_scale = expert * groups * scaled + known // SHARING
        scale = tl.load(scales + at_scale + begin // GROUP * scaled)
        if up is not None:
            up_scale = tl.load(up_scales + at_scale + begin // GROUP * scaled)
    total = tl.zeros((CHANNELS, ROWS), tl.float32)
    up_total = total
    for first in range(begin, end, step):
        mask = None if EVEN or FORM != "plain" else (first + across < inputs)[None, :]
        zero: tl.constexpr = None if EVEN or FORM != "plain" else 0
        word = tl.load(weight + at, mask=mask, other=zero)
        if up is not None:
            up_word = tl.load(up + at, mask=mask, other=zero)
        at += ACROSS
        for part in tl.static_range(PARTS):
            here = first + part * ACROSS
            if EVEN:
                some = tl.load(x + part * ACROSS)
            else:
                some = tl.load(x + part * ACROSS, mask=(here + across < inputs)[:, None], other=0.0)
            if FORM == "plain":
                total = tl.dot(word, some, total)
                if up is not None:
                    up_total = tl.dot(up_word, some, up_total)
            else:
                if part % group == 0:
                    # Loaded a group ahead, since the compiler only pipelines what products are made of.
                    ready = _ready(scale, x.dtype.element_ty, FACTOR, SCALE_FIRST)
                    following = at_scale + tl.minimum((here + span) // GROUP, groups - 1) * scaled
                    scale = tl.load(scales + following)
                    if up is not None:
                        up_ready = _ready(up_scale, x.dtype.element_ty, FACTOR, SCALE_FIRST)
                        up_scale = tl.load(up_scales + following)
                codes = decode(word, FORM, part, BF16, PAIRS)
                if up is not None:
                    up_codes = decode(up_word, FORM, part, BF16, PAIRS)
                if SCALE_FIRST:
                    total = tl.dot((codes.to(tl.float32) * ready).to(some.dtype), some, total)
                    if up is not None:
                        up_total = tl.dot((up_codes.to(tl.float32) * up_ready).to(some.dtype), some, up_total)
                else:
                    if part % group == 0:
                        product = tl.zeros((CHANNELS, ROWS), tl.float32)
                        up_product = product
                    product = tl.dot(codes, some, product)
                    if up is not None:
                        up_product = tl.dot(up_codes, some, up_product)
                    if part % group == group - 1:
                        total += product * ready
                        if up is not None:
                            up_total += up_product * up_ready
        x += step
    if bias is not None:
        total += tl.load(bias + expert * outputs + channel, mask=inside, other=0.0).to(tl.float32)[:, None]
        if up is not None:
            up_total += tl.load(up_bias + expert * outputs + channel, mask=inside, other=0.0).to(tl.float32)[:, None]
    if up is not None:
        if LIMIT > 0:
            total = tl.minimum(total, LIMIT)
            up_total = tl.minimum(tl.maximum(up_total, -LIMIT), LIMIT) + 1
        total = total * tl.sigmoid(ALPHA * total) * up_total
    row = choice.to(tl.int64)
    if portion is not None:
        row += tl.program_id(2).to(tl.int64) * choices
    y += row[None, :] * outputs + channel[:, None]
    tl.store(y, total.to(y.dtype.element_ty), mask=inside[:, None] & real[None, :])


def product_constants(
    weights: ExpertWeights, tile: Tile, has_up: bool, bias: bool = False, alpha: float = 1.0, limit: float = 0.0,
    grouped: bool = True, portioned: bool = False, inputs: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """What `multiply` is compiled for.

    Args:
        grouped: whether there are several experts
        portioned: whether a program takes a portion of the inputs
        inputs: how many there are; without masks, if they fill all steps
    """
    plain = weights.form == "plain"
    across, parts = (64, 1) if plain else (WORDS, CODES[weights.form])
    none = ["scales", "up_scales"] if plain else []
    none += [] if has_up else ["up", "up_scales", "up_bias"]
    none += [] if bias else ["bias", "up_bias"]
    none += [] if grouped else ["tile_choices", "tile_expert"]
    none += [] if portioned else ["portion"]
    return dict.fromkeys(none) | {
        "FORM": weights.form,
        "GROUP": weights.group,
        "SHARING": weights.rows,
        "PARTS": parts,
        "ACROSS": across,
        "ROWS": tile.rows,
        "CHANNELS": tile.channels,
        "SCALE_FIRST": tile.scale_first,
        "ALPHA": alpha,
        "LIMIT": limit,
        "EVEN": inputs % (across * parts) == 0,
        "PAIRS": not triton.knobs.runtime.interpret,
    }
