"""Quantization schemes. Every module here that defines `SCHEMES` adds some; adding a scheme is adding a file."""

from __future__ import annotations

from llmc.errors import InputError
from llmc.patterns import shown
from llmc.quant.schemes.base import Scheme
from llmc.quant.schemes.names import canonical, explanation
from llmc.registry import Registry

schemes: Registry[Scheme] = Registry(
    "scheme",
    __name__,
    "SCHEMES",
    "int4-g32, int4-g64, int4-g128, int4-g256, int4-channel, nvfp4, mxfp4, fp8-block, fp8-channel, fp8-tensor; "
    "likewise int2, int3, int5, int6, int8; behind an integer's name -asym for zero points, -actorder for groups in "
    "act-order, behind that of an FP8 -dynamic or -static for inputs that are rounded, too, as in nvfp4-static and "
    "mxfp4-dynamic",
)


def scheme(name: str) -> Scheme:
    """Return the scheme of that name, ours or the one that other programs have for it.

    Raises:
        InputError: with the nearest name, or with what is to be written in place of what is no scheme
    """
    ours = canonical(name)
    if ours not in schemes.all and (why := explanation(name)):
        raise InputError(f"scheme {shown(name)} {why}")
    return schemes.get(ours)
