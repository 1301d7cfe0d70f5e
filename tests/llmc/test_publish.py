"""Publishing on a hub that runs here, by `llmc publish` in processes of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.certificates import key_pair
from support.hub_server import HubServer
from support.hub_store import Blob, Repository

Publish = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub", part_bytes=1 << 17) as server:
        yield server


@pytest.fixture
def publish(hub: HubServer, tmp_path: Path) -> Publish:
    def run(*arguments: str | Path, token: str | None = "hf_writer") -> subprocess.CompletedProcess[str]:
        return llmc(hub, tmp_path, "publish", *arguments, "--repo", "me/small", token=token)

    return run


def llmc(
    hub: HubServer, folder: Path, *arguments: str | Path, token: str | None = "hf_writer"
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmc.cli", *map(str, arguments)]
    environment = os.environ | hub.environment(folder / "home", token) | {"XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture
def artifact(two_artifacts: tuple[Path, Path]) -> Path:
    return two_artifacts[0]


def content(folder: Path) -> dict[str, bytes]:
    return {each.relative_to(folder).as_posix(): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


def test_all_of_it_is_on_main_at_once_and_once(hub: HubServer, publish: Publish, artifact: Path) -> None:
    made = publish(artifact, "--json")
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    assert hub.files("me/small") == content(artifact)
    repository = hub.repository("me/small")
    assert repository.private and told["private"] and told["revision"] == repository.refs["main"]
    # Each commit of the pull request is whole in itself, the manifest is in the last alone, and main sees but the end.
    steps = [commit for commit in repository.commits.values() if commit.title != "initial commit"]
    assert ["llmc.json" in commit.files for commit in steps] == [False, True, True]
    assert len(steps[-1].parents) == 2 and repository.discussions[1].status == "merged"
    assert [*told["files"]][-2:] == ["README.md", "llmc.json"]
    assert hub.received("PUT /storage") == sum(blob.size for blob in steps[-1].files.values() if blob.sha256)
    hub.forget()
    again = publish(artifact)
    assert again.returncode == 0, again.stderr
    assert f"is there already, private, revision {told['revision']}" in again.stdout
    assert f"llmc pull me/small@{told['revision']}" in again.stdout
    assert hub.count("PUT|/commit/|POST .*/discussions") == 0


def test_an_upload_that_broke_off_sends_no_finished_file_again(
    hub: HubServer, publish: Publish, artifact: Path
) -> None:
    hub.cut("POST .*/commit/", after=10)
    broken = publish(artifact)
    assert broken.returncode == 4, broken.stderr
    assert "broke off (" in broken.stderr and "what is there is not sent again" in broken.stderr
    assert broken.stderr.count("llmc: ") == 1 and "Traceback" not in broken.stderr
    assert hub.files("me/small") == {}
    sent = hub.received("PUT /storage")
    hub.fail("POST .*/merge", 500)
    broken = publish(artifact)
    assert broken.returncode == 4, broken.stderr
    assert "going on with pull request 1" in broken.stderr and hub.files("me/small") == {}
    made = publish(artifact)
    assert made.returncode == 0, made.stderr
    assert hub.files("me/small") == content(artifact)
    assert hub.received("PUT /storage") == sent and len(hub.repository("me/small").discussions) == 1


def test_a_cut_part_and_a_tired_hub_are_nobodys_trouble(hub: HubServer, publish: Publish, artifact: Path) -> None:
    hub.cut("PUT /storage", after=1000)
    hub.fail("POST .*/preupload/", 429, Retry_After="0")
    made = publish(artifact)
    assert made.returncode == 0, made.stderr
    assert hub.files("me/small") == content(artifact)
    assert [each.status for each in hub.matching("PUT /storage")][:2] == [0, 200]


def test_a_branch_keeps_it(hub: HubServer, publish: Publish, artifact: Path) -> None:
    made = publish(artifact, "--branch", "int4", "--public", "--json")
    assert made.returncode == 0, made.stderr
    assert hub.files("me/small") == {} and hub.files("me/small", "int4") == content(artifact)
    assert json.loads(made.stdout)["name"] == "me/small@int4" and not hub.repository("me/small").private
    refused = publish(artifact, "--branch", "int4", "--private")
    assert refused.returncode == 2 and "exists and is public, not private" in refused.stderr


def test_a_pull_request_waits(hub: HubServer, publish: Publish, artifact: Path) -> None:
    made = publish(artifact, "--pull-request")
    assert made.returncode == 0, made.stderr
    assert "pull request 1 waits to be merged" in made.stdout and hub.files("me/small") == {}
    assert hub.repository("me/small").discussions[1].status == "open"
    assert hub.files("me/small", "refs/pr/1") == content(artifact)


def test_what_another_artifact_had_is_gone(hub: HubServer, publish: Publish, artifact: Path, tmp_path: Path) -> None:
    older = shutil.copytree(artifact, tmp_path / "older")
    (older / "LICENSE").write_text("Free as the wind")
    document = json.loads((older / "llmc.json").read_text())
    digest = "6acc4bd87a8a3ee8d5e5dfc5fc69e14da8d1f8dba0ddfd1b2f9e4ed2c9a9c2a1"
    document["files"]["LICENSE"] = {"sha256": digest, "bytes": 16}
    document.pop("digest")
    (older / "llmc.json").write_text(json.dumps(document))
    refused = publish(older)
    assert refused.returncode == 2 and "LICENSE: not the file that was built" in refused.stderr
    found = refused.stderr.split("(sha256 ")[1].split(")")[0]
    document["files"]["LICENSE"]["sha256"] = found
    (older / "llmc.json").write_text(json.dumps(document))
    assert publish(older, "--branch", "main").returncode == 0
    assert hub.files("me/small")["LICENSE"] == b"Free as the wind"
    assert publish(artifact).returncode == 0
    assert hub.files("me/small") == content(artifact)


def test_another_model_is_not_deleted(hub: HubServer, publish: Publish, artifact: Path) -> None:
    """Whoever gives the name of the original by mistake keeps it; a branch beside it is nobody's loss."""
    original = {"README.md": Blob.small(b"mine"), "model.bin": Blob.small(b"weights"), "notes.txt": Blob.small(b"")}
    made = hub.repositories["me/small"] = Repository.new("me/small", hub.folder / "me--small", False)
    commit = made.write("main", "original", original).id
    for arguments in ([], ["--branch", "main"], ["--pull-request"]):
        refused = publish(artifact, *arguments)
        assert refused.returncode == 2, refused.stderr
        assert "main holds no artifact but 'model.bin' and 1 more files, which would be deleted" in refused.stderr
    assert made.refs["main"] == commit and not made.discussions
    hub.fail("POST .*/commit/", 500, times=9)
    assert publish(artifact, "--branch", "int4").returncode == 4
    hub.faults.clear()
    kept = publish(artifact, "--branch", "int4")
    assert kept.returncode == 0, kept.stderr
    assert hub.files("me/small", "int4") == content(artifact) and made.refs["main"] == commit
    made.write("other", "original", original | {"model.bin": Blob.small(b"other weights")})
    refused = publish(artifact, "--branch", "other")
    assert refused.returncode == 2 and "other holds no artifact but 'model.bin', which" in refused.stderr


