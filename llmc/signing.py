"""Who vouches for an artifact: signatures over its files, by `model-signing` of the Open Source Security Foundation.

A signature is a sigstore bundle, `model.sig` in the artifact: an in-toto statement with the SHA-256 of every file that
llmc.json lists, and of llmc.json itself, signed with a key, with a certificate's key, or with a key of ten minutes that
sigstore ties to an e-mail address or a workflow (keyless). Nothing of that is made here: this hands over the hashes
that `llmc verify` found, so that no file is read twice, and puts what goes wrong into words. `model_signing verify`
says the same of an artifact, and `llmc verify` of what `model_signing sign` signed file by file with SHA-256, its
default.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from llmc.errors import InputError, MachineError
from llmc.files import read_regular
from llmc.runtime.artifact import SIGNATURE, Artifact
from llmc.runtime.verification import Verification, verify

if TYPE_CHECKING:
    from model_signing.hashing import Config as Hashing

    from llmc.contracts.progress import ProgressFunction

PASSWORD = "LLMC_KEY_PASSWORD"  # of the environment: arguments are seen by everybody on a machine
_MOST_BYTES = 1 << 26  # of 100,000 files
_IGNORED = (SIGNATURE, ".cache", ".git", ".gitattributes", ".github", ".gitignore")


@dataclass(frozen=True)
class Signer:
    """With what an artifact is signed: a key, a certificate and its key, or neither of them.

    Args:
        key: a private key, PEM, on the curve P-256, P-384 or P-521; LLMC_KEY_PASSWORD has its password, if it has one
        certificate: the certificate of that key, PEM
        chain: certificates between that one and a root, PEM
        keyless: whether sigstore is to vouch, which asks its servers and the signer's browser, or the CI's identity
    """

    key: Path | None = None
    certificate: Path | None = None
    chain: tuple[Path, ...] = ()
    keyless: bool = False

    def __post_init__(self) -> None:
        if self.keyless and (self.key or self.certificate):
            raise InputError("--keyless: signs without a key or a certificate; leave those out")
        if not (self.keyless or self.key):
            raise InputError("nothing to sign with; give --key FILE, --key and --certificate, or --keyless")
        if self.chain and not self.certificate:
            raise InputError("--chain: leads from a certificate to a root; give --certificate, too")

    def check(self) -> Any:
        """Return what signs, by the library; InputError or MachineError when it cannot, as with a wrong password."""
        from model_signing.signing import Config

        config = Config()
        with _told("sign"):
            if self.key is None:
                return config.use_sigstore_signer(use_ambient_credentials=True)
            if self.certificate:
                return config.use_certificate_signer(
                    private_key=_pem(self.key),
                    signing_certificate=_pem(self.certificate),
                    certificate_chain=[_pem(each) for each in self.chain],
                )
            password: Any = os.environ.get(PASSWORD, "").encode() or None  # bytes, whatever the library says
            return config.use_elliptic_key_signer(private_key=_pem(self.key), password=password)


@dataclass(frozen=True)
class Trust:
    """Whose signature counts: that of a key, of whom a certificate vouches for, or of an identity.

    Args:
        key: the public key, PEM
        certificates: roots, PEM, one of which must lead to the signer's certificate; anybody who has one counts
        identity: an e-mail address, or a workflow's address, that sigstore vouched for; needs its servers once
        issuer: who told sigstore so, as `https://accounts.google.com`
    """

    key: Path | None = None
    certificates: tuple[Path, ...] = ()
    identity: str | None = None
    issuer: str | None = None

    def __post_init__(self) -> None:
        if sum(map(bool, (self.key, self.certificates, self.identity))) > 1:
            raise InputError("--key, --certificate, --identity: are three ways to say who is trusted; give one of them")
        if bool(self.identity) != bool(self.issuer):
            raise InputError("--identity and --issuer: belong together; give both")

    def __bool__(self) -> bool:
        return bool(self.key or self.certificates or self.identity)

    def __str__(self) -> str:
        if self.identity:
            return f"{self.identity}, by {self.issuer}"
        return f"the key {self.key}" if self.key else f"a certificate of {', '.join(map(str, self.certificates))}"


def sign(
    artifact: Path | str, signer: Signer, progress: ProgressFunction | None = None, fresh: bool = False
) -> Verification:
    """Sign an artifact that is what was built; an earlier signature is replaced.

    Args:
        artifact: The artifact's folder.
        signer: With what.
        progress: Is told how many bytes were read, of how many, where they have to be.
        fresh: Read files again that have not changed since they were verified.

    Returns:
        What the signature vouches for.

    Raises:
        InputError: for an artifact with faults, a key or certificate that cannot be used
        MachineError: where `model-signing` is not installed, or sigstore cannot be reached
    """
    config = signer.check()
    found = verify(artifact, progress, fresh).require()
    place = found.path / SIGNATURE
    temporary = place.with_name(f"{SIGNATURE}.tmp")
    try:
        with _told("sign"):
            config.set_hashing_config(_hashing(found.files)).sign(found.path, temporary)
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)
    return found


def verify_signed(
    artifact: Path | str, trust: Trust, progress: ProgressFunction | None = None, fresh: bool = False
) -> Verification:
    """Verify an artifact, and that whoever is trusted signed it; without files read twice.

    Args:
        artifact: The artifact's folder; in a hub's cache, the snapshot.
        trust: Whose signature counts.
        progress: Is told how many bytes were read, of how many.
        fresh: Read files again that have not changed since they were verified.

    Returns:
        What was verified. A signature that does not count is a fault like others.

    Raises:
        InputError: for what is no artifact, and a key or certificate that cannot be used
        MachineError: where `model-signing` is not installed, or sigstore cannot be reached
    """
    check = _checker(trust)
    found = verify(artifact, progress, fresh)
    if not found.faults and (fault := _signature_fault(found, trust, check)):
        found.faults.append(fault)
    return found


def is_signed(artifact: Path | str) -> bool:
    """Whether there is a signature, whoever made it."""
    return Artifact.open(artifact, whole=False).signature() is not None


def _checker(trust: Trust) -> Any:
    """The library's, told whom to trust."""
    from model_signing.verifying import Config

    config = Config()
    with _told("verify"):
        if trust.identity and trust.issuer:
            return config.use_sigstore_verifier(identity=trust.identity, oidc_issuer=trust.issuer)
        if trust.certificates:
            return config.use_certificate_verifier(certificate_chain=[_pem(each) for each in trust.certificates])
        return config.use_elliptic_key_verifier(public_key=_pem(trust.key))


