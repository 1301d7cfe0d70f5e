"""`llmc verify` and `llmc sign`: is it what was built, and who says so?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from llmc import terminal
from llmc.cli_formats import Json
from llmc.cli_options import Artifact, ArtifactFolder, located
from llmc.errors import InputError

Fresh = Annotated[
    bool, typer.Option("--fresh", help="Read files again that have not changed since they were verified.")
]


TrustedKey = Annotated[Path | None, typer.Option(metavar="FILE", help="The public key (PEM) of who must have signed.")]
TrustedCertificates = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="A root (PEM) that the signer's certificate must lead to; repeat it."),
]
TrustedIdentity = Annotated[
    str | None, typer.Option(help="Who must have signed without a key: an e-mail or a workflow's address.")
]
TrustedIssuer = Annotated[
    str | None, typer.Option(metavar="URL", help="With --identity: who told sigstore that it was them.")
]


def verify(
    artifact: Artifact,
    key: TrustedKey = None,
    certificate: TrustedCertificates = None,
    identity: TrustedIdentity = None,
    issuer: TrustedIssuer = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Say whether an artifact is what was built: every file that llmc.json lists, as it lists it, and nothing else.

    Needs no network. Every fault is told in a line of its own, and ends with exit code 2. What was read once is not
    read again while its device, inode, size and times are the same: the second time takes a moment.

    Hashes say that an artifact is whole, not who made it. With `--key`, `--certificate` or `--identity` it must have a
    signature, model.sig, of whom these name. `--identity` asks sigstore's servers for their own keys, now and then.

    **Examples**

    `llmc verify build/quickstart`

    `llmc verify build/quickstart --key acme.pub`

    `llmc verify build/quickstart --identity me@example.com --issuer https://accounts.google.com --json`
    """
    from llmc.progress import size
    from llmc.signing import Trust, is_signed
    from llmc.verify import read_all

    trust = Trust(key, tuple(certificate or ()), identity, issuer)
    artifact = located(artifact)
    found = read_all(artifact, fresh, trust)
    if as_json:
        terminal.print_json(found.to_json() | {"signed": is_signed(artifact), "signer": str(trust) if trust else None})
    for fault in found.faults:
        terminal.fail(fault)
    if found.faults:
        count = len(found.faults)
        raise InputError(f"{artifact}: {count} {'fault' if count == 1 else 'faults'}; do not use it")
    if not as_json:
        read = "all read now" if found.bytes_read == found.bytes else f"{size(found.bytes_read)} read now"
        signed = "signed; --key, --certificate or --identity says by whom" if is_signed(artifact) else "not signed"
        lines = [f"{len(found.files)} files of {size(found.bytes)} are as they were built, {read}"]
        lines += [f"signed by {trust}" if trust else signed]
        for line in lines:
            terminal.console(highlight=False).print(f"{artifact}: {line}", soft_wrap=True)


def sign(
    artifact: ArtifactFolder,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A private key (PEM; P-256, P-384 or P-521).")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The certificate (PEM) of that key; it goes into the signature.")
    ] = None,
    chain: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A certificate between that one and a root; repeat it."),
    ] = None,
    keyless: Annotated[
        bool, typer.Option("--keyless", help="Let sigstore vouch for you: asks its servers, and your browser.")
    ] = False,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Sign an artifact: model.sig in it then vouches for every file, llmc.json included.

    The artifact is verified first. The signature is a sigstore bundle, by the package model-signing, whose own command
    verifies it, too. A key with a password takes it from the variable LLMC_KEY_PASSWORD. To make a key:

    `openssl ecparam -name prime256v1 -genkey -noout -out acme.pem && openssl ec -in acme.pem -pubout -out acme.pub`

    **Examples**

    `llmc sign build/quickstart --key acme.pem`

    `llmc sign build/quickstart --key acme.pem --certificate acme.crt --chain intermediate.crt`

    `llmc sign build/quickstart --keyless`
    """
    from llmc.runtime.artifact import SIGNATURE
    from llmc.signing import Signer
    from llmc.verify import sign_read

    signer = Signer(key, certificate, tuple(chain or ()), keyless)
    found = sign_read(artifact, signer, fresh)
    if as_json:
        terminal.print_json({"signature": str(artifact / SIGNATURE), "files": len(found.files), "bytes": found.bytes})
    else:
        told = f"{artifact / SIGNATURE}: vouches for {len(found.files)} files"
        terminal.console(highlight=False).print(told, soft_wrap=True)


def signer_of(key: Path | None) -> Callable[[Path], Any] | None:
    """What signs an artifact with `--sign-key`; None: nothing is to. Whatever is wrong with the key is told now."""
    if key is None:
        return None
    from llmc.signing import Signer, sign

    signer = Signer(key)
    signer.check()
    return lambda artifact: sign(artifact, signer)
