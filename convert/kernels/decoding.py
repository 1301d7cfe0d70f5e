"""Codes as numbers of 16 bits, two of them at a time.

A register with two bfloat16 or float16 is what tensor cores read and what one instruction multiplies and adds. PRMT
puts the same byte of two words into its halves, LOP3 makes them numbers that are off by a factor or a summand, HFMA2
takes these away: all of it exact. One code at a time, by way of float32, takes twice the instructions and more.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.constexpr_function
def pair(form: str, dtype: str, part: int) -> str:
    """PTX that takes two words, $1 and $2, and makes of code `part` of each a number: $0, that of $1 in the lower half.

    Half the codes of int4 lie where bfloat16 has the last bit of its exponent. That bit alone counts as much as the one
    below it counts twice, as long as the others are zero: such a number is 2^-129 of the code, and the largest factor
    that there is makes a fourth of it. All codes are a fourth then.

    Args:
        form: "int4", "fp4" or "fp8", as `llmc.runtime.plugins.mixture_of_experts.ExpertWeights` has it
        dtype: "bf16" or "fp16"
        part: of a word, the lowest first
    """
    wide, first = dtype == "bf16", ""
    if form == "fp4":
        # As of "fp8", with one bit of mantissa and two of an exponent that is 126 or 14 too small. The lower code of a
        # byte becomes the upper one by a shift of the word, which all such codes share.
        select = 0x4800 + 0x1111 * (part // 2)
        shift, mask, factor = (6, 0x81C0, 0x7E80) if wide else (3, 0x8E00, 0x7400)
        summand = 0x8000  # -0
        steps = f"shr.s32 t, t, {shift}; and.b32 t, t, {0x10001 * mask:#x};"
        if part % 2 == 0:
            first = "shl.b32 a, $1, 4; shl.b32 b, $2, 4; "
    elif form == "fp8":
        # The byte becomes the upper one of its half; next to it, above the lower one, its sign, eight times. The shift,
        # which copies signs down, leaves both signs in place, and exponents 120 or 8 too small. Subnormal numbers come
        # out right by the same multiplication. NaN, which no weight is, becomes 480.
        select = 0x4800 + 0x1111 * part
        shift, mask, factor = (4, 0x87F0, 0x7B80) if wide else (1, 0xBF80, 0x5C00)
        summand = 0x8000  # -0
        steps = f"shr.s32 t, t, {shift}; and.b32 t, t, {0x10001 * mask:#x};"
    else:
        select = 0x4400 + 0x1111 * (part // 2)
        if part % 2:
            one, factor, summand = (0, 0x7F00, 0xC000) if wide else (0x6400, 0x2C00, 0xD480)
            mask = 0xF0
        else:
            one, factor, summand = (0x4300, 0x3E80, 0xC208) if wide else (0x6400, 0x3C00, 0xE408)
            mask = 0x0F
        steps = f"lop3.b32 t, t, {0x10001 * mask:#x}, {0x10001 * one:#x}, 0xea;"  # t & mask | one
    words = "a, b" if first else "$1, $2"
    return (
        f"{{ .reg .b32 a, b, t, f, s; {first}prmt.b32 t, {words}, {select:#x}; {steps} "
        f"mov.b32 f, {0x10001 * factor:#x}; mov.b32 s, {0x10001 * summand:#x}; "
        f"fma.rn.{'bf16x2' if wide else 'f16x2'} $0, t, f, s; }}"
    )


@triton.constexpr_function
def factor(form: str, dtype: str) -> float:
    """What decoded numbers have to be multiplied by."""
    return 4.0 if (form, dtype) == ("int4", "bf16") else 1.0


@triton.jit
def decode(
    word: tl.tensor, FORM: tl.constexpr, PART: tl.constexpr, BF16: tl.constexpr, PAIRS: tl.constexpr
) -> tl.tensor:
    """Code PART of each word, divided by `factor`. PAIRS: whether by PTX, which Triton's interpreter does not know."""
    if PAIRS:
        if BF16:
            return tl.inline_asm_elementwise(pair(FORM, "bf16", PART), "=r,r,r", [word], tl.bfloat16, True, 2)
        else:
            return tl.inline_asm_elementwise(pair(FORM, "fp16", PART), "=r,r,r", [word], tl.float16, True, 2)
    if FORM == "fp8":
        bits = (word << (24 - 8 * PART) >> 4) & -0x78100000
        number = bits.to(tl.float32, bitcast=True) * 2.0**120
    elif FORM == "fp4":
        bits = (word << (28 - 4 * PART) >> 6) & -0x7E400000
        number = bits.to(tl.float32, bitcast=True) * 2.0**126
    else:
        number = ((word >> 4 * PART & 15) - 8).to(tl.float32)
    if BF16:
        return (number * (1 / factor(FORM, "bf16"))).to(tl.bfloat16)
    else:
        return number.to(tl.float16)


@triton.constexpr_function
def quad(dtype: str) -> str:
    """PTX that takes four codes of FP8 in one word, $2, and makes numbers of them in their order: $0 and $1.

    As `pair` does it, with the two codes of a half word side by side.
    """
    shift, mask, factor = (4, 0x87F0, 0x7B80) if dtype == "bf16" else (1, 0xBF80, 0x5C00)
    steps = "".join(
        f"prmt.b32 t, $2, $2, {select:#x}; shr.s32 t, t, {shift}; and.b32 t, t, {0x10001 * mask:#x}; "
        f"fma.rn.{'bf16x2' if dtype == 'bf16' else 'f16x2'} ${number}, t, f, s; "
        for number, select in enumerate((0x1808, 0x3A2A))
    )
    return f"{{ .reg .b32 t, f, s; mov.b32 f, {0x10001 * factor:#x}; mov.b32 s, 0x80008000; {steps}}}"


@triton.jit
def decode_float8(codes: tl.tensor, BF16: tl.constexpr, PAIRS: tl.constexpr) -> tl.tensor:
    """E4M3 codes as numbers, exactly; the code of NaN becomes 480. PAIRS: see `decode`."""
    if PAIRS:
        if BF16:
            return tl.inline_asm_elementwise(quad("bf16"), "=r,=r,r", [codes], tl.bfloat16, True, 4)
        else:
            return tl.inline_asm_elementwise(quad("fp16"), "=r,=r,r", [codes], tl.float16, True, 4)
    # Moved to float16's place, exponents read as 8 less than they are, those of the smallest numbers too.
    half = (((codes.to(tl.int16) << 8) >> 1) & -0x4080).to(tl.float16, bitcast=True) * 256.0
    return half.to(tl.bfloat16) if BF16 else half.to(tl.float16)
