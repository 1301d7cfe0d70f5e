"""What counts as the artifact that was built; what is read again, and what is remembered."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from support.hub_cache import cached
from support.listed_files import list_files

from llmc.errors import InputError
from llmc.files import TICK_NS, stamp
from llmc.runtime.artifact import Artifact, digest
from llmc.runtime.known_hashes import KnownHashes
from llmc.runtime.verification import verify


@pytest.fixture
def copy(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    artifact = shutil.copytree(dense, tmp_path / "copy")
    list_files(artifact)
    document = json.loads((artifact / "llmc.json").read_text())
    (artifact / "llmc.json").write_text(json.dumps(document | {"digest": digest(document)}))
    time.sleep(2 * TICK_NS / 1e9)
    return artifact


def weights(artifact: Path) -> Path:
    return sorted(artifact.glob("model-*.safetensors"))[0]


def flip(file: Path) -> None:
    """Changes a bit, and puts size and time of the last change back, as who wants to be overlooked would."""
    status, data = file.stat(), bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_what_was_read_is_not_read_again(copy: Path) -> None:
    seen: list[tuple[float, float]] = []
    first = verify(copy, lambda _, done, total=1.0, layer=0, layers=1: seen.append((done, total)))
    assert first.require().faults == [] and first.bytes_read == first.bytes == seen[-1][0] == seen[-1][1]
    assert set(first.files) == {*Artifact.open(copy).files, "llmc.json"}
    second = verify(copy)
    assert second.faults == [] and second.bytes_read == 0 and second.files == first.files
    assert verify(copy, fresh=True).bytes_read == first.bytes


def test_one_file_that_was_touched_is_read_again(copy: Path) -> None:
    verify(copy)
    weights(copy).touch()
    assert verify(copy).bytes_read == weights(copy).stat().st_size


def test_a_bit_that_changed_is_found_though_size_and_time_are_the_same(copy: Path) -> None:
    assert not verify(copy).faults
    flip(weights(copy))
    found = verify(copy)
    assert [weights(copy).name in fault and "not the file that was built" in fault for fault in found.faults] == [True]
    assert weights(copy).name not in found.files
    with pytest.raises(InputError, match="not the file that was built"):
        found.require()
    assert verify(copy).faults == found.faults  # what is wrong is not remembered as right


def test_a_memory_that_says_otherwise_is_not_believed(copy: Path) -> None:
    flip(weights(copy))
    verify(copy)
    (memory,) = (copy.parent / "cache" / "llmc" / "verified").iterdir()
    known = json.loads(memory.read_text())
    assert weights(copy).name not in known
    for damaged in ("", "[]", "{", json.dumps(dict.fromkeys(known, 7)), json.dumps({weights(copy).name: ["", ""]})):
        memory.write_text(damaged)
        assert len(verify(copy).faults) == 1


def test_without_a_place_to_remember_everything_is_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy.parent / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(copy.parent / "file"))
    assert [verify(copy).bytes_read for _ in range(2)] == [verify(copy).bytes] * 2


def test_what_is_not_listed_is_refused(copy: Path) -> None:
    outside = copy.parent / "outside"
    outside.mkdir()
    (copy / "modeling.py").write_text("import os")
    (copy / "more").mkdir()
    (copy / "more" / ".hidden").write_text("")
    (copy / ".more").mkdir()
    (copy / ".more" / "file").write_text("")
    (copy / "linked").symlink_to(outside)
    (copy / "dangling").symlink_to("nowhere")
    faults = verify(copy).faults
    names = [".more/file", "dangling", "linked", "modeling.py", "more/.hidden"]
    assert [fault.partition(": ")[0] for fault in faults] == [str(copy / name) for name in names]
    assert all("not listed in llmc.json" in fault for fault in faults)
    with pytest.raises(InputError, match=r"and 4 more faults: `llmc verify"):
        verify(copy).require()


def test_what_hubs_and_git_keep_for_themselves_is_left_alone(copy: Path) -> None:
    for name in (".gitattributes", ".git/config", ".cache/huggingface/download/config.json.metadata"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("")
    assert not verify(copy).faults
    (copy / ".cache" / "other").write_text("")
    assert len(verify(copy).faults) == 1


def test_every_fault_is_told(copy: Path) -> None:
    (copy / "README.md").write_text("built")
    list_files(copy, "README.md")
    (copy / "README.md").write_text("praised since")
    shutil.move(copy / "tokenizer.json", copy.parent / "elsewhere.json")
    (copy / "tokenizer.json").symlink_to("../elsewhere.json")
    (copy / "config.json").unlink()
    flip(weights(copy))
    faults = "\n".join(verify(copy).faults)
    for said in (
        "llmc.json: says something else than was written into it",
        "README.md: missing or not 5 bytes long",
        "tokenizer.json: is a link that leads out",
        "config.json: missing or not",
        f"{weights(copy).name}: not the file that was built",
    ):
        assert said in faults
    assert len(faults.splitlines()) == 5


def test_a_manifest_elsewhere(copy: Path) -> None:
    shutil.move(copy / "llmc.json", copy.parent / "llmc.json")
    (copy / "llmc.json").symlink_to("../llmc.json")
    assert [fault.partition(": ")[2] for fault in verify(copy).faults] == [
        "is a link that leads out of the artifact; put the file itself in its place"
    ]


def test_a_hubs_cache_is_verified_as_it_is(copy: Path, tmp_path: Path) -> None:
    snapshot = cached(copy, tmp_path)
    time.sleep(2 * TICK_NS / 1e9)
    assert not verify(snapshot).faults and verify(snapshot).bytes_read == 0
    flip((snapshot / "tokenizer.json").resolve())
    assert len(verify(snapshot).faults) == 1


def test_what_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no llmc\.json here"):
        verify(tmp_path)


def test_a_file_that_changed_just_before_it_was_read_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long reading it takes: what is changed behind the reader, in the same tick, leaves the same times."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "weights"
    file.write_bytes(b"first")
    before = stamp(file)
    for later, remembered in ((TICK_NS // 2, None), (2 * TICK_NS, "sha256")):
        known = KnownHashes(tmp_path)
        known.put("weights", before, before[-1] + later, file, "sha256")
        known.keep()
        assert KnownHashes(tmp_path).get("weights", file) == remembered
