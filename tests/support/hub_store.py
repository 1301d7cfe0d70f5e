"""What a model hub keeps: repositories with commits, branches, pull requests, and large files by their sha256."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# What the .gitattributes of a new repository send to the storage of large files.
LARGE_NAMES = re.compile(r".*\.(safetensors|onnx|data|bin|engine|gguf|pt|npz|parquet|zst)")
COMMIT = re.compile(r"[0-9a-f]{40}")
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.onnx filter=lfs diff=lfs merge=lfs -text\n"


class Missing(Exception):
    """What the hub calls `code`: RepoNotFound, RevisionNotFound, EntryNotFound."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class Blob:
    """A file of a commit: small ones hold their content, large ones the sha256 of it."""

    oid: str
    size: int
    content: bytes | None = None
    sha256: str | None = None

    @classmethod
    def small(cls, content: bytes) -> Blob:
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return cls(oid, len(content), content)

    @classmethod
    def large(cls, sha256: str, size: int) -> Blob:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return cls(cls.small(pointer).oid, size, None, sha256)

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid

    def listed(self, path: str) -> dict[str, Any]:
        """As the tree of a commit shows it."""
        entry: dict[str, Any] = {"type": "file", "oid": self.oid, "size": self.size, "path": path}
        if self.sha256:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 134}
        return entry


@dataclass(frozen=True)
class Commit:
    id: str
    parents: tuple[str, ...]
    title: str
    files: dict[str, Blob]


@dataclass
class Discussion:
    """A pull request; `draft` until it is opened, then `open`, `merged` or `closed`."""

    num: int
    title: str
    author: str
    status: str = "draft"
    base: str = ""  # the commit that it started from
    merge_commit: str | None = None


@dataclass
class Repository:
    """One repository. What commits say is kept in memory, large files in `folder`."""

    name: str
    folder: Path
    private: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    discussions: dict[int, Discussion] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    @classmethod
    def new(cls, name: str, folder: Path, private: bool) -> Repository:
        folder.mkdir(parents=True)
        made = cls(name, folder, private)
        made.write("main", "initial commit", {".gitattributes": Blob.small(ATTRIBUTES)})
        return made

    def resolve(self, revision: str) -> Commit:
        """Of a branch, a pull request or a commit."""
        number = self.refs.get(revision, revision)
        if number not in self.commits:
            raise Missing("RevisionNotFound")
        return self.commits[number]

    def write(self, ref: str, title: str, files: dict[str, Blob], *parents: str) -> Commit:
        """A commit of all these files, on top of what `ref` is at."""
        above = parents or ((self.refs[ref],) if ref in self.refs else ())
        told = [ref, title, above, [(path, blob.oid) for path, blob in sorted(files.items())], len(self.commits)]
        made = Commit(hashlib.sha1(json.dumps(told).encode()).hexdigest(), tuple(above), title, dict(files))
        self.commits[made.id] = made
        self.refs[ref] = made.id
        return made

    def branch(self, name: str, start: str) -> None:
        self.refs[name] = self.resolve(start).id

    def open_pull_request(self, title: str, author: str) -> Discussion:
        num = len(self.discussions) + 1
        made = self.discussions[num] = Discussion(num, title, author, base=self.refs["main"])
        self.refs[f"refs/pr/{num}"] = self.refs["main"]
        return made

    def merge(self, discussion: Discussion) -> Commit:
        """What changed on the pull request since it was opened, onto main."""
        ref = f"refs/pr/{discussion.num}"
        base, ours, theirs = self.commits[discussion.base], self.resolve("main"), self.resolve(ref)
        files = dict(ours.files)
        for path in base.files.keys() | theirs.files.keys():
            if base.files.get(path) != theirs.files.get(path):
                if path in theirs.files:
                    files[path] = theirs.files[path]
                else:
                    files.pop(path, None)
        made = self.write("main", discussion.title, files, ours.id, theirs.id)
        discussion.status, discussion.merge_commit = "merged", made.id
        return made

    def stored(self, sha256: str) -> Path:
        """Where a large file lies, if it is here."""
        return self.folder / sha256

    def store(self, sha256: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError("the content has another sha256")
        self.stored(sha256).write_bytes(content)

    def content(self, blob: Blob) -> bytes:
        return blob.content if blob.content is not None else self.stored(blob.sha256 or "").read_bytes()
