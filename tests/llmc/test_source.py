"""Where models come from; the hub is played by a folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from llmc.convert.safetensors_file import read_header
from llmc.errors import InputError, MachineError
from llmc.source import _check_index, _write_header, hash_files, locate


@pytest.fixture
def hub(embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Serves the embedded checkpoint as org/tiny; returns what was downloaded."""
    downloaded: list[str] = []
    folder = tmp_path / "cache" / "0123abcd"

    def snapshot_download(
        repo: str, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]
    ) -> str:
        if repo != "org/tiny":
            raise OSError("404: no such model\nmore")
        folder.mkdir(parents=True, exist_ok=True)
        for file in embedded.iterdir():
            if any(file.match(pattern) for pattern in allow_patterns):
                shutil.copy(file, folder)
                downloaded.append(file.name)
        return str(folder)

    def get_safetensors_metadata(repo: str, revision: str | None) -> SimpleNamespace:
        files = {}
        for shard in embedded.glob("*.safetensors"):
            start = 8 + int.from_bytes(shard.read_bytes()[:8], "little")
            tensors = {
                name: SimpleNamespace(
                    dtype=found.dtype,
                    shape=list(found.shape),
                    data_offsets=(found.offset - start, found.offset - start + found.nbytes),
                )
                for name, found in read_header(shard).items()
            }
            files[shard.name] = SimpleNamespace(tensors=tensors)
        return SimpleNamespace(files_metadata=files)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)

    def list_repo_files(repo: str, revision: str | None) -> list[str]:
        if repo != "org/tiny":
            raise OSError("404: no such model\nmore")
        return [file.name for file in embedded.iterdir()]

    monkeypatch.setattr(huggingface_hub, "list_repo_files", list_repo_files)
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", get_safetensors_metadata)
    return downloaded


def test_plan_of_a_hub_model_downloads_no_weights(llmc, hub: list[str], embedded: Path) -> None:
    found = json.loads(llmc("plan", "org/tiny@main", "--json").stdout)
    here = json.loads(llmc("plan", embedded, "--json").stdout)
    assert found["roles"] == here["roles"]
    assert "config.json" in hub
    assert not [name for name in hub if name.endswith(".safetensors")]


def test_hub_model(hub: list[str], tmp_path: Path) -> None:
    source = locate("org/tiny@main", tmp_path)
    assert (source.id, source.revision) == ("org/tiny", "0123abcd")
    assert "model-00001-of-00002.safetensors" in hub


NAMES = ["/tmp/a.safetensors", "../a.safetensors", "a/b.safetensors", "a\\b.safetensors", ".a.safetensors", "a.bin"]


@pytest.mark.parametrize("name", [*NAMES, "a\x1b.safetensors", "NUL.safetensors", "", 7, None])
def test_an_index_names_only_safetensors_in_its_folder(tmp_path: Path, name: object) -> None:
    (tmp_path / "index.json").write_text(json.dumps({"weight_map": {"w": "model.safetensors", "v": name}}))
    with pytest.raises(InputError, match="only safetensors files in the repository's main folder") as caught:
        _check_index("org/x", tmp_path / "index.json")
    assert "\x1b" not in str(caught.value)


