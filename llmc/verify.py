"""Every file of an artifact against its manifest: `--verify`, before anything is done with it, and `llmc verify`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from llmc import terminal
from llmc.contracts.progress import Progress
from llmc.errors import InputError
from llmc.runtime.artifact import MANIFEST, Artifact
from llmc.runtime.verification import Verification
from llmc.runtime.verification import verify as verify_all
from llmc.signing import Signer, Trust, sign, verify_signed

_SHOWN = 5


class _Bar(Progress):
    def __init__(self, bars: Bars, task: TaskID) -> None:
        self.bars, self.task = bars, task

    def __call__(self, phase: str, done: float, total: float = 1.0, layer: int = 0, layers: int = 1) -> None:
        self.bars.update(self.task, completed=done, total=total)


@contextmanager
def _bar() -> Iterator[_Bar]:
    """What shows on a terminal how much was read, and how long the rest takes."""
    console = terminal.console(stderr=True)
    columns = TextColumn("verifying"), BarColumn(), DownloadColumn(binary_units=False), TimeRemainingColumn()
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield _Bar(progress, progress.add_task(""))


def read_all(artifact: Path, fresh: bool = False, trust: Trust | None = None) -> Verification:
    """What `llmc verify` finds, with progress on standard error; see `llmc.runtime.verification`."""
    with _bar() as bar:
        return verify_signed(artifact, trust, bar, fresh) if trust else verify_all(artifact, bar, fresh)


def sign_read(artifact: Path, signer: Signer, fresh: bool = False) -> Verification:
    """What `llmc sign` vouches for, with progress on standard error."""
    with _bar() as bar:
        return sign(artifact, signer, bar, fresh)


def verify(path: Path) -> None:
    """Reads all files of the artifact at `path`, or of the one that the file `path` belongs to, and names, on standard
    error, those that its manifest does not list. InputError when one is not as it was built.
    """
    folder = next((each for each in (path, *path.absolute().parents) if (each / MANIFEST).is_file()), None)
    if folder is None:
        raise InputError(f"{path}: has no {MANIFEST} to verify against; leave out --verify")
    console, artifact = terminal.console(stderr=True), Artifact.open(folder)
    if path != folder and path.absolute().relative_to(folder.absolute()).as_posix() not in artifact.files:
        raise InputError(f"{path}: is none of the files that {folder / MANIFEST} lists; leave out --verify")
    with _bar() as bar:
        unlisted = artifact.verify(bar)
    count = len(artifact.files)
    console.print(f"{folder}: all {count} files are as they were built", highlight=False, markup=False)
    if unlisted:
        more = f" and {len(unlisted) - _SHOWN} more" if len(unlisted) > _SHOWN else ""
        shown = ", ".join(map(ascii, unlisted[:_SHOWN])) + more
        console.print(f"not listed in {MANIFEST}, and not used: {shown}", highlight=False, markup=False)