def _signature_fault(found: Verification, trust: Trust, check: Any) -> str | None:
    place = Artifact.open(found.path, whole=False).signature()
    if place is None:
        return f"{found.path / SIGNATURE}: missing; nobody signed this, or the signature was removed"
    read_regular(place, _MOST_BYTES)
    try:
        check.set_hashing_config(_hashing(found.files)).verify(found.path, place)
    except Exception as error:  # a stranger's bundle may be anything, and fails in as many ways; none of them counts
        said = " ".join(str(error).split())[:500] or type(error).__name__
        return f"{place}: is not what {trust} would have signed ({said})"
    return None


def _hashing(files: Mapping[str, str]) -> Hashing:
    """The library's way to hash a folder, which is told what its files' hashes are."""
    from model_signing import hashing, manifest

    class Known(hashing.Config):
        def hash(self, model_path: Any, *, files_to_hash: Iterable[Any] | None = None) -> manifest.Manifest:
            items = [
                manifest.FileManifestItem(
                    path=PurePosixPath(name), digest=manifest.hashing.Digest("sha256", bytes.fromhex(sha256))
                )
                for name, sha256 in files.items()
            ]
            how = {"method": "files", "hash_type": "sha256", "allow_symlinks": True, "ignore_paths": _IGNORED}
            name = Path(model_path).resolve().name
            return manifest.Manifest(name, items, manifest.SerializationType.from_args(how))

    return Known()


def _pem(path: Path | None) -> Path:
    """A key's or a certificate's file; InputError when it cannot be read."""
    assert path is not None
    read_regular(path, 1 << 20)
    return path


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Errors of the library and of those below it, in words."""
    try:
        yield
    except (InputError, MachineError, ImportError, OSError):
        raise
    except TypeError as error:  # of cryptography, for a key with a password and for one without
        raise InputError(f"--key: {error}; give its password as {PASSWORD}, and none where it has none") from error
    except Exception as error:
        said = " ".join(str(error).split())[:500] or type(error).__name__
        if type(error).__module__.partition(".")[0] in ("sigstore", "tuf", "requests", "urllib3", "id"):
            raise MachineError(
                f"sigstore's servers cannot be asked ({said}); {what} with --key or --certificate, or where there is "
                "a network"
            ) from error
        raise InputError(f"--key, --certificate: cannot be used ({said})") from error
