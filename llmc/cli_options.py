"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from llmc.errors import InputError


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
ARTIFACT_HELP = "The directory that `llmc build` made, or its name on the hub: OWNER/NAME or OWNER/NAME@REVISION."
Artifact = Annotated[Path, typer.Argument(metavar="ARTIFACT", help=ARTIFACT_HELP)]
ArtifactFolder = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="The directory that `llmc build` made.")]
AddBos = Annotated[
    bool | None, typer.Option(help="Begin texts with the beginning-of-text token. Default: as it was built.")
]
Backend = Annotated[
    str | None, typer.Option(help="onnxruntime, onnxruntime:PROVIDER, tensorrt-rtx; default: the fastest.")
]
Speculative = Annotated[bool, typer.Option(help="Use the MTP layer, where there is one.")]
DraftTokens = Annotated[int, typer.Option(min=0, help="How far the MTP layer looks ahead.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all cores.")]
Device = Annotated[
    int | None, typer.Option(min=0, help="Which GPU, as CUDA counts them from 0 on; default: the current one.")
]
Ranks = Annotated[int, typer.Option(min=1, help="GPUs that hold the model together, each in a process of its own.")]
Verify = Annotated[bool, typer.Option("--verify", help="Compare the sha256 of every file with the manifest first.")]
MostBody = Annotated[
    int | None, typer.Option("--max-body", parser=_bytes, metavar="SIZE", help="The largest request. Default: 16MiB.")
]
Against = Annotated[
    str | None,
    typer.Option(metavar="ORIGINAL", help="The model that it was made from: a folder, a hub id, or builtin:NAME."),
]
CheckText = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE|builtin:…",
        help="With --against: a text, as a recipe names it; repeat it. Default: the one on record, or "
        "builtin:python-docs.",
    ),
]
CheckTokens = Annotated[int | None, typer.Option(min=32, help="With --against: at most so many tokens of text.")]
CheckLength = Annotated[int | None, typer.Option(min=16, help="With --against: tokens per window of --text.")]
Long = Annotated[
    bool,
    typer.Option(
        "--long", help="Ask for a sentence far back in long windows, at lengths that double up to the context."
    ),
]
Longest = Annotated[int | None, typer.Option(min=64, help="With --long: tokens of the longest window.")]
AgainstOutput = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="With --against: scratch files go beside this, to OUTPUT.against. Default: build/NAME."
    ),
]
Recipe = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE|MODEL",
        help="A recipe file, the name of a recipe that ships with llmc, or a model, which gets the default recipe.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="What the recipe is used for, instead of its own `model`. Also names OUTPUT."),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Default: build/RECIPE-NAME.")]


def refuse_given(where: str, options: Mapping[str, object]) -> None:
    """InputError for an option that was given where it means nothing."""
    for name, value in options.items():
        if value is not None:
            raise InputError(f"{name}: means nothing to {where}; leave it out")


def located(path: Path, verify: bool = False) -> Path:
    """Where an artifact, or another file, lies. What is a name on the hub is fetched, and verified; what is here is so
    where `--verify` asks for it.
    """
    here = path.exists() or path.is_symlink()
    if not here:
        from llmc.byte_progress import ByteProgress
        from llmc.runtime.from_hub import locate

        with ByteProgress() as progress:
            path = locate(path, progress)
    verify_first(path, verify)
    return path


def text_of(path: Path) -> str:
    """What is in a text file; InputError for another one."""
    from llmc.files import read_regular

    try:
        return read_regular(path, 1 << 24).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: no UTF-8 text ({error})") from error


def verify_first(path: Path, wanted: bool) -> None:
    """What `--verify` asks for."""
    if wanted:
        from llmc.verify import verify

        verify(path)
