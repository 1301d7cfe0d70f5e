"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _bytes(text: str) -> int:
    from pydantic import ByteSize, TypeAdapter

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValueError:
        raise typer.BadParameter(f"{text} is no size; write 8GiB or 500MB") from None


Memory = Annotated[
    int | None,
    typer.Option(
        parser=_bytes, metavar="SIZE", help="Memory that the build may take, say 8GiB. Default: what is free."
    ),
]
GpuMemory = Annotated[
    int | None,
    typer.Option(
        parser=_bytes, metavar="SIZE", help="Calibrate and solve on a GPU, in this much of its memory, say 24GiB."
    ),
]
Recipe = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE|MODEL",
        help="A recipe file, the name of a recipe that ships with llmc, or a model, which gets the default recipe.",
    ),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Default: build/RECIPE-NAME.")]
