"""What the original said about the check text, for a recipe that does not publish it (`check: {publish_text: false}`).

Not the text alone: which of the original's most likely tokens was the true one shows in their probabilities. The whole
file leaves the artifact when that is finished, and never lies in one that is in its place.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from llmc.runtime.artifact import REFERENCE


def beside(artifact: Path) -> Path:
    """Where the file of an artifact lies that does not hold it."""
    return artifact.with_name(f"{artifact.name}.{REFERENCE}")


class Reference:
    """artifact: the one that is being built; home: the work directory, which ends with the build."""

    def __init__(self, artifact: Path, home: Path) -> None:
        self.inside, self.aside = artifact / REFERENCE, home / REFERENCE

    def put_back(self) -> None:
        """After a build that was killed between `set_apart` and its end."""
        if self.aside.exists() and self.inside.parent.exists():
            self.aside.replace(self.inside)

    def set_apart(self, place: Path) -> Path:
        """Out of the artifact, to a file beside the place that the artifact will have, which is returned."""
        file = beside(place)
        partial = file.with_name(f"{file.name}.partial")
        partial.unlink(missing_ok=True)  # it may be a link, to somebody's file
        shutil.copyfile(self.inside, partial)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(file)
        self.inside.replace(self.aside)
        return file
