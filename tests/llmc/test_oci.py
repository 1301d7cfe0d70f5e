"""Artifacts in a registry of container images: Debian's docker-registry, on loopback."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from support.certificates import key_pair
from support.docker_registry import HTPASSWD, PASSWORD, docker_registry, wire
from typer.testing import CliRunner

from llmc import oci_registry
from llmc.cli import app
from llmc.errors import GateError, InputError, MachineError
from llmc.modelpack import read_layers
from llmc.oci import pull, push
from llmc.oci_registry import Registry
from llmc.runtime import load
from llmc.signing import Signer, Trust, sign

OCI = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture
def artifact(audited_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return shutil.copytree(audited_artifact, tmp_path / "artifact")


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored(host: str, name: str, tag: str) -> dict[str, Any]:
    return dict(requests.get(f"http://{host}/v2/{name}/manifests/{tag}", headers={"Accept": OCI}, timeout=60).json())


def test_there_and_back(host: str, artifact: Path, tmp_path: Path) -> None:
    key = key_pair(tmp_path, "ours")
    sign(artifact, Signer(key))
    pushed = push(artifact, f"oci://{host}/team/small:v1")
    assert pushed.files == len(content(artifact)) and pushed.bytes_sent == pushed.bytes
    pulled = pull(f"oci://{host}/team/small:v1", tmp_path / "pulled", trust=Trust(key.with_suffix(".pub")))
    assert content(pulled.path) == content(artifact)
    assert pulled.digest == pushed.digest and pulled.name == pushed.name
    assert pull(pushed.name, tmp_path / "by digest").digest == pushed.digest
    with load(pulled.path) as model:
        assert model.generate("ab", max_new_tokens=3).token_ids
    theirs = key_pair(tmp_path, "theirs").with_suffix(".pub")
    with pytest.raises(InputError, match=r"model\.sig: is not what the key"):
        pull(pushed.name, tmp_path / "refused", trust=Trust(theirs))
    assert not (tmp_path / "refused").exists()


def test_the_commands(host: str, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    key, other = key_pair(tmp_path, "ours"), key_pair(tmp_path, "theirs")
    reference = f"oci://{host}/team/by-command:v1"
    done = CliRunner().invoke(app, ["publish", str(artifact), "--repo", reference, "--sign-key", str(key), "--json"])
    assert done.exit_code == 0, done.stderr
    name = json.loads(done.stdout)["name"]
    pulling = ["pull", name, "--key"]
    done = CliRunner().invoke(app, [*pulling, str(other.with_suffix(".pub"))])
    assert done.exit_code == 2 and "is not what the key" in done.stderr and not Path("by-command").exists()
    done = CliRunner().invoke(app, [*pulling, str(key.with_suffix(".pub"))])
    assert done.exit_code == 0 and f"{name}: " in done.stdout and "signed by the key" in done.stdout, done.stderr
    assert content(tmp_path / "by-command") == content(artifact)
    done = CliRunner().invoke(app, ["publish", str(artifact), "--repo", reference, "--public"])
    assert done.exit_code == 2 and "--private/--public: means nothing to a registry" in done.stderr


def test_it_is_a_model_as_modelpack_has_it(host: str, artifact: Path) -> None:
    pushed = push(artifact, f"oci://{host}/team/described")
    manifest = stored(host, "team/described", "latest")
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json" and manifest["mediaType"] == OCI
    kinds = {each["annotations"]["org.cncf.model.filepath"]: each["mediaType"] for each in manifest["layers"]}
    prefix = "application/vnd.cncf.model."
    for name, kind in (
        ("model-00001-of-00004.safetensors", "weight.v1.raw"), ("model.onnx", "weight.v1.raw"),
        ("config.json", "weight.config.v1.raw"), ("tokenizer.json", "weight.config.v1.raw"),
        ("llmc.json", "weight.config.v1.raw"), ("README.md", "doc.v1.raw"), ("report.html", "doc.v1.raw"),
        ("reference.safetensors", "dataset.v1.raw"),
    ):  # fmt: skip
        assert kinds[name] == prefix + kind
    assert manifest["config"]["mediaType"] == f"{prefix}config.v1+json"
    blob = requests.get(f"http://{host}/v2/team/described/blobs/{manifest['config']['digest']}", timeout=60).content
    config = json.loads(blob)
    assert config.keys() == {"descriptor", "config", "modelfs"}
    assert config["descriptor"]["family"] == "deepseek_v3" and config["config"]["quantization"] == "int4-g32"
    assert config["modelfs"] == {"type": "layers", "diffIds": [each["digest"] for each in manifest["layers"]]}
    again = push(artifact, f"oci://{host}/team/described:again")
    assert again.digest == pushed.digest and again.bytes_sent == 0


def test_a_push_that_was_cut_goes_on(
    host: str, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = f"oci://{host}/team/resumed"
    send, sent = oci_registry.Registry.send, list[str]()

    def breaks(self: oci_registry.Registry, path: Path, digest: str, size: int) -> None:
        if len(sent) == 4:
            raise MachineError("the cable was pulled")
        sent.append(path.name)
        send(self, path, digest, size)

    with monkeypatch.context() as patched:
        patched.setattr(oci_registry.Registry, "send", breaks)
        with pytest.raises(MachineError, match="cable"):
            push(artifact, reference)
    assert "errors" in stored(host, "team/resumed", "latest")  # nobody finds half of it
    pushed = push(artifact, reference)
    assert pushed.bytes - pushed.bytes_sent == sum((artifact / name).stat().st_size for name in sent)
    assert content(pull(reference, tmp_path / "pulled").path) == content(artifact)


def test_large_files_go_in_parts(host: str, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oci_registry, "_PART", 1 << 16)
    push(artifact, f"oci://{host}/team/parts")
    assert content(pull(f"oci://{host}/team/parts", tmp_path / "pulled").path) == content(artifact)


def test_a_pull_over_a_wire_that_breaks(
    host: str, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oci_registry, "_CHUNK", 1 << 12)
    total = push(artifact, f"oci://{host}/team/broken").bytes
    with wire(host) as line:
        line.breaks = [total // 4, total // 2]
        pulled = pull(f"oci://{line.address}/team/broken", tmp_path / "pulled")
        assert not line.breaks and line.bytes < 1.5 * total
    assert content(pulled.path) == content(artifact)


def test_what_is_here_is_not_asked_for_again(host: str, artifact: Path, tmp_path: Path) -> None:
    push(artifact, f"oci://{host}/team/half")
    partial = tmp_path / "pulled.partial"
    shutil.copytree(artifact, partial)
    (partial / "model.onnx").unlink()
    whole = (partial / "reference.safetensors").read_bytes()
    (partial / "reference.safetensors").write_bytes(whole[:-7])
    (partial / "config.json").write_bytes((partial / "config.json").read_bytes()[::-1])
    with wire(host) as line:
        pull(f"oci://{line.address}/team/half", tmp_path / "pulled")
        assert line.bytes < (artifact / "model.onnx").stat().st_size + 40_000
    assert content(tmp_path / "pulled") == content(artifact)
    partial.mkdir()
    (partial / "llmc.json").write_text("{}")
    (partial / "of another.json").write_text("{}")
    shutil.rmtree(tmp_path / "pulled")
    pull(f"oci://{host}/team/half", tmp_path / "pulled")
    assert content(tmp_path / "pulled") == content(artifact)


def test_what_is_not_pushed(host: str, artifact: Path) -> None:
    document = json.loads((artifact / "llmc.json").read_text())
    document["checks"]["gates"] = [{"name": "top1", "limit": 0.9, "value": 0.5, "passed": False}]
    del document["digest"]
    (artifact / "llmc.json").write_text(json.dumps(document))
    with pytest.raises(GateError, match="top1"):
        push(artifact, f"oci://{host}/team/refused")
    assert push(artifact, f"oci://{host}/team/accepted", allow_rejected=True).files
    (artifact / "added.py").write_text("")
    with pytest.raises(InputError, match=r"added\.py: not listed"):
        push(artifact, f"oci://{host}/team/refused", allow_rejected=True)
    assert "errors" in stored(host, "team/refused", "latest")


def test_a_login_that_is_needed(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    with docker_registry(tmp_path / "registry", HTPASSWD) as host:
        reference = f"oci://{host}/team/secret:v1"

        def log_in(password: str) -> None:
            (tmp_path / "docker").mkdir(exist_ok=True)
            known = base64.b64encode(f"somebody:{password}".encode()).decode()
            (tmp_path / "docker" / "config.json").write_text(json.dumps({"auths": {host: {"auth": known}}}))

        for password in (None, "wrong"):
            if password:
                log_in(password)
            with pytest.raises(InputError, match="needs a login"):
                push(artifact, reference)
            with pytest.raises(InputError, match="needs a login"):
                pull(reference, tmp_path / "pulled")
        log_in(PASSWORD)
        push(artifact, reference)
        assert content(pull(reference, tmp_path / "pulled").path) == content(artifact)


def test_a_registry_that_gives_something_else(host: str, artifact: Path, tmp_path: Path) -> None:
    push(artifact, f"oci://{host}/team/forged")
    manifest = stored(host, "team/forged", "latest")

    def put(changed: dict[str, Any], tag: str) -> str:
        url = f"http://{host}/v2/team/forged/manifests/{tag}"
        requests.put(url, data=json.dumps(changed), headers={"Content-Type": OCI}, timeout=60).raise_for_status()
        return f"oci://{host}/team/forged:{tag}"

    def layer_of(name: str) -> dict[str, Any]:
        found = (each for each in manifest["layers"] if each["annotations"]["org.cncf.model.filepath"] == name)
        return dict(next(found))

    others = [each for each in manifest["layers"] if each != layer_of("config.json")]
    swapped = layer_of("config.json") | {key: layer_of("tokenizer.json")[key] for key in ("digest", "size")}
    for tag, changed, said in (
        ("swapped", manifest | {"layers": [*others, swapped]}, r"config\.json is not what its llmc\.json lists"),
        ("less", manifest | {"layers": others}, r"config\.json is not what its llmc\.json lists"),
        ("image", manifest | {"artifactType": "application/x"}, "is no ModelPack model"),
    ):
        with pytest.raises(InputError, match=said):
            pull(put(changed, tag), tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"annotations": {"org.cncf.model.filepath": "../x"}}, "no name of a file inside"),
        ({"annotations": {"org.cncf.model.filepath": "/etc/x"}}, "no name of a file inside"),
        ({"annotations": {"org.cncf.model.filepath": ".git/config"}}, "no name of a file inside"),
        ({"annotations": {"org.cncf.model.filepath": "x/.GIT/hooks/post-checkout"}}, "no name of a file inside"),
        ({"annotations": {}}, "filepath"), ({"annotations": None}, "broken manifest"),
        ({"size": -1}, "has no size"), ({"size": "1"}, "has no size"), ({"digest": "md5:1"}, "has no size or SHA-256"),
        ({"mediaType": "application/vnd.cncf.model.weight.v1.tar"}, "is packed"),
    ],
)  # fmt: skip
def test_manifests_of_strangers(change: dict[str, Any], said: str) -> None:
    layer = {
        "mediaType": "application/vnd.cncf.model.weight.v1.raw", "digest": f"sha256:{'0' * 64}", "size": 1,
        "annotations": {"org.cncf.model.filepath": "x"},
    }  # fmt: skip
    manifest = {"artifactType": "application/vnd.cncf.model.manifest.v1+json"}
    assert read_layers(manifest | {"layers": [layer]}, "it")["x"].size == 1
    with pytest.raises(InputError, match=said):
        read_layers(manifest | {"layers": [layer | change]}, "it")
    with pytest.raises(InputError, match="occurs twice"):
        read_layers(manifest | {"layers": [layer, layer]}, "it")


def test_references_and_registries_that_are_none(host: str, artifact: Path, tmp_path: Path) -> None:
    for reference in ("oci://host", "oci://host/UPPER", "oci://host/a b", "oci://host/../x", "oci:///x", "host/x:1"):
        with pytest.raises(InputError, match="is no model in a registry"):
            push(artifact, reference)
    with pytest.raises(InputError, match="there is no such model"):
        pull(f"oci://{host}/team/none:v1", tmp_path / "pulled")
    with pytest.raises(InputError, match="exists; choose another folder"):
        pull(f"oci://{host}/team/none:v1", artifact)
    with pytest.raises(InputError, match="only a tag"):
        push(artifact, f"oci://{host}/team/x@sha256:{hashlib.sha256().hexdigest()}")
    with pytest.raises(MachineError, match="cannot be reached"):
        push(artifact, "oci://127.0.0.1:9/team/x")
    here = {"127.0.0.1:5000": True, "localhost": True, "[::1]:5000": True, "127.0.0.1.example.com": False}
    for name, is_here in here.items():
        assert oci_registry.Registry(f"oci://{name}/x")._scheme == ("http" if is_here else "https")


class _Endless(BaseHTTPRequestHandler):
    """A registry whose files go on until nobody listens any more."""

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        with suppress(OSError):
            for _ in range(4096):
                self.wfile.write(bytes(1 << 16))


def test_a_file_that_is_longer_than_the_registry_said_does_not_fill_the_disk(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Endless)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    told = list[int]()
    try:
        registry = Registry(f"oci://127.0.0.1:{server.server_port}/me/model:v1")
        registry.open(to_write=False)
        with pytest.raises(InputError, match=r"weights\.bin is longer than the registry said"):
            registry.receive(f"sha256:{'0' * 64}", 1000, tmp_path / "weights.bin", told.append)
    finally:
        server.shutdown()
        server.server_close()
    assert sum(told) <= 1000 and not (tmp_path / "weights.bin").exists()
