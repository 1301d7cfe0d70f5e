"""Weights of a graph that is not run from its file, where these are links into a hub's cache.

ONNX Runtime follows such links beside a graph that is a link itself. Of one that it is given as bytes it refuses all
that leave the folder; and buffers in place of files it would copy. So it is shown a folder of hard links, which take no
room, and is mapped from there as from any other.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmc.errors import MachineError
from llmc.runtime.artifact import Artifact
from llmc.runtime.external_data import locations


@contextmanager
def data_folder(artifact: Artifact, name: str) -> Iterator[Path]:
    """The folder to take the weights of a graph from, for the time that a session takes to open them.

    Raises:
        InputError: A file that the graph names is not one of the artifact's.
        MachineError: It is in a hub's cache that nothing can be added to.
    """
    folder = artifact.file(name).parent
    files = {each: artifact.file(artifact.beside(name, each)) for each in locations(artifact.read_graph(name))}
    if all(path.resolve().is_relative_to(folder.resolve()) for path in files.values()):
        yield folder
        return
    beside = next(path.resolve().parent for path in files.values() if path.is_symlink())
    try:
        with tempfile.TemporaryDirectory(prefix=".llmc-", dir=beside) as links:
            for each, path in files.items():
                link = Path(links) / each
                link.parent.mkdir(parents=True, exist_ok=True)
                os.link(path.resolve(), link)
            yield Path(links)
    except OSError as error:
        raise MachineError(
            f"{artifact.path}: the hub's cache takes no hard links ({error.strerror}), which this needs; "
            "`llmc pull NAME --to FOLDER` puts the artifact into a folder of its own"
        ) from error
