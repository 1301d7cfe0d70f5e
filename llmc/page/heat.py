"""A heat map: rows of cells in shades, one path for each shade, so that thousands of cells stay small."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from llmc.page.charts import Tick

SHADES = 9
_MOST_CELLS_WITH_LINES = 64  # across
_TALL, _LOW, _TALL_ROWS = 24, 11, 20


@dataclass(frozen=True)
class Heat:
    """Attributes:
    paths: Shade → its cells; the cells are one unit wide and high.
    gone: Strokes through cells that have no value any more; where cells are narrow, all of each cell.
    lines: Between cells, where there is room for them.
    """

    columns: int
    rows: int
    height: float
    paths: dict[int, str]
    gone: str
    narrow: bool
    lines: str
    x: list[Tick]
    y: list[Tick]
    x_title: str
    y_title: str
    kind: str = "heat"


def heat(
    names: Sequence[str], values: Sequence[Sequence[float]], gone: Sequence[Sequence[int]], x_title: str, y_title: str
) -> Heat:
    """Shade values between 0 and 1, row by row; `gone` are the numbers of cells that are struck out."""
    columns, rows = max(map(len, values)), len(values)
    runs: dict[int, list[str]] = defaultdict(list)
    for row, mine in enumerate(values):
        start = 0
        shades = [min(SHADES - 1, int(value * SHADES)) for value in mine]
        for column in range(1, len(shades) + 1):
            if column == len(shades) or shades[column] != shades[start]:
                runs[shades[start]].append(f"M{start} {row}h{column - start}v1h{start - column}z")
                start = column
    narrow = columns > _MOST_CELLS_WITH_LINES
    stroke = "h1v1h-1z" if narrow else "l1 1m-1 0l1-1"
    strokes = "".join(f"M{cell} {row}{stroke}" for row, cells in enumerate(gone) for cell in cells)
    lines = "" if narrow else "".join(f"M{each} 0v{rows}" for each in range(1, columns))
    lines += "".join(f"M0 {each}h{columns}" for each in range(1, rows)) if rows <= _TALL_ROWS else ""
    each_row = _TALL if rows <= _TALL_ROWS else _LOW
    every, step = max(1, rows * 14 // (each_row * rows) + (rows > _TALL_ROWS)), max(1, -(-columns // 8))
    return Heat(
        columns=columns,
        rows=rows,
        height=rows * each_row,
        paths={shade: "".join(found) for shade, found in sorted(runs.items())},
        gone=strokes,
        narrow=narrow,
        lines=lines,
        x=[Tick(100 * (each + 0.5) / columns, str(each)) for each in range(0, columns, step)],
        y=[Tick((each + 0.5) * each_row, names[each]) for each in range(0, rows, every)],
        x_title=x_title,
        y_title=y_title,
    )
