"""What a page's sections are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from llmc.page.charts import Chart
from llmc.page.heat import Heat


@dataclass(frozen=True)
class Table:
    """Rows of words; all columns but the first `words` are numbers, which stand at the right.

    Attributes:
        folded: Whether it is shown only when it is asked for.
    """

    caption: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    words: int = 1
    folded: bool = False
    kind: str = "table"


@dataclass(frozen=True)
class Figure:
    """A chart, what it shows in a sentence, and its numbers as a table."""

    title: str
    told: str
    chart: Chart | Heat
    table: Table
    legend: Sequence[tuple[str, str]] = ()
    kind: str = "figure"


@dataclass(frozen=True)
class Tile:
    """A number that a reader looks for first."""

    name: str
    value: str
    more: str = ""


@dataclass(frozen=True)
class Tiles:
    tiles: Sequence[Tile]
    kind: str = "tiles"


@dataclass(frozen=True)
class Light:
    """A limit, and whether it is kept."""

    name: str
    state: str  # passed or missed
    told: str


@dataclass(frozen=True)
class Lights:
    lights: Sequence[Light]
    kind: str = "lights"


@dataclass(frozen=True)
class Excerpt:
    before: str
    token: str
    kl: str
    change: str


@dataclass(frozen=True)
class Excerpts:
    """Tokens with the text in front of them."""

    caption: str
    rows: Sequence[Excerpt]
    kind: str = "excerpts"


@dataclass(frozen=True)
class Paragraph:
    text: str
    kind: str = "paragraph"


@dataclass(frozen=True)
class Listing:
    """A file's text, word for word."""

    title: str
    text: str
    kind: str = "listing"


Block = Table | Figure | Tiles | Lights | Excerpts | Paragraph | Listing


@dataclass(frozen=True)
class Section:
    """Attributes:
    anchor: Its name in links.
    short: How the list of sections calls it.
    """

    anchor: str
    title: str
    short: str
    blocks: list[Block] = field(default_factory=list)
