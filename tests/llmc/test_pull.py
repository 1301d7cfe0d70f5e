"""Pulling from a hub that runs here, into its client's own cache, whose files are links; and every command on it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.hub_server import HubServer
from support.hub_store import Blob, Repository

from llmc.hub import HubName

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def hub(two_artifacts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A hub with me/small, a private repository."""
    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        add(server, "me/small", two_artifacts[0])
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one user has, from test to test."""
    return tmp_path_factory.mktemp("home")


def add(server: HubServer, name: str, folder: Path, **changed: bytes) -> str:
    """The commit of a repository with what is in a folder, in `main`."""
    if name not in server.repositories:
        made = server.repositories[name] = Repository.new(name, server.folder / name.replace("/", "--"), True)
    made, files = server.repositories[name], {}
    for path in folder.rglob("*"):
        if path.is_file():
            data = changed.get(path.stem, path.read_bytes())
            blob = Blob.small(data)
            if path.suffix in (".safetensors", ".onnx", ".data"):
                blob = Blob.large(hashlib.sha256(data).hexdigest(), len(data))
                made.store(blob.etag, data)
            files[path.relative_to(folder).as_posix()] = blob
    return made.write("main", "files", files | {"evil.py": Blob.small(b"import os")}).id


def runner(hub: HubServer, home: Path, folder: Path) -> Run:
    def run(*arguments: str | Path, token: str | None = "hf_writer", **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "llmc.cli", *map(str, arguments)]
        environment = os.environ | hub.environment(home, token) | {"XDG_CACHE_HOME": str(home)} | more
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)

    return run


@pytest.fixture
def llmc(hub: HubServer, home: Path, tmp_path: Path) -> Run:
    return runner(hub, home, tmp_path)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("me/model", HubName("me/model")), ("me/model@int4", HubName("me/model", "int4")),
        ("me/model@refs/pr/1", HubName("me/model", "refs/pr/1")), ("model", None), ("/me/model", None),
        ("../me/model", None), ("me/..", None), ("me/model@../x", None), ("a/b/c", None), ("./me/model", None),
    ],
)  # fmt: skip
def test_names(text: str, name: HubName | None) -> None:
    assert HubName.parse(text) == name
    assert name is None or str(name) == text


def test_it_is_pulled_once_and_used_by_every_command(
    hub: HubServer, llmc: Run, two_artifacts: tuple[Path, Path]
) -> None:
    made = llmc("pull", "me/small", "--json")
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    snapshot = Path(told["path"])
    assert told["revision"] == hub.repository("me/small").refs["main"] == snapshot.name
    assert not (snapshot / "evil.py").exists()  # the manifest does not list it
    assert {path.name for path in snapshot.iterdir()} == {path.name for path in two_artifacts[0].iterdir()}
    assert (snapshot / "model.onnx").is_symlink() and (snapshot / "model.onnx.data").is_symlink()
    hub.forget()
    for command in (
        ["run", "me/small", "--prompt", "a", "--max-new-tokens", "2"],
        ["inspect", "me/small", "--json"],
        ["check", "me/small", "--json"],
        ["bench", "me/small", "--prompt-tokens", "4", "--new-tokens", "2", "--rounds", "1", "--json"],
        ["report", "me/small", "-o", "report"],
    ):
        offline = llmc(*command, token=None, HF_HUB_OFFLINE="1")
        assert offline.returncode == 0, offline.stderr
        if command[0] == "check":
            gates = {gate["name"]: gate["passed"] for gate in json.loads(offline.stdout)["gates"]}
            assert gates["kl_mean"] and gates["runtime_kl"]
    assert not hub.exchanges
    assert not [path for path in snapshot.parents[1].rglob("*") if path.name.startswith(".llmc-")]
    refused = llmc("report", "me/small", HF_HUB_OFFLINE="1")
    assert refused.returncode == 2 and "give --output" in refused.stderr


def test_a_program_loads_it_by_its_name(
    hub: HubServer, home: Path, tmp_path: Path, two_artifacts: tuple[Path, Path]
) -> None:
    commit = hub.repository("me/small").refs["main"]
    code = (
        "from llmc.runtime import load\nimport sys\n"
        f"with load('me/small@{commit}') as model, load(sys.argv[1]) as here:\n"
        "    said = [each.generate('ab', max_new_tokens=4).token_ids for each in (model, here)]\n"
        "print(len(said[0]) == 4 and said[0] == said[1])\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])\n"
    )
    environment = os.environ | hub.environment(home) | {"XDG_CACHE_HOME": str(home)}
    made = subprocess.run(
        [sys.executable, "-c", code, str(two_artifacts[0])],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines() == ["True", "[]"]


def test_into_a_folder_after_a_cut(hub: HubServer, llmc: Run, tmp_path: Path, two_artifacts: tuple[Path, Path]) -> None:
    def pull() -> subprocess.CompletedProcess[str]:
        hub.forget()
        return llmc("pull", "me/small", "--to", "here", HF_HOME=str(tmp_path / "home"))

    hub.fail("GET /storage", 404)
    broken = pull()
    assert broken.returncode == 4 and broken.stderr.count("llmc: ") == 1, broken.stderr
    assert "not all of it is here, and the hub says: Client error '404 Not Found'" in broken.stderr
    assert not (tmp_path / "here").exists()
    large = [path for path in two_artifacts[0].iterdir() if path.suffix in (".safetensors", ".onnx", ".data")]
    made = pull()
    assert made.returncode == 0, made.stderr
    assert 0 < hub.count("GET /storage") < len(large)
    assert {path.name for path in (tmp_path / "here").iterdir()} == {path.name for path in two_artifacts[0].iterdir()}
    assert all((tmp_path / "here" / path.name).read_bytes() == path.read_bytes() for path in two_artifacts[0].iterdir())
    assert not (tmp_path / "here.partial").exists() and not (tmp_path / "here" / "model.onnx").is_symlink()
    again = pull()
    assert again.returncode == 2 and "exists; choose another folder" in again.stderr


def test_what_was_changed_on_the_way_is_refused(hub: HubServer, llmc: Run, two_artifacts: tuple[Path, Path]) -> None:
    data = bytearray((two_artifacts[0] / "model-00002-of-00004.safetensors").read_bytes())
    data[-1] ^= 1
    add(hub, "me/changed", two_artifacts[0], **{"model-00002-of-00004": bytes(data)})
    for command in (["pull", "me/changed"], ["run", "me/changed", "--prompt", "a"]):
        refused = llmc(*command)
        assert refused.returncode == 2, refused.stderr
        assert "model-00002-of-00004.safetensors: not the file that was built" in refused.stderr


def test_what_did_not_come_or_was_damaged_here_comes_when_it_is_pulled_again(
    hub: HubServer, llmc: Run, tmp_path: Path, two_artifacts: tuple[Path, Path]
) -> None:
    """Neither the card nor the signature is needed to open an artifact; the client does not read what it has."""
    signed = shutil.copytree(two_artifacts[0], tmp_path / "signed")
    (signed / "model.sig").write_text("{}")
    add(hub, "me/signed", signed)
    own = {"HF_HOME": str(tmp_path / "own")}
    hub.fail("GET .*/README.md", 404)
    hub.fail("GET .*/model.sig", 503)
    assert [llmc("pull", "me/signed", **own).returncode for _ in range(2)] == [4, 4]
    made = llmc("pull", "me/signed", "--json", **own)
    assert made.returncode == 0, made.stderr
    snapshot = Path(json.loads(made.stdout)["path"])
    assert (snapshot / "model.sig").read_text() == "{}"
    (snapshot / "README.md").unlink()
    assert llmc("pull", "me/signed", **own).returncode == 0
    assert (snapshot / "README.md").read_bytes() == (signed / "README.md").read_bytes()
    weights = snapshot / "model-00002-of-00004.safetensors"
    data = weights.read_bytes()
    weights.resolve().write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    away = llmc("pull", "me/signed", HF_HUB_OFFLINE="1", **own)
    assert away.returncode == 2 and f"{weights.name}: not the file that was built" in away.stderr, away.stderr
    made = llmc("pull", "me/signed", **own)
    assert made.returncode == 0, made.stderr
    assert weights.read_bytes() == data


def test_who_finds_nothing_is_told_why(hub: HubServer, llmc: Run, tmp_path: Path) -> None:
    for command, code, told in [
        (["pull", "me/nothing"], 2, "no such folder, and the hub shows no such revision (404)"),
        (["pull", "me/small@v9"], 2, "no such folder, and the hub shows no such revision (404)"),
        (["pull", "small"], 2, "is no name on the hub; write OWNER/NAME"),
        (["run", "build/small"], 2, "no such folder, and the hub shows no such revision"),
    ]:
        made = llmc(*command)
        assert made.returncode == code and told in made.stderr, made.stderr
        assert made.stderr.count("llmc: ") == 1 and "Traceback" not in made.stderr
    other = llmc("pull", "me/small", token="hf_other", HF_HOME=str(tmp_path))
    assert other.returncode == 2 and "if it is private, set HF_TOKEN" in other.stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    add(hub, "me/checkpoint", empty)
    made = llmc("inspect", "me/checkpoint")
    assert made.returncode == 2 and "holds no llmc.json, so it is no artifact" in made.stderr
    away = llmc("pull", "me/small", HF_HOME=str(tmp_path), HF_ENDPOINT="http://127.0.0.1:9")
    assert away.returncode == 4 and "it is not in the cache, and the hub cannot be asked" in away.stderr
