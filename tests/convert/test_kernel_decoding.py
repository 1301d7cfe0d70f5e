"""Two codes at a time: the PTX of `convert.kernels.decoding`, computed bit by bit, and what becomes of it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.sass import innermost_loop

from llmc.convert.bits import unpack_e2m1
from llmc.convert.kernels.kernel_sets import KernelRequest
from llmc.runtime.plugins.mixture_of_experts import CODES, ExpertsShape, ExpertWeights

pytest.importorskip("triton", reason="Triton, which comes with torch for NVIDIA GPUs, is not installed")

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def computed(text: str, first: np.ndarray, second: np.ndarray, found: str = "$0") -> np.ndarray:
    """What a text of PTX leaves in `found`, of uint32 in $1 and $2."""
    registers: dict[str, np.ndarray] = {"$1": first, "$2": second}

    def value(name: str) -> np.ndarray:
        return registers[name] if name in registers else np.uint32(int(name, 0))

    *statements, end = text.strip("{ ").split(";")
    assert end.strip() == "}"
    for statement in statements:
        name, _, rest = statement.strip().partition(" ")
        if name == ".reg":
            continue
        target, *names = (each.strip() for each in rest.split(","))
        registers[target] = INSTRUCTIONS[name](*map(value, names))
    return registers[found]


def prmt(a: np.ndarray, b: np.ndarray, select: np.ndarray) -> np.ndarray:
    """Bytes 0 to 3 of a, 4 to 7 of b; with 8 added, eight times the byte's sign."""
    both, found = np.stack([*np.split(as_bytes(a), 4, -1), *np.split(as_bytes(b), 4, -1)]), []
    for place in range(4):
        choice = int(select) >> 4 * place & 15
        byte = both[choice & 7]
        found.append(np.where(byte & 0x80, 0xFF, 0).astype(np.uint8) if choice & 8 else byte)
    return np.concatenate(found, -1).view(np.uint32)[..., 0]


