"""Decode and prefill in one engine, each in the form that suits it, without a branch at run time.

A step's tokens are cut in two along their axis: all of them are the decode part when the step is narrow, all of
them the prefill part when it is wide, and the other part has no rows. Every optimization profile is either narrow
or wide throughout, so its program is compiled for one of the two and holds nothing of the other. The weights are
in the engine once, because both forms read them in the same order. ONNX's If does not do this: the compiler
refuses int4 weights in it, or keeps a copy per branch.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from llmc.convert.graph.rewrite import Rewriter


@dataclass(frozen=True)
class Phases:
    """`widths`: the numbers of tokens per row that make a decode step, say 1, and 2 when a draft is verified."""

    rewriter: Rewriter
    widths: tuple[int, ...]

    def split(self, x: ir.Value, axis: int, widest: int | None = None) -> tuple[ir.Value, ir.Value]:
        """The decode part and the prefill part of `x`, whose `axis` runs over tokens (or rows times tokens).

        Args:
            widest: the widest step that counts as decode here, if not all of `widths` do
        """
        b = self.rewriter
        position_ids = next(value for value in b.graph.inputs if value.name == "position_ids")
        narrow = b.op("LessOrEqual", b.dimension(position_ids, 1), b.constant([widest or max(self.widths)]))
        length, along = b.dimension(x, axis), b.constant([axis])
        cut = b.op("Where", narrow, length, b.constant([0]))
        return b.op("Slice", x, b.constant([0]), cut, along), b.op("Slice", x, cut, length, along)
