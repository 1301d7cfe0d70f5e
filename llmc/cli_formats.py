"""`llmc recipe` and `llmc artifact`: recipes that ship, new ones, and the formats of both files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmc import streams, terminal
from llmc.errors import InputError

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output instead of tables.")]

recipe_app = typer.Typer(no_args_is_help=True, help="Look at the recipes that ship with llmc, and write new ones.")
artifact_app = typer.Typer(no_args_is_help=True, help="Look at the format of artifacts.")


@recipe_app.command("list")
def list_recipes(as_json: Json = False) -> None:
    """List the recipes that ship with llmc: `llmc build NAME` builds one, `llmc recipe show NAME` prints it."""
    from llmc.recipe import shipped
    from llmc.recipe_files import first_comment
    from llmc.tables import table

    found = {name: first_comment(path.read_text(encoding="utf-8")) for name, path in shipped().items()}
    if as_json:
        terminal.print_json(found)
        return
    made = table("recipes that ship with llmc", "name", "what it makes", numbers=False)
    for row in found.items():
        made.add_row(*row)
    terminal.print_table(made)


@recipe_app.command()
def show(name: Annotated[str, typer.Argument(help="The name of a recipe that ships with llmc.")]) -> None:
    """Print a recipe that ships with llmc, with its comments.

    **Examples**

    `llmc recipe show llama-3.1-8b > mine.yaml`
    """
    from llmc.recipe_files import read_shipped

    streams.write(read_shipped(name))


@recipe_app.command()
def new(
    model: Annotated[str, typer.Argument(help="A folder, or a hub id such as Qwen/Qwen2.5-7B-Instruct.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="A new file. Default: standard output.")
    ] = None,
) -> None:
    """Write a recipe for a model, with comments; reads headers, no weights.

    **Examples**

    `llmc recipe new Qwen/Qwen2.5-7B-Instruct --output qwen.yaml`
    """
    from llmc.recipe_files import new_recipe

    text = new_recipe(model)
    if output is None:
        streams.write(text)
        return
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"{output}: exists; choose another --output") from None


@recipe_app.command()
def schema() -> None:
    """Print the recipe's JSON Schema, for editors.

    **Examples**

    `llmc recipe schema > llmc-recipe.schema.json`
    """
    from llmc.recipe import json_schema

    terminal.print_json(json_schema())


@artifact_app.command("schema")
def artifact_schema(
    report: Annotated[bool, typer.Option("--report", help="Of report.json in place of llmc.json.")] = False,
) -> None:
    """Print the JSON Schema of an artifact's manifest, llmc.json, or of its report.

    **Examples**

    `llmc artifact schema > llmc-artifact.schema.json`

    `llmc artifact schema --report > llmc-report.schema.json`
    """
    from llmc.contracts.manifest import Manifest
    from llmc.contracts.report import Report

    terminal.print_json((Report if report else Manifest).json_schema())
