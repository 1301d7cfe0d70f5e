"""`llmc report` and `llmc compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmc import terminal
from llmc.cli_formats import Json

_Artifact = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="The directory that `llmc build` made.")]


def report(
    artifact: _Artifact,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Where to write. Default: into the artifact."),
    ] = None,
    bench: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What `llmc bench --json` printed: a section about speed.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write report.html and report.json of an artifact that lacks them, or with its speed on this machine.

    Builds leave both in every artifact. The page needs no network and no other file.

    **Examples**

    `llmc report build/quickstart`

    `llmc bench build/quickstart --json > bench.json && llmc report build/quickstart --bench bench.json -o report`
    """
    from llmc.remake import remake

    made, page = remake(artifact, output, bench)
    if as_json:
        terminal.print_json(made.to_json())
    else:
        terminal.console(highlight=False).print(str(page), soft_wrap=True)
