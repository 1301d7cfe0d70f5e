"""`llmc pull`: an artifact comes from a model hub, or from a registry of container images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llmc import terminal
from llmc.cli_formats import Json
from llmc.cli_verify import TrustedCertificates, TrustedIdentity, TrustedIssuer, TrustedKey


def pull(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="OWNER/NAME or OWNER/NAME@REVISION on the hub, or oci://HOST/NAME:TAG."),
    ],
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="A new folder for it. Default: the cache of the hub's client; from a registry, the name's last part.",
        ),
    ] = None,
    key: TrustedKey = None,
    certificate: TrustedCertificates = None,
    identity: TrustedIdentity = None,
    issuer: TrustedIssuer = None,
    as_json: Json = False,
) -> None:
    """Get an artifact from the Hugging Face hub or a registry, and verify it.

    What its manifest lists comes, and nothing else, and each file is held against its sha256. From the cache every
    command takes it by its name, without a network: `llmc run OWNER/NAME`. These fetch what is not there, too. A
    download that broke off goes on when the same command is given again.

    For a private repository, the token is HF_TOKEN, or what `hf auth login` left. HF_ENDPOINT names another hub than
    the public one. A registry takes the login of docker.

    **Examples**

    `llmc pull me/quickstart`

    `llmc pull me/quickstart@int4 --to quickstart`

    `llmc pull acme/quickstart --key acme.pub`

    `llmc pull oci://registry.example.com/team/quickstart:v1 --key acme.pub`
    """
    from llmc.byte_progress import ByteProgress
    from llmc.oci import pull as pull_registry
    from llmc.progress import size
    from llmc.pull import pull as get

    trust = None
    if key or certificate or identity or issuer:
        from llmc.signing import Trust

        trust = Trust(key, tuple(certificate or ()), identity, issuer)
    shown: tuple[str, Path, int, int]
    made: Any
    with ByteProgress() as progress:
        if name.startswith("oci://"):
            made = pull_registry(name, to, trust=trust, progress=progress)
            shown = made.name, made.path, made.files, made.bytes
        else:
            made = get(name, to, trust=trust, progress=progress)
            shown = f"{made.repo}@{made.revision}", made.path, made.files, made.bytes
    if as_json:
        terminal.print_json(made.to_json())
        return
    called, path, files, nbytes = shown
    signed = f", signed by {trust}" if trust else ""
    out = terminal.console(highlight=False)
    out.print(f"{called}: {files} files, {size(nbytes)}, all as they were built{signed}", soft_wrap=True)
    out.print(str(path), soft_wrap=True)
