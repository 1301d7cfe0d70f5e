"""Keys on a curve, and certificates that lead from a root over an intermediate to whoever signs, as files."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_USAGE = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


def key_pair(folder: Path, name: str, password: bytes | None = None, curve: ec.EllipticCurve | None = None) -> Path:
    """Writes NAME.pem and NAME.pub, and returns the former."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    _write_key(folder / f"{name}.pem", key, password)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pub").write_bytes(public)
    return folder / f"{name}.pem"


def certificates(folder: Path) -> None:
    """Writes root.crt, intermediate.crt and signer.crt, of which each vouches for the next, and the last one's key,
    signer.pem.
    """
    issuer: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None = None
    for name in ("root", "intermediate", "signer"):
        key, last = ec.generate_private_key(ec.SECP256R1()), name == "signer"
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"llmc test {name}")])
        by, with_key = issuer or (subject, key)
        now = datetime.datetime.now(datetime.UTC)
        wanted = {"digital_signature"} if last else {"key_cert_sign", "crl_sign"}
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(by)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5 if last else 10))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=not last, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(**{each: each in wanted for each in _USAGE}), critical=True)
        )
        if last:
            builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
        made = builder.sign(with_key, hashes.SHA256())
        (folder / f"{name}.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
        issuer = subject, key
        if last:
            _write_key(folder / "signer.pem", key)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> None:
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden))