def test_what_is_not_published(
    hub: HubServer, publish: Publish, two_artifacts: tuple[Path, Path], tmp_path: Path
) -> None:
    _, rejected = two_artifacts
    made = publish(rejected)
    assert made.returncode == 3, made.stderr
    assert "kl_mean" in made.stderr and "--allow-rejected" in made.stderr
    changed = shutil.copytree(two_artifacts[0], tmp_path / "changed")
    (changed / "notes.txt").write_text("mine")
    made = publish(changed)
    assert made.returncode == 2 and "notes.txt: not listed in llmc.json" in made.stderr
    (changed / "notes.txt").unlink()
    (tmp_path / "secret").write_text("mine")
    (changed / "model.sig").symlink_to(tmp_path / "secret")
    made = publish(changed)
    assert made.returncode == 2 and "model.sig: is no file in the artifact" in made.stderr
    assert not hub.repositories and not hub.exchanges
    made = publish(rejected, "--allow-rejected")
    assert made.returncode == 0, made.stderr
    assert b"**It was rejected: it misses the limit of kl_mean.**" in hub.files("me/small")["README.md"]


def test_who_may_not_is_told_what_to_do(hub: HubServer, publish: Publish, artifact: Path) -> None:
    for token, told in {
        "": "you are not logged in; set HF_TOKEN, or call `hf auth login`",
        "hf_wrong": "the hub does not take this token",
        "hf_other": "the hub does not let this token write there",
    }.items():
        made = publish(artifact, token=token)
        assert made.returncode == 2 and told in made.stderr, made.stderr
    assert not hub.repositories


