"""The folder that a command works in: made, filled and removed by llmc alone, and never used by two at once."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from llmc.errors import InputError, MachineError
from llmc.quant.durable import sync

LOCK, README = "lock", "README"  # both hold the text by which a folder is known again
_TEXT = "llmc works here. An interrupted run goes on from this folder; one that is done removes it.\n"


@dataclass(frozen=True)
class WorkFolder:
    """names: of what llmc puts into it; whatever else is there is never removed."""

    path: Path
    names: re.Pattern[str]

    def refuse_others(self) -> None:
        """InputError when somebody else's things lie under this name."""
        if self.path.is_symlink() or (self.path.exists() and not (self.path.is_dir() and self._is_ours())):
            raise InputError(
                f"{self.path}: exists and is not a work folder of llmc; it is left alone: move it away, or choose "
                "another --output"
            )

    def _is_ours(self) -> bool:
        marks = {self.path / LOCK, self.path / README}
        if any(_begins(mark) and mark.stat().st_size == len(_TEXT) for mark in marks):
            return True
        # A run that was killed before it had written the text leaves no other file; empty folders are no loss.
        return all(_begins(path) if path in marks else _is_folder(path) for path in self.path.rglob("*"))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Makes the folder and holds it; the lock ends with the process, however that ends."""
        try:
            while True:
                self.refuse_others()
                self.path.mkdir(parents=True, exist_ok=True)
                path = self.path / LOCK
                file = os.open(path, os.O_RDWR | os.O_CREAT)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The run that held it before may have removed the folder in between.
                if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                    break
                os.close(file)
            self._mark()
        except BlockingIOError as error:
            raise MachineError(
                f"{self.path}: another build is writing it; wait for that, or choose another --output"
            ) from error
        except OSError as error:
            raise MachineError(f"{self.path}: cannot be written ({error.strerror}); choose another --output") from error
        try:
            yield
        finally:
            if self.path.exists() and {path.name for path in self.path.iterdir()} <= {LOCK, README}:
                self.remove()
            os.close(file)

    def _mark(self) -> None:
        for mark in (self.path / LOCK, self.path / README):
            if not mark.exists() or mark.read_bytes() != _TEXT.encode():
                mark.write_text(_TEXT)  # in place: the lock is held by this very file
                sync(mark)
        sync(self.path)
        sync(self.path.parent)

    def clear(self, keep: Collection[Path] = ()) -> None:
        """Removes all that llmc put into it, apart from `keep` and what says whose folder it is."""
        for path in self.path.iterdir():
            if path not in keep and self.names.fullmatch(path.name) and _is_folder(path):
                shutil.rmtree(path)

    def remove(self) -> None:
        """The folder itself stays when something is in it that llmc did not put there."""
        self.clear()
        for name in (README, LOCK):
            (self.path / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()


def _begins(path: Path) -> bool:
    """Whether a file holds the text, or the beginning of it."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > len(_TEXT):
        return False
    return _TEXT.encode().startswith(path.read_bytes())


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
