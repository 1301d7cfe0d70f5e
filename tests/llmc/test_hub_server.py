"""The hub that other tests run against, asked by huggingface_hub as it is: in a process of its own, as it reads where
the hub is when it is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hub_server import HubServer

Ask = Callable[..., Any]
_PROGRAM = """
import json, sys, huggingface_hub as hub
from huggingface_hub.errors import HfHubHTTPError
api = hub.HfApi()
def ask():
{code}
try:
    print(json.dumps(ask()))
except HfHubHTTPError as error:
    print(json.dumps([type(error).__name__, error.response.status_code]))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub", part_bytes=1 << 16, page=2) as server:
        yield server


@pytest.fixture
def ask(hub: HubServer, tmp_path: Path) -> Ask:
    """What lines of Python return that use `hub` and `api`."""

    def run(code: str, token: str | None = "hf_writer") -> Any:
        program = _PROGRAM.format(code="\n".join(f"    {line}" for line in code.strip().splitlines()))
        environment = os.environ | hub.environment(tmp_path / "home", token)
        made = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
        )
        assert made.returncode == 0, made.stderr
        return json.loads(made.stdout)

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    made.mkdir()
    (made / "model.safetensors").write_bytes(os.urandom(200_000))
    (made / "README.md").write_text("---\nlicense: mit\n---\n# Model\n")
    (made / "config.json").write_text("{}")
    return made


def test_a_folder_goes_up_by_a_pull_request_and_comes_down(hub: HubServer, ask: Ask, folder: Path) -> None:
    told = ask("""
api.create_repo("me/model", private=True)
pull = api.create_pull_request("me/model", title="A model")
api.upload_folder(repo_id="me/model", folder_path="folder", revision=pull.git_reference)
before = api.list_repo_files("me/model")
api.change_discussion_status("me/model", pull.num, "open")
api.merge_pull_request("me/model", pull.num)
merged = api.get_discussion_details("me/model", pull.num)
return [before, sorted(api.list_repo_files("me/model")), merged.status, merged.merge_commit_oid,
        api.model_info("me/model").sha, api.model_info("me/model").private,
        hub.snapshot_download("me/model")]
""")
    names = [".gitattributes", "README.md", "config.json", "model.safetensors"]
    assert told[:3] == [[".gitattributes"], names, "merged"]
    assert told[3] == told[4] == Path(told[6]).name and told[5] is True
    assert hub.files("me/model") == {name: (folder / name).read_bytes() for name in names[1:]}
    for name in names[1:]:
        assert (Path(told[6]) / name).read_bytes() == (folder / name).read_bytes()
    assert (Path(told[6]) / "model.safetensors").is_symlink()
    assert hub.count("PUT /storage") == 4 and hub.received("PUT /storage") == 200_000
    assert hub.count("GET /api/models/me/model/tree") >= 2 + 1  # in pages
    assert not [each for each in hub.matching("/storage") if each.authorized]


def test_what_is_there_is_not_sent_again(hub: HubServer, ask: Ask, folder: Path) -> None:
    upload = 'return api.upload_folder(repo_id="me/model", folder_path="folder").oid'
    up = f'api.create_repo("me/model", exist_ok=True)\n{upload}'
    first = ask(up)
    hub.forget()
    assert ask(up) == first and hub.count("PUT") == 0 and hub.count("/commit/") == 0


def test_a_download_that_was_cut_goes_on_where_it_stopped(hub: HubServer, ask: Ask, folder: Path) -> None:
    data = os.urandom(12 << 20)  # more than one piece of the client's
    (folder / "model.safetensors").write_bytes(data)
    ask('api.create_repo("me/model")\nreturn api.upload_folder(repo_id="me/model", folder_path="folder").oid')
    hub.cut("GET /storage", after=11 << 20)
    path = ask('return hub.hf_hub_download("me/model", "model.safetensors")')
    assert hashlib.sha256(Path(path).read_bytes()).digest() == hashlib.sha256(data).digest()
    assert [each.status for each in hub.matching("GET /storage")] == [200, 206]


def test_who_may_do_what(hub: HubServer, ask: Ask) -> None:
    ask('api.create_repo("me/model", private=True)\nreturn 0')
    look = 'return api.model_info("me/model").id'
    assert ask(look) == "me/model"
    assert ask(look, token=None) == ["RepositoryNotFoundError", 401]
    assert ask(look, token="hf_other") == ["RepositoryNotFoundError", 404]
    assert ask(look, token="hf_wrong") == ["HfHubHTTPError", 401]
    create = 'api.create_repo("me/second")\nreturn 0'
    assert ask(create, token="hf_reader") == ["HfHubHTTPError", 403]
    assert ask('return api.model_info("me/model", revision="v9").id') == ["RevisionNotFoundError", 404]


def test_it_is_tired_when_it_is_told_to_be(hub: HubServer, ask: Ask, folder: Path) -> None:
    hub.fail("POST .*/preupload/", 429, Retry_After="0")
    hub.fail("POST .*/objects/batch", 503)
    hub.cut("PUT /storage", after=1000)
    ask('api.create_repo("me/model")\nreturn api.upload_folder(repo_id="me/model", folder_path="folder").oid')
    assert hub.files("me/model")["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert [each.status for each in hub.matching("/preupload/|/batch")] == [429, 200, 503, 200]
    assert [each.status for each in hub.matching("PUT /storage")][:2] == [0, 200]


def test_cards_that_the_hub_refuses(hub: HubServer, ask: Ask) -> None:
    ask('api.create_repo("me/model")\nreturn 0')
    told = ask("""
try:
    api.upload_file(repo_id="me/model", path_or_fileobj=b"---\\nlicense: unknown\\n---\\n", path_in_repo="README.md")
except ValueError as error:
    return str(error)
""")
    assert "must be one of those that the hub knows" in told
