"""How far something is that reads, sends or gets files: bytes, their rate and what is left, on standard error."""

from __future__ import annotations

import time
from types import TracebackType

from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

from llmc import terminal
from llmc.contracts.progress import Progress
from llmc.progress import duration, size
from llmc.visible import visible_line

_EVERY = 30.0  # seconds


class ByteProgress(Progress):
    """A bar on a terminal; elsewhere a line every half minute."""

    def __init__(self) -> None:
        self.console = terminal.console(stderr=True, highlight=False)
        columns = TextColumn("{task.description}", markup=False), BarColumn(24), DownloadColumn()
        more = TransferSpeedColumn(), TimeRemainingColumn()
        self.bars = Bars(*columns, *more, console=self.console, transient=True, disable=not self.console.is_terminal)
        self.task = self.bars.add_task("", visible=False)
        self.phase = ""
        self.start = self.told = time.monotonic()
        self.first = 0.0

    def __enter__(self) -> ByteProgress:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def line(self, text: str) -> None:
        """Print it, above the bar."""
        self.console.print(visible_line(text), highlight=False, markup=False, soft_wrap=True)

    def __call__(self, phase: str, done: float, total: float = 1.0, layer: int = 0, layers: int = 1) -> None:
        """Show that `done` of `total` bytes are read, sent or here."""
        now = time.monotonic()
        if phase != self.phase:  # what was there before it began says nothing about speed
            self.phase, self.start, self.told, self.first = phase, now, now, done
            self.bars.reset(self.task, description=visible_line(phase), total=total, completed=int(done), visible=True)
        self.bars.update(self.task, completed=done, total=total)
        if not self.console.is_terminal and now - self.told >= _EVERY and done < total:
            self.told = now
            rate = (done - self.first) / (now - self.start)
            left = f", {size(rate)}/s, {duration((total - done) / rate)} left" if rate > 0 else ""
            self.line(f"  {phase}: {size(done)} of {size(total)}{left}")
