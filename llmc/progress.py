"""What a build shows while it works: a live line on a terminal, plain lines elsewhere, and a log file."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich import filesize
from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bars

from llmc.contracts.progress import Progress
from llmc.visible import visible_line


class Display(Progress):
    """Everything goes to `console`, finished stages also to the file `log`, with the time of day."""

    def __init__(self, console: Console, log: Path | None = None) -> None:
        import psutil  # not part of the base install, which never builds

        self.console, self.log = console, log
        self.process = psutil.Process()
        self.live: Bars | None = None
        self.layers: LayerProgress | None = None
        self.stage_name = self.phase = ""
        self.stage_start = self.phase_start = 0.0

    def line(self, text: str) -> None:
        text = visible_line(text)
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
        if self.log is not None:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    @contextmanager
    def stage(self, name: str, weights: Sequence[int] = ()) -> Iterator[None]:
        """Its time is reported when it ends."""
        self.stage_name, self.phase = name, ""
        self.layers = LayerProgress(self, weights) if weights else None
        self.stage_start = time.monotonic()
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(24), TaskProgressColumn())
        with Bars(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as live:
            self.live = live
            live.add_task(visible_line(name), total=1.0)
            yield
        if self.layers is not None:
            self.layers.finish()
        self.line(f"{name}: {duration(time.monotonic() - self.stage_start)}, {self.memory()} in memory")

    def __call__(self, phase: str, done: float, total: float = 1.0, layer: int = 0, layers: int = 1) -> None:
        """Show how much of a phase is done, and how many tokens a second where it counts tokens."""
        if self.layers is not None:
            self.layers(layer, layers, phase, done)
        else:
            self.update(phase, done / total if total else 1.0, done if total > 1 else 0)

    def update(self, phase: str, fraction: float, tokens: float = 0, eta: float | None = None) -> None:
        """`fraction` of the stage is done; `tokens` of the phase went through so far, at some speed."""
        now = time.monotonic()
        if phase != self.phase:
            self.phase, self.phase_start = phase, now
        parts = [f"{self.stage_name}: {phase}"]
        if tokens and now > self.phase_start:
            parts.append(f"{tokens / (now - self.phase_start):,.0f} tokens/s")
        parts.append(self.memory())
        if eta is not None:
            parts.append(f"{duration(eta)} left")
        if self.live is not None:
            self.live.update(self.live.task_ids[0], description=visible_line(" · ".join(parts)), completed=fraction)

    def memory(self) -> str:
        return size(self.process.memory_info().rss)


class LayerProgress:
    """Progress of the single pass, whose layer i takes time in proportion to `weights[i]`; knows only how long the
    layers of this run took, so a resumed run is estimated well.
    """

    def __init__(self, display: Display, weights: Sequence[int]) -> None:
        self.display, self.weights = display, weights
        self.first = self.layer = -1
        self.start = self.layer_start = time.monotonic()

    def __call__(self, layer: int, layers: int, phase: str, done: float) -> None:
        now = time.monotonic()
        if layer != self.layer:
            if self.layer < 0:
                self.first, self.start = layer, now
                if layer:
                    self.display.line(f"  resumed: {layer} of {layers} layers were finished")
            else:
                self.finish(now)
            self.layer, self.layer_start = layer, now
        finished = sum(self.weights[self.first : layer])
        rest = sum(self.weights[layer:])
        eta = (self.layer_start - self.start) / finished * rest - (now - self.layer_start) if finished else None
        fraction = sum(self.weights[:layer]) / sum(self.weights)
        self.display.update(f"layer {layer + 1}/{layers} {phase}", fraction, done, max(0.0, eta) if eta else None)

    def finish(self, now: float | None = None) -> None:
        """Tells of the layer that was worked on last."""
        if self.layer >= 0:
            took = duration((now or time.monotonic()) - self.layer_start)
            self.display.line(
                f"  layer {self.layer + 1}/{len(self.weights)}: {took}, {self.display.memory()} in memory"
            )


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 3 min 20 s, 2 h 05 min"""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float) -> str:
    """25.6 MB: decimal, as disks and model hubs count."""
    return filesize.decimal(round(count))
