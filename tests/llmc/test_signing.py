"""Signatures by model-signing: made and checked by llmc, and by that package's own command."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from support.certificates import certificates, key_pair
from support.listed_files import list_files
from typer.testing import CliRunner, Result

from llmc.cli import app
from llmc.errors import InputError
from llmc.runtime import load
from llmc.signing import Signer, Trust, sign, verify_signed


@pytest.fixture
def artifact(audited_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return shutil.copytree(audited_artifact, tmp_path / "artifact")


def llmc(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def model_signing(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_key_signs_and_its_other_half_verifies(artifact: Path, tmp_path: Path) -> None:
    key = key_pair(tmp_path, "ours")
    done = llmc("sign", artifact, "--key", key)
    assert done.exit_code == 0 and "model.sig: vouches for" in done.stdout, done.stderr
    done = llmc("verify", artifact, "--key", key.with_suffix(".pub"), "--json")
    told = json.loads(done.stdout)
    assert done.exit_code == 0 and told["verified"] and told["signed"] and told["signer"].endswith("ours.pub")
    assert llmc("verify", artifact).stdout.splitlines()[-1].endswith("says by whom")
    assert not verify_signed(artifact, Trust(key.with_suffix(".pub")), fresh=True).faults
    load(artifact).close()


def test_the_packages_own_command_agrees_both_ways(artifact: Path, tmp_path: Path) -> None:
    key, signature = key_pair(tmp_path, "ours"), artifact / "model.sig"
    public = key.with_suffix(".pub")
    sign(artifact, Signer(key))
    theirs = "--signature", signature, "--public_key", public
    done = model_signing("verify", "key", artifact, *theirs)
    assert done.returncode == 0 and "succeeded" in done.stdout, done.stderr
    (artifact / "added.py").write_text("")
    assert model_signing("verify", "key", artifact, *theirs).returncode == 1
    (artifact / "added.py").unlink()
    signature.unlink()
    done = model_signing("sign", "key", artifact, "--signature", signature, "--private_key", key)
    assert done.returncode == 0, done.stderr
    assert not verify_signed(artifact, Trust(public)).faults


def test_signatures_that_do_not_count(artifact: Path, tmp_path: Path) -> None:
    key, other = key_pair(tmp_path, "ours"), key_pair(tmp_path, "theirs")
    trust, signature = Trust(key.with_suffix(".pub")), artifact / "model.sig"

    def said() -> str:
        faults = verify_signed(artifact, trust).faults
        assert len(faults) == 1
        return faults[0]

    assert "nobody signed this" in said()
    sign(artifact, Signer(other))
    assert "is not what the key" in said()
    sign(artifact, Signer(key))
    bundle = json.loads(signature.read_text())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    statement["predicate"]["resources"].pop()
    forged = bundle | {"dsseEnvelope": dict(bundle["dsseEnvelope"])}
    forged["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    for text in (json.dumps(forged), "{}", "", "[" * 1000, json.dumps(bundle | {"dsseEnvelope": {}}), "\udcff"):
        signature.write_bytes(text.encode("utf-8", "surrogateescape"))
        assert "is not what the key" in said()
    signature.unlink()
    signature.mkdir()
    with pytest.raises(InputError, match=r"model\.sig: is no file in the artifact"):
        verify_signed(artifact, trust)


def test_who_changes_a_file_and_its_hash_is_found_by_the_signature_alone(artifact: Path, tmp_path: Path) -> None:
    key = key_pair(tmp_path, "ours")
    sign(artifact, Signer(key))
    (artifact / "config.json").write_text(json.dumps(json.loads((artifact / "config.json").read_text()) | {"x": 1}))
    manifest = json.loads((artifact / "llmc.json").read_text())
    del manifest["digest"]
    (artifact / "llmc.json").write_text(json.dumps(manifest))
    list_files(artifact, "config.json")
    assert llmc("verify", artifact).exit_code == 0
    done = llmc("verify", artifact, "--key", key.with_suffix(".pub"))
    assert done.exit_code == 2 and "is not what the key" in done.stderr and "Hash mismatch" in done.stderr


def test_a_certificate_that_a_root_leads_to(artifact: Path, tmp_path: Path) -> None:
    ours, others = tmp_path / "ours", tmp_path / "others"
    for folder in (ours, others):
        folder.mkdir()
        certificates(folder)
    signing = "--key", ours / "signer.pem", "--certificate", ours / "signer.crt", "--chain", ours / "intermediate.crt"
    done = llmc("sign", artifact, *signing)
    assert done.exit_code == 0, done.stderr
    done = llmc("verify", artifact, "--certificate", ours / "root.crt")
    assert done.exit_code == 0 and f"signed by a certificate of {ours / 'root.crt'}" in done.stdout, done.stderr
    done = llmc("verify", artifact, "--certificate", others / "root.crt")
    assert done.exit_code == 2 and "is not what a certificate of" in done.stderr
    done = llmc("sign", artifact, "--key", others / "signer.pem", "--certificate", ours / "signer.crt")
    assert done.exit_code == 2 and "does not match" in done.stderr


def test_only_what_is_as_it_was_built_is_signed(artifact: Path, tmp_path: Path) -> None:
    key = key_pair(tmp_path, "ours")
    (artifact / "added.py").write_text("")
    done = llmc("sign", artifact, "--key", key)
    assert done.exit_code == 2 and "added.py: not listed in llmc.json" in done.stderr
    assert not (artifact / "model.sig").exists()


def test_a_report_made_anew_takes_the_signature_along(artifact: Path, tmp_path: Path) -> None:
    key = key_pair(tmp_path, "ours")
    sign(artifact, Signer(key))
    assert llmc("report", artifact, "-o", tmp_path / "apart").exit_code == 0
    assert (artifact / "model.sig").exists()
    assert llmc("report", artifact).exit_code == 0
    assert not (artifact / "model.sig").exists() and llmc("verify", artifact).exit_code == 0


def test_keys_with_passwords(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = key_pair(tmp_path, "hidden", b"open sesame", ec.SECP384R1())
    for password, said in ((None, "give its password as LLMC_KEY_PASSWORD"), ("wrong", "Incorrect password")):
        monkeypatch.setenv("LLMC_KEY_PASSWORD", password or "")
        done = llmc("sign", artifact, "--key", key)
        assert done.exit_code == 2 and said in done.stderr, done.stderr
    monkeypatch.setenv("LLMC_KEY_PASSWORD", "open sesame")
    assert llmc("sign", artifact, "--key", key).exit_code == 0
    assert llmc("verify", artifact, "--key", key.with_suffix(".pub")).exit_code == 0


def test_what_cannot_sign_or_verify_is_told_in_a_line(artifact: Path, tmp_path: Path) -> None:
    key, odd = key_pair(tmp_path, "ours"), key_pair(tmp_path, "odd", curve=ec.SECP256K1())
    public = key.with_suffix(".pub")
    for arguments, said in (
        (["sign", artifact], "give --key FILE"),
        (["sign", artifact, "--key", public], "cannot be used"),
        (["sign", artifact, "--key", tmp_path / "none.pem"], "none.pem: cannot be read"),
        (["sign", artifact, "--key", odd], "Unsupported key for curve"),
        (["sign", artifact, "--key", key, "--keyless"], "leave those out"),
        (["sign", artifact, "--key", key, "--chain", key], "give --certificate, too"),
        (["verify", artifact, "--key", key], "cannot be used"),
        (["verify", artifact, "--key", public, "--identity", "a@b.c", "--issuer", "https://b.c"], "give one of them"),
        (["verify", artifact, "--identity", "a@b.c"], "give both"),
        (["verify", tmp_path, "--key", public], "no llmc.json here"),
    ):
        done = llmc(*arguments)
        assert done.exit_code == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_without_a_network_keyless_says_so(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # where nothing listens, wherever the test runs
    for arguments in (["sign", "--keyless"], ["verify", "--identity", "a@b.c", "--issuer", "https://b.c"]):
        done = llmc(arguments[0], artifact, *arguments[1:])
        assert done.exit_code == 4 and "sigstore's servers cannot be asked" in done.stderr, done.stderr