def as_bytes(a: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(a)[..., None].view(np.uint8)


def lop3(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Any function of three bits, told by its value for each of them."""
    found = np.zeros_like(a)
    for case in range(8):
        if int(table) >> case & 1:
            chosen = [x if case >> (2 - i) & 1 else ~x for i, x in enumerate((a, b, c))]
            found |= chosen[0] & chosen[1] & chosen[2]
    return found


def fma(dtype: torch.dtype, *operands: np.ndarray) -> np.ndarray:
    """Subnormal numbers are numbers, in and out, as the PTX ISA says of fma without .ftz."""
    shape = np.broadcast_shapes(*(x.shape for x in operands))
    wide = [torch.from_numpy(np.broadcast_to(x, shape).copy().view(np.int16)).view(dtype).double() for x in operands]
    exact = wide[0] * wide[1] + wide[2]
    rounded = exact.to(dtype)
    assert torch.equal(rounded.double(), exact)  # nothing is lost
    return rounded.view(torch.int16).numpy().view(np.uint32)


INSTRUCTIONS: dict[str, Any] = {
    "prmt.b32": prmt,
    "lop3.b32": lop3,
    "and.b32": lambda a, b: a & b,
    "shl.b32": lambda a, n: a << n,
    "shr.s32": lambda a, n: (a.view(np.int32) >> n.view(np.int32)).view(np.uint32),
    "mov.b32": lambda a: a,
    "fma.rn.bf16x2": lambda *x: fma(torch.bfloat16, *x),
    "fma.rn.f16x2": lambda *x: fma(torch.float16, *x),
}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("form", "part"), [(form, part) for form, parts in CODES.items() for part in range(parts)])
def test_every_code_is_exact_whatever_lies_next_to_it(form: str, part: int, dtype: str) -> None:
    from llmc.convert.kernels.decoding import factor, pair

    bits = 32 // CODES[form]
    codes = np.arange(1 << bits, dtype=np.uint32)
    if form == "fp8":
        codes = codes[(codes & 0x7F) != 0x7F]  # NaN is no weight
        want = torch.from_numpy(codes.astype(np.uint8)).view(torch.float8_e4m3fn).double()
    elif form == "fp4":
        want = unpack_e2m1(torch.from_numpy((codes[::2] | codes[1::2] << 4).astype(np.uint8))).double()
    else:
        want = torch.from_numpy(codes.astype(np.float64)) - 8
    random = np.random.default_rng(part)
    lower, upper = (random.integers(0, 1 << 32, (500, len(codes)), dtype=np.uint32) for _ in range(2))
    place = np.uint32(part * bits)
    keep = ~np.uint32(((1 << bits) - 1) << part * bits)
    lower, upper = lower & keep | codes << place, upper & keep | codes[::-1] << place
    found = computed(pair(form, dtype, part), lower, upper)
    halves = torch.from_numpy(found.view(np.int16).copy()).view(TYPES[dtype]).double() * factor(form, dtype)
    assert torch.equal(halves[:, 0::2], want.expand(500, -1))
    assert torch.equal(halves[:, 1::2], want.flip(0).expand(500, -1))


@pytest.mark.parametrize("dtype", TYPES)
def test_four_codes_of_a_word_stay_in_order(dtype: str) -> None:
    from llmc.convert.kernels.decoding import quad

    codes = np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8)
    given = np.random.default_rng(0).choice(codes, (500, 4))
    given[: len(codes)] = codes[:, None]
    words = given.view(np.uint32)[:, 0]
    nothing = np.zeros_like(words)
    halves = [computed(quad(dtype), nothing, words, found) for found in ("$0", "$1")]
    numbers = torch.from_numpy(np.stack(halves, 1).view(np.int16)).view(TYPES[dtype]).double()
    assert torch.equal(numbers, torch.from_numpy(given).view(torch.float8_e4m3fn).double())


def test_the_emulator_reads_all_there_is() -> None:
    """No instruction of the texts is one that it skips."""
    from llmc.convert.kernels.decoding import pair

    texts = [pair(form, dtype, part) for form, parts in CODES.items() for dtype in TYPES for part in range(parts)]
    names = {name for text in texts for name in re.findall(r"[a-z0-9]+(?:\.[a-z0-9]+)+", text)}
    assert names == set(INSTRUCTIONS)


INT4, FP8 = ExpertWeights("int4", 128, 1, "bf16"), ExpertWeights("fp8", 128, 128, "fp32")


def loop_of(form: ExpertWeights, name: str, sm: int, folder: Path) -> tuple[list[str], Counter[str]]:
    """The innermost loop of a kernel for DeepSeek-R1's experts: its instructions, and how many there are of each."""
    from llmc.convert.kernels.ahead_of_time import compile_kernel

    wanted = KernelRequest("MixtureOfExperts", ExpertsShape(256, 8, 7168, 2048, "bf16", "bf16", form, form))
    made = compile_kernel(wanted.module().sources(wanted.shape, sm)[name], sm)
    loop = innermost_loop(made.cubin, folder)
    return loop, Counter(each.split(".")[0] for each in loop)


@pytest.mark.slow
@pytest.mark.parametrize("sm", [80, 90, 120])
@pytest.mark.parametrize(("form", "most"), [(INT4, 310), (FP8, 400)])
def test_a_step_for_one_token_takes_what_it_has_to(form: ExpertWeights, most: int, sm: int, tmp_path: Path) -> None:
    """Of 32 channels and 128 inputs of gate and up, by 2 warps: a thread decodes 64 pairs."""
    loop, count = loop_of(form, "gate_up_8", sm, tmp_path)
    assert count["HMMA"] == 16
    assert count["HFMA2"] + count["HMUL2"] == 64
    assert count["LOP3"] < 68
    assert not count["F2FP"] and not count["I2F"]
    assert len(loop) < most


@pytest.mark.slow
@pytest.mark.parametrize("sm", [80, 90, 120])
@pytest.mark.parametrize("form", [INT4, FP8])
def test_for_many_tokens_decoded_weights_stay_in_registers(form: ExpertWeights, sm: int, tmp_path: Path) -> None:
    _, count = loop_of(form, "gate_up_64", sm, tmp_path)
    assert count["HGMMA" if sm == 90 else "HMMA"] == (16 if sm == 90 else 128)
    assert not count["STS"] and count["BAR"] <= 3
    assert count["WARPGROUP"] <= 8  # waits, of sm_90: one or two for a product of up to 128 inputs
