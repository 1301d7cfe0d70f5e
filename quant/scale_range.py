"""Scales that a layout has no place for, found before any work."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.formats import DEFAULT_LAYOUT
from llmc.convert.formats.layout import Layout
from llmc.quant.assign import Assignment, linear_modules
from llmc.quant.shard import scheme_of


def require_range(
    checkpoint: Checkpoint,
    assigned: Mapping[str, Assignment],
    layout: Layout,
    report: Callable[[str, int, int], None],
    tell: Callable[[str], None],
) -> None:
    """Read all weights once, if the layout's scales have fewer bits than ours.

    Args:
        assigned: Of modules that are to be quantized; those that are stored in their scheme are kept.
        report: Is told the phase, and of how many modules none is done.
        tell: Is told in a line what is rounded to few bits or to none.

    Raises:
        InputError: There are scales beyond what the layout holds.
    """
    modules = linear_modules(checkpoint) if layout.narrows else []
    narrowed: dict[str, int] = {}
    for number, module in enumerate(modules):
        report(f"range of scales, module {number} of {len(modules)}", 0, len(modules))
        given, codes = assigned.get(module), checkpoint.quantized(module)
        wanted = given.scheme if given else None
        kept = scheme_of(codes, layout, wanted) if codes is not None else None
        if codes is not None and kept is not None and wanted in (None, kept):
            layout.format_of(kept.spec).encode(module, codes, kept.spec)
        elif given is not None:
            weight, spec = checkpoint.tensor(f"{module}.weight"), given.scheme.spec
            if lossy := layout.format_of(spec).require_range(module, weight, spec):
                narrowed[module] = lossy
    if narrowed:
        tell(
            f"layout {layout.name}: {sum(narrowed.values()):,} groups of weights in {len(narrowed):,} modules "
            f"({next(iter(narrowed))}, …) have scales that its float16 rounds to few bits or to none; look at the "
            f"check's KL, or use layout {DEFAULT_LAYOUT}"
        )
