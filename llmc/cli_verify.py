"""`llmc verify`: is it what was built, all of it and nothing else?"""

from __future__ import annotations

from typing import Annotated

import typer

from llmc import terminal
from llmc.cli_formats import Json
from llmc.cli_options import Artifact
from llmc.errors import InputError


def verify(
    artifact: Artifact,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Read files again that have not changed since they were verified.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say whether an artifact is what was built: every file that llmc.json lists, as it lists it, and nothing else.

    Needs no network. Every fault is told in a line of its own, and ends with exit code 2. What was read once is not
    read again while its device, inode, size and times are the same: the second time takes a moment.

    **Examples**

    `llmc verify build/quickstart`

    `llmc verify build/quickstart --fresh --json`
    """
    from llmc.progress import size
    from llmc.verify import read_all

    found = read_all(artifact, fresh)
    if as_json:
        terminal.print_json(found.to_json())
    for fault in found.faults:
        terminal.fail(fault)
    if found.faults:
        count = len(found.faults)
        raise InputError(f"{artifact}: {count} {'fault' if count == 1 else 'faults'}; it is not what was built")
    if not as_json:
        read = "all read now" if found.bytes_read == found.bytes else f"{size(found.bytes_read)} read now"
        told = f"{artifact}: {len(found.files)} files of {size(found.bytes)} are as they were built, {read}"
        terminal.console(highlight=False).print(told, soft_wrap=True)
