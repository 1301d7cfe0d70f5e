"""`llmc pull`: an artifact comes from a model hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmc import terminal
from llmc.cli_formats import Json
from llmc.cli_verify import TrustedCertificates, TrustedIdentity, TrustedIssuer, TrustedKey


def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="OWNER/NAME on the hub, or OWNER/NAME@REVISION.")],
    to: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A new folder for it. Default: the cache of the hub's client.")
    ] = None,
    key: TrustedKey = None,
    certificate: TrustedCertificates = None,
    identity: TrustedIdentity = None,
    issuer: TrustedIssuer = None,
    as_json: Json = False,
) -> None:
    """Get an artifact from the Hugging Face hub, and verify it.

    What its manifest lists comes, and nothing else, and each file is held against its sha256. From the cache every
    command takes it by its name, without a network: `llmc run OWNER/NAME`. These fetch what is not there, too. A
    download that broke off goes on when the same command is given again.

    For a private repository, the token is HF_TOKEN, or what `hf auth login` left. HF_ENDPOINT names another hub than
    the public one.

    **Examples**

    `llmc pull me/quickstart`

    `llmc pull me/quickstart@int4 --to quickstart`

    `llmc pull acme/quickstart --key acme.pub`
    """
    from llmc.byte_progress import ByteProgress
    from llmc.progress import size
    from llmc.pull import pull as get

    trust = None
    if key or certificate or identity or issuer:
        from llmc.signing import Trust

        trust = Trust(key, tuple(certificate or ()), identity, issuer)
    with ByteProgress() as progress:
        made = get(name, to, trust=trust, progress=progress)
    if as_json:
        terminal.print_json(made.to_json())
        return
    out = terminal.console(highlight=False)
    told = f"{made.files} files, {size(made.bytes)}, all as they were built"
    out.print(f"{made.repo}@{made.revision}: {told}", soft_wrap=True)
    out.print(str(made.path), soft_wrap=True)
