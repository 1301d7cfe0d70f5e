"""A product of each choice with the weights of its expert: int4 or FP4 in groups, FP8 in blocks, or plain.

Products are transposed, an expert's outputs by its choices. Decoded weights are the left side then, which tensor cores
take from registers, and a tile may be as narrow as 8 choices, where the left side needs 16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from llmc.convert.kernels.ahead_of_time import SHARED_LIMIT
from llmc.convert.kernels.decoding import decode, factor
from llmc.runtime.plugins.mixture_of_experts import CODES, FEW, LEAST, STEP, WORDS, ExpertWeights


@dataclass(frozen=True)
class Tile:
    """What a program makes: `channels` outputs, or of gate and up as many of each, for `rows` choices of an expert.

    Attributes:
        at_once: whether all codes with one scale are decoded for one product, not a part of each word for each
    """

    rows: int
    channels: int
    warps: int
    stages: int
    registers: int | None = None
    at_once: bool = False

    @classmethod
    def of(cls, rows: int, has_up: bool, sm: int, weights: ExpertWeights, inputs: int) -> Tile:
        """For few rows, a step is what the weights take to read. Programs are small then, so that there are enough to
        keep every multiprocessor reading: 512 for gate and up and one token of DeepSeek-R1, 192 for Qwen3-30B-A3B. For
        many, weights are shared between rows and inputs between channels, as far as registers go. A program reads as
        many weights with `up` as without.

        sm_90 multiplies by 64 channels of four warps at a time, and waits less where all inputs of a scale make one
        product. On sm_100 the compiler would keep such products in tensor memory, one for each part of a word, until it
        is full. What has fewer channels or warps goes to the instructions of sm_80.
        """
        wide, plain = 1 if has_up else 2, weights.form == "plain"
        # Where a multiprocessor has little shared memory, as many programs as come to it have to fit.
        little, large = SHARED_LIMIT[sm] < 100 << 10, weights.form == "fp8"  # of 128 inputs a step
        if rows <= FEW:
            stages = (3 if large else 4) if little else (4 if large else 6)
            return cls(rows, 32 * wide, 2, stages, 128 if rows == LEAST else None)
        if weights.form == "fp4" and (weights.group < 32 or inputs % STEP) and sm // 10 != 10:
            # As many scales as parts of a word, or masks, beside a second word of shifted codes.
            return cls(rows, 16 * wide, 4, 3, 255)
        if not plain and (inputs % STEP or (weights.group < 128 and sm >= 90)):
            # Masks, or more sums, which leave fewer registers.
            return cls(rows, 32 if has_up or sm // 10 == 10 else 64, 4, 3, 255)
        if sm // 10 == 9 and not plain:
            return cls(rows, 128 * wide, 8, 3, at_once=True)
        if sm // 10 == 10:
            return cls(rows, 32, 4, 3) if plain else cls(rows, 32 * wide, 2, 3, 255)
        return cls(rows, 64 * wide, 4 * wide, 2 if little and large else 3)


@triton.jit
def _side_by_side(
    word: tl.tensor,
    FORM: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr, BF16: tl.constexpr, PAIRS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """So many parts of the words [channels, 16], as [channels, 16 PARTS]: in the order of their inputs."""
    if PARTS == 1:
        return decode(word, FORM, PART, BF16, PAIRS)
    else:
        half: tl.constexpr = PARTS // 2
        left = _side_by_side(word, FORM, PART, half, BF16, PAIRS)
        right = _side_by_side(word, FORM, PART + half, half, BF16, PAIRS)
        return tl.join(left, right).permute(0, 2, 1).reshape(word.shape[0], word.shape[1] * PARTS)


@triton.jit
def _inputs(x: tl.tensor, number: tl.tensor, inputs: tl.tensor, EVEN: tl.constexpr) -> tl.tensor:
    """[inputs of a product, rows], zero where there are none."""
    if EVEN:
        return tl.load(x)
    else:
        return tl.load(x, mask=(number < inputs)[:, None], other=0.0)


@triton.jit
def multiply(
    x: tl.tensor, weight: tl.tensor, up: tl.tensor, scales: tl.tensor, up_scales: tl.tensor,
    bias: tl.tensor, up_bias: tl.tensor, y: tl.tensor,
    tile_choices: tl.tensor, tile_expert: tl.tensor,
    inputs: tl.tensor, outputs: tl.tensor, choices: tl.tensor, choices_of_row: tl.tensor, portion: tl.tensor,
    FORM: tl.constexpr, GROUP: tl.constexpr, SHARING: tl.constexpr, PARTS: tl.constexpr, ACROSS: tl.constexpr,
    BLOCKS: tl.constexpr, TOGETHER: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    ALPHA: tl.constexpr, LIMIT: tl.constexpr, EVEN: tl.constexpr, PAIRS: tl.constexpr,
) -> None:  # fmt: skip
    """y[choice] = SwiGLU of its row of x by the expert's `weight` and `up`, or the product if there is no `up`. With a
    LIMIT that is `ExpertsShape`'s other activation. Without `tile_choices` there is one expert, and every row chose it.

    With a `portion`, a multiple of a step, programs of the third axis take so many inputs each, and y is what each of
    them summed up, one [choices, outputs] after the other.

    Programs of one tile follow each other, so that its inputs, and weights that the next tile shares, stay in L2.
    Codes are exact in 16 bits, and what a group sums up is scaled: weights are not rounded, nor does the scale come
    between loading and multiplying them, which would send them through shared memory.
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
    along = tl.arange(0, ACROSS * TOGETHER)  # of a product
    block: tl.constexpr = ACROSS * PARTS
    step: tl.constexpr = block * BLOCKS
    blocks = (inputs + block - 1) // block
    words = inputs if FORM == "plain" else blocks * ACROSS  # of a row
    begin, end = 0, blocks * block
    if portion is not None:
        begin = tl.program_id(2) * portion
        end = tl.minimum(begin + portion, end)
    at = (expert * outputs + known[:, None]) * words + begin // PARTS + across[None, :]
    x += (tl.minimum(choice, choices - 1) // choices_of_row).to(tl.int64)[None, :] * inputs + begin + along[:, None]
    BF16: tl.constexpr = x.dtype.element_ty == tl.bfloat16
    if FORM != "plain":
        FACTOR: tl.constexpr = factor(FORM, "bf16" if BF16 else "fp16")
        span: tl.constexpr = min(GROUP, step)  # of inputs with one scale
        scaled = (outputs + SHARING - 1) // SHARING
        groups = (blocks * block + GROUP - 1) // GROUP
        at_scale = expert * groups * scaled + known // SHARING
        scale = tl.load(scales + at_scale + begin // GROUP * scaled)
        if up is not None:
            up_scale = tl.load(up_scales + at_scale + begin // GROUP * scaled)
    total = tl.zeros((CHANNELS, ROWS), tl.float32)
    up_total = total
    for first in range(begin, end, step):
        if FORM == "plain":
            mask = None if EVEN else (first + across < inputs)[None, :]
            zero: tl.constexpr = None if EVEN else 0
            some = _inputs(x, first + along, inputs, EVEN)
            total = tl.dot(tl.load(weight + at, mask=mask, other=zero), some, total)
            if up is not None:
                up_total = tl.dot(tl.load(up + at, mask=mask, other=zero), some, up_total)
        else:
            for offset in tl.static_range(0, step, ACROSS * TOGETHER):
                some = _inputs(x + offset, first + offset + along, inputs, EVEN)
                if offset % block == 0:
                    word = tl.load(weight + at + offset // PARTS)
                    if up is not None:
                        up_word = tl.load(up + at + offset // PARTS)
                if offset % span == 0:
                    # Loaded a group ahead, since the compiler only pipelines what products are made of.
                    ready = scale.to(tl.float32)[:, None] * FACTOR
                    following = at_scale + tl.minimum((first + offset + span) // GROUP, groups - 1) * scaled
                    scale = tl.load(scales + following)
                    product = tl.zeros((CHANNELS, ROWS), tl.float32)
                    if up is not None:
                        up_ready = up_scale.to(tl.float32)[:, None] * FACTOR
                        up_scale = tl.load(up_scales + following)
                        up_product = product
                codes = _side_by_side(word, FORM, offset // ACROSS % PARTS, TOGETHER, BF16, PAIRS)
                product = tl.dot(codes, some, product)
                if up is not None:
                    up_codes = _side_by_side(up_word, FORM, offset // ACROSS % PARTS, TOGETHER, BF16, PAIRS)
                    up_product = tl.dot(up_codes, some, up_product)
                if (offset + TOGETHER * ACROSS) % span == 0:
                    total += product * ready
                    if up is not None:
                        up_total += up_product * up_ready
        at += ACROSS * BLOCKS
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
    whole = inputs % STEP == 0 and (weights.group % STEP == 0 or STEP % weights.group == 0)
    blocks = 2 if weights.form == "fp8" and whole else 1
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
        "BLOCKS": blocks,
        "TOGETHER": min(weights.group // across, parts) if tile.at_once else 1,
        "ROWS": tile.rows,
        "CHANNELS": tile.channels,
        "ALPHA": alpha,
        "LIMIT": limit,
        "EVEN": inputs % (across * parts * blocks) == 0,
        "PAIRS": not triton.knobs.runtime.interpret,
    }