def test_a_dry_run_asks_nobody(hub: HubServer, publish: Publish, artifact: Path) -> None:
    made = publish(artifact, "--dry-run", token=None)
    assert made.returncode == 0, made.stderr
    assert all(name in made.stdout for name in ("llmc.json", "model.onnx", "README.md")) and "private" in made.stdout
    assert not hub.exchanges
    assert publish(artifact, "--branch", "a..b", "--dry-run").returncode == 2
    assert publish(artifact, "--branch", "a", "--pull-request", "--dry-run").returncode == 2


def test_a_signature_goes_along(hub: HubServer, publish: Publish, artifact: Path, tmp_path: Path) -> None:
    signed = shutil.copytree(artifact, tmp_path / "signed")
    key, other = key_pair(tmp_path, "ours"), key_pair(tmp_path, "other")
    made = publish(signed, "--sign-key", key, "--json")
    assert made.returncode == 0, made.stderr
    assert [*json.loads(made.stdout)["files"]][-3:] == ["README.md", "model.sig", "llmc.json"]
    assert hub.files("me/small") == content(signed) and "model.sig" not in content(artifact)
    pulled = llmc(hub, tmp_path, "pull", "me/small", "--to", "here", "--key", key.with_suffix(".pub"))
    assert pulled.returncode == 0 and content(tmp_path / "here") == content(signed), pulled.stderr
    refused = llmc(hub, tmp_path, "pull", "me/small", "--to", "there", "--key", other.with_suffix(".pub"))
    assert refused.returncode == 2 and "model.sig" in refused.stderr and not (tmp_path / "there").exists()


def test_a_recipe_publishes_what_it_built(
    hub: HubServer, two_artifacts: tuple[Path, Path], small_model: Path, text_file: Path, tmp_path: Path
) -> None:
    """The artifact is that of the fixture, whose recipe is the same but for the place: it is not built again."""
    built = shutil.copytree(two_artifacts[0], tmp_path / "built")
    (tmp_path / "small.yaml").write_text(
        f"model: {small_model}\ncalibration: {{text: {text_file}, samples: 4, length: 32}}\n"
        f"quantize: [{{match: experts, scheme: int4-g32, method: rtn}}]\n"
        f"check: {{text: {text_file}, tokens: 64, length: 32, gates: {{kl_mean: 5.0}}}}\n"
        f"publish: {{repo: me/small, branch: int4}}\n"
    )
    nobody = llmc(hub, tmp_path, "build", "small.yaml", "-o", built, token=None)
    assert nobody.returncode == 2 and "you are not logged in" in nobody.stderr
    made = llmc(hub, tmp_path, "build", "small.yaml", "-o", built, "--json")
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    assert told["published"]["revision"] == hub.repository("me/small").refs["int4"]
    assert hub.files("me/small", "int4") == content(built) and hub.repository("me/small").private
    assert "publish" not in json.loads((built / "llmc.json").read_text())["recipe"]
    (tmp_path / "small.yaml").write_text(f"model: {small_model}\npublish: {{repo: small}}\n")
    wrong = llmc(hub, tmp_path, "build", "small.yaml")
    assert wrong.returncode == 2 and "small.yaml:2: publish.repo: small: is no repository" in wrong.stderr
