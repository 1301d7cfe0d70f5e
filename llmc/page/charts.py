"""Charts as marks in a plane: across in percent of the chart's width, down in pixels, so that a page of any width shows
them with letters of one size. The template draws them.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from llmc.visible import visible

TOP, BOTTOM = 26, 44  # pixels above and below a plot: titles, labels
_ROW = 40  # pixels of a bar that lies, with its label
_LABEL = 42  # letters of a bar's label and value together, on a phone
_LARGEST_POWER = 308  # of ten, that is a number
_MOST_LABELS = 6  # across, on a phone


@dataclass(frozen=True)
class Tick:
    """A label of an axis; `minor` ones are left out where there is little room."""

    at: float
    text: str
    minor: bool = False


@dataclass(frozen=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    kind: str
    tip: str


@dataclass(frozen=True)
class Segment:
    x1: float
    y1: float
    x2: float
    y2: float
    kind: str


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    kind: str
    tip: str


@dataclass(frozen=True)
class Text:
    x: float
    y: float
    text: str
    anchor: str = "start"
    kind: str = "label"
    beside: float = 0  # pixels to the right of x


@dataclass
class Chart:
    """What is drawn."""

    height: float
    bars: list[Bar] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    dots: list[Dot] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)
    x: list[Tick] = field(default_factory=list)
    y: list[Tick] = field(default_factory=list)
    x_title: str = ""
    y_title: str = ""
    kind: str = "chart"


@dataclass(frozen=True)
class Axis:
    """Values between low and high, by their logarithms if `log`."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def around(cls, values: Iterable[float], log: bool = False) -> Axis:
        """Return one with room for all values: from 0, or from a power of ten to another."""
        found = [each for each in values if each > 0 or not log]
        if not log:
            return cls(min(0.0, *found, 0.0), max(*found, 0.0) * 1.05 or 1.0)
        low, high = (min(found), max(found)) if found else (0.1, 1.0)
        first = math.floor(math.log10(low) + 1e-9)
        last = min(_LARGEST_POWER, max(first + 1, math.ceil(math.log10(high) - 1e-9)))
        return cls(10.0 ** min(first, last - 1), 10.0**last, True)

    def share(self, value: float) -> float:
        """Return how far along the axis a value lies, between 0 and 1."""
        if self.log:
            low, high, value = math.log10(self.low), math.log10(self.high), math.log10(max(value, self.low))
        else:
            low, high = self.low, self.high
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def ticks(self) -> list[tuple[float, str]]:
        """Return round values on it, some five."""
        if self.log:
            first, last = round(math.log10(self.low)), round(math.log10(self.high))
            step = max(1, math.ceil((last - first) / 7))
            small = first < -3
            return [(10.0**power, _power(power, small)) for power in range(first, last + 1, step)]
        rough = (self.high - self.low) / 4
        size = 10.0 ** math.floor(math.log10(rough))
        step_ = next(size * each for each in (1, 2, 2.5, 5, 10) if size * each >= rough * 0.999)
        count = math.floor(self.high / step_ + 1e-9)
        return [(step_ * each, f"{step_ * each:.6g}") for each in range(math.ceil(self.low / step_), count + 1)]


def power_of_ten(value: float) -> str:
    """Return `0.01`, or `10⁻⁵` where that is longer."""
    return _power(round(math.log10(value)), False)


def _power(power: int, small: bool) -> str:
    digits = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{digits}" if abs(power) > 3 or (small and power < 0) else f"{10.0**power:g}"


