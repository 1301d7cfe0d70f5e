"""`llmc report` and `llmc compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmc import terminal
from llmc.cli_formats import Json
from llmc.cli_options import Artifact, located
from llmc.errors import InputError


def report(
    artifact: Artifact,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Where to write. Default: into the artifact."),
    ] = None,
    bench: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What `llmc bench --json` printed: a section about speed.")
    ] = None,
    audit: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="What `llmc eval` left: a section about its differences.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What `llmc check --against … --json` printed: errors of every expert."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write report.html and report.json of an artifact that lacks them, or with its speed on this machine.

    Builds leave both in every artifact. The page needs no network and no other file. A signed artifact whose report is
    written anew has to be signed anew.

    **Examples**

    `llmc report build/quickstart`

    `llmc bench build/quickstart --json > bench.json && llmc report build/quickstart --bench bench.json -o report`

    `llmc report build/quickstart --audit build/quickstart.audit -o report`

    `llmc check build/quickstart --against builtin:tiny-deepseek-v3 --json > against.json`

    `llmc report build/quickstart --against against.json -o report`
    """
    from llmc.remake import remake

    folder = located(artifact)
    if folder != artifact and output is None:
        raise InputError(f"{artifact}: is in the hub's cache, where nothing is changed; give --output")
    made, page = remake(folder, output, bench, audit, against)
    if as_json:
        terminal.print_json(made.to_json())
    else:
        terminal.console(highlight=False).print(str(page), soft_wrap=True)


def compare(
    artifacts: Annotated[
        list[Path],
        typer.Argument(
            metavar="ARTIFACT...", help="Two or more, or their names on the hub; each is held against the first."
        ),
    ],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page, too.")] = None,
    as_json: Json = False,
) -> None:
    """Put artifacts side by side: size against divergence, with intervals; and in pairs, where they read the same text.

    Which of two is better often shows in pairs alone: what makes a window of text hard for both does not count. Needs
    neither torch nor the models, just each artifact's llmc.json.

    **Examples**

    `llmc compare build/int4 build/int3`

    `llmc compare build/int4 build/int3 build/fp8 --html comparison.html`
    """
    from llmc.compare import compare as hold
    from llmc.compare_tables import tables

    compared = hold([located(artifact) for artifact in artifacts])
    if html is not None:
        from llmc.page.comparison import comparison_page
        from llmc.remake import write_text

        write_text(html, comparison_page(compared))
    if as_json:
        terminal.print_json(compared.to_json())
        return
    for table in tables(compared):
        terminal.print_table(table)
