"""Compiled kernels are read back only when nobody else can have written them, and whole."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from llmc.runtime.backends import kernel_cache


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "llmc" / "kernels"


def test_what_was_kept_is_read_back(folder: Path) -> None:
    assert kernel_cache.read("a.bin") is None
    old = os.umask(0)
    try:
        kernel_cache.write("a.bin", b"kernels")
    finally:
        os.umask(old)
    assert kernel_cache.read("a.bin") == b"kernels"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent, folder / "a.bin")] == [
        0o700, 0o700, 0o600,
    ]  # fmt: skip
    kernel_cache.write("a.bin", b"newer")
    assert kernel_cache.read("a.bin") == b"newer" and len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-1] + b"?", lambda data: b""])
def test_what_is_not_whole_is_not_read(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    kernel_cache.write("a.bin", b"kernels")
    (folder / "a.bin").write_bytes(damage((folder / "a.bin").read_bytes()))
    assert kernel_cache.read("a.bin") is None


@pytest.mark.parametrize("open_to", ["a.bin", "", ".."])
def test_what_others_can_write_to_is_not_read(folder: Path, open_to: str) -> None:
    kernel_cache.write("a.bin", b"kernels")
    (folder / open_to).chmod(0o777)
    assert kernel_cache.read("a.bin") is None


def test_links_and_folders_of_others_are_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_cache.write("a.bin", b"kernels")
    (folder / "b.bin").symlink_to("a.bin")
    os.mkfifo(folder / "c.bin")
    assert kernel_cache.read("b.bin") is None and kernel_cache.read("c.bin") is None
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert kernel_cache.read("a.bin") is None
    kernel_cache.write("d.bin", b"kernels")
    assert not (folder / "d.bin").exists()