class Plot:
    """A chart with an axis upwards, being drawn."""

    def __init__(
        self, up: Axis, x_title: str, y_title: str, height: float = 200, unit: float = 1.0, room: float = 0
    ) -> None:
        """Begin one; labels upwards are in units of 1 / `unit`; `room` pixels are left free above, for labels."""
        self.up, self.plot_height, self.top = up, height, TOP + room
        self.chart = Chart(self.top + height + BOTTOM, x_title=x_title, y_title=y_title)
        for value, text in Axis(up.low * unit, up.high * unit, up.log).ticks():
            self.chart.y.append(Tick(self.y(value / unit), text))

    @property
    def floor(self) -> float:
        return self.top + self.plot_height

    def y(self, value: float) -> float:
        return self.top + self.plot_height * (1 - self.up.share(value))

    def label(self, ticks: Sequence[tuple[float, str]]) -> None:
        """Labels across; where they are many, most are minor, or left out."""
        every = max(1, math.ceil(len(ticks) / (2 * _MOST_LABELS)))
        for number, (at, text) in enumerate(ticks[::every]):
            self.chart.x.append(Tick(at, text, minor=bool(number % 2) and len(ticks) > _MOST_LABELS))

    def column(self, x: float, width: float, value: float, kind: str, tip: str) -> None:
        top = self.y(value)
        self.chart.bars.append(Bar(x, top, width, max(self.floor - top, 0.0), kind, tip))

    def dot(self, x: float, value: float, tip: str, kind: str = "main", error: float = 0.0) -> None:
        if error:
            self.chart.segments.append(Segment(x, self.y(value - error), x, self.y(value + error), f"error {kind}"))
        self.chart.dots.append(Dot(x, self.y(value), kind, tip))

    def path(self, points: Sequence[tuple[float, float]], kind: str = "main") -> None:
        places = [(x, self.y(value)) for x, value in points]
        self.chart.segments += [Segment(*one, *other, f"path {kind}") for one, other in pairwise(places)]


def slots(count: int) -> list[tuple[float, float]]:
    """Left ends and widths, in percent, of as many equal places across."""
    return [(100 * each / count, 100 / count) for each in range(count)]


def lying_bars(rows: Sequence[tuple[str, float, float | None, str]], first: str = "main") -> Chart:
    """Bars from the left, each below its label and its value; (label, value, error or None, value as it is shown).

    Args:
        first: The kind of the first bar.
    """
    high = max((value + (error or 0) for _, value, error, _ in rows), default=0.0) or 1.0
    chart = Chart(_ROW * len(rows) + 4, kind="chart lying")
    for number, (label, value, error, shown) in enumerate(rows):
        top, width = _ROW * number, 100 * max(value, 0.0) / high
        room = _LABEL - len(shown)
        chart.texts += [Text(0, top + 15, _shortened(label, room)), Text(100, top + 15, shown, "end", "label value")]
        chart.bars.append(Bar(0, top + 22, 100, 10, "track", ""))
        chart.bars.append(Bar(0, top + 22, max(width, 0.3), 10, "main" if number else first, f"{label}: {shown}"))
        if error:
            left, right = (100 * min(max(value + each, 0.0) / high, 1.0) for each in (-error, error))
            chart.segments.append(Segment(left, top + 27, right, top + 27, "error over"))
    return chart


def intervals(rows: Sequence[tuple[str, float, float | None, float | None, str]]) -> Chart:
    """Values with their intervals on one scale that holds 0; (label, value, low, high, value as it is shown)."""
    every = [each for _, *values, _ in rows for each in values if each is not None]
    low, high = min(0.0, *every), max(0.0, *every)
    room = 0.04 * (high - low) or 1.0
    axis = Axis(low - room, high + room)
    chart = Chart(_ROW * len(rows) + 4, kind="chart lying")
    zero = 100 * axis.share(0.0)
    for number, (label, value, first, last, shown) in enumerate(rows):
        top = _ROW * number
        chart.texts += [Text(0, top + 15, _shortened(label, _LABEL - len(shown))), Text(100, top + 15, shown, "end")]
        chart.bars.append(Bar(0, top + 22, 100, 12, "track", ""))
        chart.segments.append(Segment(zero, top + 20, zero, top + 36, "zero"))
        if first is not None and last is not None:
            chart.segments.append(
                Segment(100 * axis.share(first), top + 28, 100 * axis.share(last), top + 28, "error main wide")
            )
        chart.dots.append(Dot(100 * axis.share(value), top + 28, "main", f"{label}: {shown}"))
    return chart


def _shortened(text: str, room: int) -> str:
    """The text, without its middle if it is wider than so many letters; some scripts' are twice as wide."""
    if _width(text) <= room:
        return text
    first, last = text, text
    while _width(first) > room // 2:
        first = first[:-1]
    while _width(last) > room - room // 2 - 1:
        last = last[1:]
    return f"{first}…{last}"


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in visible(text))