def test_an_index_names_no_more_files_than_a_model_has(tmp_path: Path) -> None:
    weight_map = {f"w{i}": f"model-{i}.safetensors" for i in range(4097)}
    (tmp_path / "index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match="names 4,097 files"):
        _check_index("org/x", tmp_path / "index.json")


@pytest.mark.parametrize("offsets", [(0, -1), (-4, 0), (0, 1 << 60), (0, "4"), (0, True), (0,), (), (0, 1.5)])
def test_headers_of_the_hub_fit_into_files(tmp_path: Path, offsets: tuple[object, ...]) -> None:
    tensors = {"w": SimpleNamespace(dtype="F32", shape=[1], data_offsets=offsets)}
    with pytest.raises(InputError, match=r"a\.safetensors: broken safetensors header at 'w'"):
        _write_header(tmp_path / "a.safetensors", tensors)
    assert not (tmp_path / "a.safetensors").exists()


@pytest.fixture
def cache(embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The embedded checkpoint as the hub's client keeps org/tiny, and no network; returns its snapshot."""
    commit, folder = "a" * 40, tmp_path / "models--org--tiny"
    snapshot = folder / "snapshots" / commit
    for each in (snapshot, folder / "blobs", folder / "refs"):
        each.mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    for number, file in enumerate(sorted(embedded.iterdir())):
        shutil.copy(file, folder / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return snapshot


@pytest.mark.parametrize("model", ["org/tiny", "org/tiny@main", f"org/tiny@{'a' * 40}"])
def test_plan_of_a_cached_model_without_network(llmc, cache: Path, embedded: Path, model: str) -> None:
    assert locate(model, Path()).path == cache
    planned = llmc("plan", model, "--json")
    assert planned.exit_code == 0, planned.output
    assert json.loads(planned.stdout)["roles"] == json.loads(llmc("plan", embedded, "--json").stdout)["roles"]


@pytest.mark.parametrize("missing", ["model-00002-of-00002.safetensors", "model.safetensors.index.json"])
def test_plan_of_a_model_cached_in_part(llmc, cache: Path, missing: str) -> None:
    """What is not there is named; a shard whose content is gone is not there either."""
    (cache / missing).resolve().unlink()
    planned = llmc("plan", "org/tiny")
    assert planned.exit_code == 4, planned.output
    lacking = missing if missing.startswith("model-") else "model.safetensors"
    assert f"llmc: model org/tiny: {lacking} is not in the cache, and the hub says: " in planned.stderr


def test_what_an_index_names_elsewhere_is_not_in_the_cache(llmc, cache: Path, tmp_path: Path) -> None:
    for name in ("/etc/passwd", "../../blobs/0", ["a"], None):
        (cache / "model.safetensors.index.json").unlink()
        (cache / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        assert llmc("plan", "org/tiny").exit_code in (2, 4)


def test_hub_errors_are_one_line(hub: list[str], tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"org/other: no such folder, and the hub says: 404: no such model$"):
        locate("org/other", tmp_path)


@pytest.mark.parametrize(
    "model", ["nothing", "../x/y", "a/b/c", "/abs/x", "a/..", "a/b@../../c", "a/b@/c", "a/b@c/../../d"]
)
def test_neither_folder_nor_hub_id(tmp_path: Path, model: str) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        locate(model, tmp_path)


def test_directory(embedded: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(embedded)
    source = locate("link", tmp_path)
    assert (source.id, source.revision) == ("tiny-deepseek-v3", None)
    folder = tmp_path / os.fsdecode(b"\xff\x1b")
    shutil.copytree(embedded, folder)
    (tmp_path / "other").symlink_to(folder)
    assert locate("other", tmp_path).id == r"\udcff\x1b"
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "README.md").write_text("---\nlicense: mit\ntags: [a]\n---\n# A model")
    assert locate("m", tmp_path).license.id == "mit"


BOMB = "\n".join(["a0: &a0 [lol, lol]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9))])


@pytest.mark.parametrize(
    ("card", "found"),
    [
        ("---\nlicense: mit\n---\n# A model", "mit"),
        ("---\r\nlicense: mit\r\n---\r\n# A model", "mit"),
        ("---\nlicense: mit\n---", "mit"),
        ("\ufeff---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: no\ndate: 2026-02-30\nn: 0x_\nprompt: |\n  many\n  lines\n---\n", "no"),
        ("---\nlicense: [mit, bsd]\n---\n", "mit, bsd"),
        ("# A model", None),
        ("---\nlicense: {a: b}\n---\n", None),
        ("---\nlicense:\n---\n", None),
        ("---\nlicense: mit\nd: !!timestamp x\n---\n", None),
        (f"---\n{BOMB}\nlicense: *a8\n---\n", None),
        ("---\nlicense: " + "[" * 3000 + "\n---\n", None),
        ('---\nlicense: "a\\eb"\n---\n', None),
        ('---\nlicense: "a\\nb"\n---\n', None),
        ("---\nlicense: " + "x" * 1000 + "\n---\n", None),
        ("---\n" + "a\n" * 40_000 + "license: mit\n---\n", None),
    ],
)
def test_a_broken_card_is_no_license(embedded: Path, tmp_path: Path, card: str, found: str | None) -> None:
    (tmp_path / "README.md").write_bytes(card.encode())
    assert locate(str(tmp_path), Path()).license.id == found


def test_a_card_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes("---\nlicense: mit\n---\n".encode("utf-16"))
    assert locate(str(tmp_path), Path()).license.id is None
    (tmp_path / "README.md").unlink()
    os.mkfifo(tmp_path / "README.md")
    assert locate(str(tmp_path), Path()).license.id is None


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    seen: list[tuple[int, int]] = []
    assert hash_files(tmp_path, [tmp_path / "a"], lambda *at: seen.append(at)) == {
        "a": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    }
    assert seen == [(3, 3)]
