"""`llmc eval`: the same questions to an artifact and to its original."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmc import terminal
from llmc.cli_formats import Json
from llmc.cli_options import Artifact, located


def evaluate(
    artifact: Artifact,
    tasks: Annotated[
        list[str],
        typer.Option(
            "--tasks",
            "-t",
            help="Suites, task files (NAME.yaml) and tasks of lm-eval, separated by commas; repeat it.",
        ),
    ],
    original: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="A checkpoint, or an artifact of it. Default: the builtin model that it was made of."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where data sets of suites lie; others come from the hub.")
    ] = None,
    include: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="More tasks of lm-eval, whose Python code is run.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Samples of each task at most.")] = None,
    chat: Annotated[bool, typer.Option(help="Put prompts through the chat template.")] = False,
    fewshot: Annotated[int | None, typer.Option(min=0, help="Examples in front of each question.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Texts at a time. Default: what the backend takes.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: ARTIFACT.audit.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget the answers of earlier audits.")] = False,
    backend: Annotated[str | None, typer.Option(help="Of the artifact; default: the fastest.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all cores.")] = None,
    device: Annotated[int | None, typer.Option(min=0, help="Which GPU; default: the current one.")] = None,
    as_json: Json = False,
) -> None:
    """Ask an artifact and its original the same questions, and say what compression has changed.

    Every measure is told as a difference with its 95 % interval, and with the samples that changed in either direction;
    answers are kept in OUTPUT, so that an audit that was interrupted goes on. Needs the extra `eval`.

    Suites: hallucination, bias, reasoning, robustness, calibration; `SUITE.TASK` is one task of a suite.

    **Examples**

    `llmc eval build/quickstart --tasks questions.yaml`

    `llmc eval build/Qwen2.5-7B-Instruct --original ~/models/Qwen2.5-7B-Instruct --tasks bias,hallucination --data sets`

    `llmc eval build/Qwen2.5-7B-Instruct --original ~/models/Qwen2.5-7B-Instruct --tasks hellaswag --limit 500`
    """
    from llmc.audit import Options, audit, forget
    from llmc.audit_tables import audit_tables
    from llmc.progress import Display

    here = artifact if artifact.exists() else Path(artifact.name)  # what a name on the hub is about is written here
    place = output or Path(f"{here}".rstrip("/") + ".audit")
    artifact = located(artifact)
    if fresh:
        forget(place)
    options = Options(limit, data, include, chat, fewshot, batch_size, backend, threads, device)
    names = [name.strip() for each in tasks for name in each.split(",") if name.strip()]
    record = audit(artifact, original, names, place, options, Display(terminal.console(stderr=True)))
    if as_json:
        terminal.print_json(record.to_json())
        return
    for table in audit_tables(record):
        terminal.print_table(table)
    terminal.console(stderr=True).print(f"written to {place}", highlight=False, soft_wrap=True)


def review(
    folder: Annotated[Path, typer.Argument(metavar="AUDIT", help="The folder that `llmc eval` wrote.")],
    labels: Annotated[list[Path], typer.Argument(metavar="LABELS…", help="What reviewers saved from its review.html.")],
    as_json: Json = False,
) -> None:
    """Read reviewers' labels of answers that differ back into an audit: who is preferred, and how far they agree.

    `llmc eval` writes review.html, a page for people who compare two answers without knowing whose they are, and
    review-key.json, which says so and is not for them.

    **Examples**

    `llmc review build/quickstart.audit labels-anna.jsonl labels-ben.jsonl`
    """
    from llmc.audit_tables import review_table
    from llmc.review_labels import review as read

    record = read(folder, labels)
    if as_json:
        terminal.print_json(record.to_json())
        return
    assert record.review is not None
    terminal.print_table(review_table(record.review))
