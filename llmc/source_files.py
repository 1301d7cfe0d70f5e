"""The files that a build reads: what was hashed when it began has to be what every layer was made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llmc.contracts.part import File
from llmc.errors import InputError
from llmc.files import stamp
from llmc.quant.durable import describe


class SourceFiles:
    """Made before the first byte of a checkpoint is read; told what the files hold, as soon as that is known."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = [path for pattern in ("*", "*/*.jinja") for path in folder.glob(pattern) if path.is_file()]
        self.stamps = {path.relative_to(folder).as_posix(): stamp(path) for path in files}
        self.hashes: Mapping[str, str] = {}

    def hashed(self, hashes: Mapping[str, str]) -> None:
        """Name → sha256 of all that the build is made of; InputError if one of them changed on the way here."""
        self.hashes = hashes
        for name in hashes:
            # Headers were read before the hash was taken: here, the same stamp is needed, not the same hash.
            if name not in self.stamps or self.stamps[name] != self._stamp(name):
                raise self._changed(name)

    def require_unchanged(self) -> None:
        """InputError that names a file which holds something else than was hashed, or is gone."""
        for name, expected in self.hashes.items():
            now = self._stamp(name)
            if now == self.stamps[name]:
                continue
            # A hard link more, other permissions, or the same file copied there again: times say less than bytes.
            if describe(self.folder / name, File).sha256 != expected:
                raise self._changed(name)
            self.stamps[name] = now

    def _stamp(self, name: str) -> tuple[int, ...]:
        try:
            return stamp(self.folder / name)
        except OSError as error:
            raise InputError(
                f"{self.folder / name}: is gone since the build began; put it back and build again"
            ) from error

    def _changed(self, name: str) -> InputError:
        return InputError(
            f"{self.folder / name}: was changed while the build read it, so that the result would be made of two "
            "different models; build again when nothing writes there any more"
        )
