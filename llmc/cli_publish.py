"""`llmc publish`: an artifact goes to a model hub, or to a registry of container images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmc import terminal
from llmc.cli_formats import Json
from llmc.cli_options import ArtifactFolder, refuse_given
from llmc.cli_verify import signer_of
from llmc.errors import InputError


def publish(
    artifact: ArtifactFolder,
    repo: Annotated[
        str,
        typer.Option(
            "--repo",
            metavar="OWNER/NAME|oci://…",
            help="The repository on the hub; a new one is created. Or a registry: oci://HOST/NAME:TAG.",
        ),
    ],
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public", help="Who sees it. Default: a new repository is private, an old one stays as it is."
        ),
    ] = None,
    branch: Annotated[
        str | None, typer.Option(metavar="NAME", help="Let it go to this branch, and stay there. Default: main.")
    ] = None,
    pull_request: Annotated[
        bool, typer.Option("--pull-request", help="Open a pull request, for somebody else to merge.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would go, and ask nobody.")] = False,
    allow_rejected: Annotated[
        bool, typer.Option("--allow-rejected", help="Publish what misses its gates; its card says so.")
    ] = False,
    sign_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Sign it with this private key (PEM) before it goes.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Publish an artifact on the Hugging Face hub, or in a registry, whole and as it was built.

    All files are read first: what misses its gates (exit code 3), is not as its manifest says, or holds a file that
    this does not list, is refused. It goes to a pull request, the manifest last, and is merged when all of it is there:
    nobody finds half of it. An upload that broke off goes on when the same command is given again; what is there is not
    sent again. What an earlier artifact had in the repository, and this one has not, is deleted; a repository
    that holds another model is left alone.

    The token is HF_TOKEN, or what `hf auth login` left. HF_ENDPOINT names another hub than the public one.

    In a registry of container images it becomes a ModelPack model, the manifest last; the login is that of docker.

    **Examples**

    `llmc publish build/quickstart --repo me/quickstart`

    `llmc publish build/quickstart --repo me/quickstart --public --branch int4`

    `llmc publish build/quickstart --repo me/quickstart --dry-run`

    `llmc publish build/quickstart --repo oci://registry.example.com/team/quickstart:v1 --sign-key acme.pem`
    """
    from llmc.byte_progress import ByteProgress
    from llmc.progress import size
    from llmc.publish import publish as send
    from llmc.tables import table

    if dry_run and sign_key is not None:
        raise InputError("--sign-key: a dry run changes nothing; leave out one of the two")
    signer = signer_of(sign_key)
    if repo.startswith("oci://"):
        hub_alone = {"--private/--public": private, "--branch": branch}
        refuse_given("a registry", hub_alone | {"--pull-request": pull_request or None, "--dry-run": dry_run or None})
        if signer:
            signer(artifact)
        _push(artifact, repo, allow_rejected, as_json)
        return
    with ByteProgress() as progress:
        made = send(
            artifact, repo, private=private, branch=branch, pull_request=pull_request, dry_run=dry_run,
            allow_rejected=allow_rejected, progress=progress, finish=signer,
        )  # fmt: skip
    if as_json:
        terminal.print_json(made.to_json())
        return
    total = sum(made.files.values())
    if dry_run:
        shown = table(f"{artifact} → {made.name}, {'private' if made.private else 'public'}", "file", "size")
        for name, count in made.files.items():
            shown.add_row(name, size(count))
        shown.add_row(f"{len(made.files)} files", size(total))
        terminal.print_table(shown)
        return
    out = terminal.console(highlight=False)
    was = "is there already" if made.up_to_date else f"{len(made.files)} files, {size(total)}"
    out.print(
        f"{made.repo}: {was}, {'private' if made.private else 'public'}, revision {made.revision}", soft_wrap=True
    )
    out.print(made.url, soft_wrap=True)
    if made.pull_request:
        out.print(f"pull request {made.pull_request} waits to be merged", soft_wrap=True)
    out.print(f"llmc pull {made.repo}@{made.revision}", soft_wrap=True)


def _push(artifact: Path, reference: str, allow_rejected: bool, as_json: bool) -> None:
    from llmc.byte_progress import ByteProgress
    from llmc.oci import push
    from llmc.progress import size

    with ByteProgress() as progress:
        made = push(artifact, reference, allow_rejected=allow_rejected, progress=progress)
    if as_json:
        terminal.print_json(made.to_json())
        return
    out = terminal.console(highlight=False)
    told = f"{made.files} files, {size(made.bytes)}, of which {size(made.bytes_sent)} were not there yet"
    out.print(f"{reference}: {told}", soft_wrap=True)
    out.print(f"llmc pull {made.name}", soft_wrap=True)
