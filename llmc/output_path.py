"""Where an artifact may go: into a folder with a name of its own, in whose place nothing else is needed.

A build writes beside that folder, too: into <name>.work, and into <name>.rejected when a gate is missed.
"""

from __future__ import annotations

import os
from pathlib import Path

from llmc.errors import InputError

_ENDINGS = ("", ".work", ".rejected")
_LONGEST = ".rejected.reference.safetensors.partial"  # of all that is put behind the name


def output_path(name: str, given: Path | None) -> Path:
    """The folder that `--output` names, by default build/NAME; InputError for one that no build should replace."""
    path = given if given is not None else Path("build") / name
    try:
        path = path.expanduser()
        if path.name in ("", ".."):
            path = path.resolve()
        path.with_name(f"{path.name}{_LONGEST}").exists() if path.name else path.exists()
        written = _written(path) if path.name else [path]
    except (OSError, RuntimeError) as error:  # no such user, links in a circle
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"--output {path}: {reason}") from error
    if given is not None:  # a plan needs no place to write to
        _refuse_unwritable(path)
    here = current_folder()
    if any(here.is_relative_to(folder) for folder in written):
        raise InputError(
            f"--output {given}: that is the folder llmc was started in, or one around it, whose place the artifact "
            f"would take; choose a folder that is not there yet, such as --output {name}"
        )
    return path


def refuse_overlap(output: Path, model: Path) -> None:
    """InputError when a build into `output`, which has a name, would write into the folder of its model, or over it."""
    model = model.resolve()
    for folder in _written(output):
        if model.is_relative_to(folder):
            raise InputError(
                f"--output {output}: the build would take the place of {folder}, where its model lies; choose another "
                "--output"
            )
        if folder.is_relative_to(model):
            raise InputError(
                f"--output {output}: that is inside the folder of the model, {model}, which is only read; choose "
                "another --output"
            )


def _refuse_unwritable(path: Path) -> None:
    """What no build can write to, and what it could only fail to use when all else is done."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:  # bytes that are not UTF-8, or another locale; ONNX Runtime opens no such file
        raise InputError(f"--output {path}: is not a name in UTF-8; choose another --output") from error
    for folder in path.parents:
        if folder.exists():
            if not folder.is_dir():
                raise InputError(f"--output {path}: {folder} is not a folder; choose another --output")
            if not os.access(folder, os.W_OK | os.X_OK):
                raise InputError(f"--output {path}: {folder} cannot be written to; choose another --output")
            return


def _written(path: Path) -> list[Path]:
    """The folders that a build may replace; the last component may be a link, which is replaced itself."""
    folder = path.parent.resolve()
    return [folder / f"{path.name}{ending}" for ending in _ENDINGS]


def current_folder() -> Path:
    """InputError when it was removed: libraries end the process then, without a word that helps."""
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise InputError("the current folder was removed; change to one that is there, and call llmc again") from error
