"""An artifact on its way to the hub: in commits on a pull request or a branch, the manifest last.

A commit keeps what is in it for good, so that an upload that broke off goes on behind the last one; of files in no
commit yet, the hub says itself which it has. By a pull request everything appears on `main` at once.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from llmc.contracts.progress import Progress
from llmc.errors import InputError, LlmcError, MachineError
from llmc.hub import client
from llmc.publication import Publication
from llmc.publish import Published
from llmc.runtime.artifact import MANIFEST

_COMMIT_BYTES, _COMMIT_FILES = 4 << 30, 100  # what is sent before a commit keeps it
_ATTRIBUTES = ".gitattributes"  # the hub's own


def upload(
    given: Publication, repo: str, private: bool | None, branch: str | None, pull_request: bool, progress: Progress
) -> Published:
    """Send what the hub does not have; see `publish`."""
    with client(f"publish {repo}", "not published") as hub, _errors(repo, hub):
        upload = _Upload(hub, given, repo, progress)
        return upload.to_branch(branch, private) if branch else upload.by_pull_request(private, pull_request)


class _Upload:
    def __init__(self, hub: Any, given: Publication, repo: str, progress: Progress) -> None:
        self.hub, self.api, self.given, self.repo, self.progress = hub, hub.HfApi(), given, repo, progress
        hub.utils.disable_progress_bars()  # `progress` has one for all files

    def to_branch(self, branch: str, private: bool | None) -> Published:
        """It stays on that branch."""
        is_private = self._repository(private)
        if branch != "main":
            self.api.create_branch(self.repo, branch=branch, exist_ok=True)
        missing = self._missing(branch)
        if missing:
            self._send(branch, missing)
        name = self.repo if branch == "main" else f"{self.repo}@{branch}"
        return self._published(branch, name, is_private, None, not missing)

    def by_pull_request(self, private: bool | None, leave_open: bool) -> Published:
        """It comes to main at once, or waits for somebody to merge it."""
        is_private = self._repository(private)
        if not self._missing("main"):
            return self._published("main", self.repo, is_private, None, True)
        request = self._pull_request()
        ref = request.git_reference
        if missing := self._missing(ref):
            self._send(ref, missing)
        if request.status == "draft":
            self.api.change_discussion_status(self.repo, request.num, "open")
        if leave_open:
            return self._published(ref, f"{self.repo}@{ref}", is_private, request.num, not missing)
        self.api.merge_pull_request(self.repo, request.num)
        return self._published("main", self.repo, is_private, None, False)

    def _repository(self, private: bool | None) -> bool:
        """Whether it is private; it is created where it does not exist."""
        try:
            found = bool(self.api.model_info(self.repo).private)
        except self.hub.errors.RepositoryNotFoundError:
            self.api.create_repo(self.repo, private=private is not False, exist_ok=True)
            return private is not False
        if private is not None and found is not private:
            is_, wanted = ("private", "public") if found else ("public", "private")
            advice = f"say so in its settings, or leave out --{wanted}"
            raise InputError(f"publish {self.repo}: exists and is {is_}, not {wanted}; {advice}")
        return found

    def _pull_request(self) -> Any:
        """A new one, or the one that an upload that broke off has left."""
        for each in self.api.get_repo_discussions(self.repo, discussion_type="pull_request", discussion_status="open"):
            if each.title == self._title and each.is_pull_request:
                self.progress.line(f"going on with pull request {each.num}")
                return each
        about = "Published by llmc. It is complete when it holds llmc.json."
        return self.api.create_pull_request(self.repo, title=self._title, description=about)

    @property
    def _title(self) -> str:
        return f"llmc: {self.given.called}"

    def _missing(self, ref: str) -> dict[str, str | None]:
        """What a revision lacks, and what it has too much: name → `None` for what is to be deleted."""
        there = self._there(ref)
        missing: dict[str, str | None] = {
            name: name for name in self.given.files if name not in there or not self._same(name, there[name])
        }
        stale = sorted(there.keys() - self.given.files.keys() - {_ATTRIBUTES})
        self._require_own(ref, stale, there)
        return missing | dict.fromkeys(stale)

    def _there(self, ref: str) -> dict[str, Any]:
        listed = self.api.list_repo_tree(self.repo, recursive=True, revision=ref)
        return {each.path: each for each in listed if isinstance(each, self.hub.hf_api.RepoFile)}

    def _require_own(self, ref: str, stale: list[str], there: dict[str, Any]) -> None:
        """InputError where something else than an artifact would be deleted; a new branch only holds what main does."""
        if not stale or MANIFEST in there:
            return
        elsewhere = {} if ref == "main" else self._there("main")
        lost = [name for name in stale if name not in elsewhere or elsewhere[name].blob_id != there[name].blob_id]
        if lost:
            more = f" and {len(lost) - 1} more files" if len(lost) > 1 else ""
            advice = "choose another --repo, or a new --branch of it"
            raise InputError(
                f"publish {self.repo}: {ref} holds no artifact but {lost[0]!r}{more}, which would be deleted; {advice}"
            )

    def _same(self, name: str, there: Any) -> bool:
        listed = self.given.files[name]
        if there.size != listed.bytes:
            return False
        if there.lfs is not None:
            return bool(there.lfs.sha256 == listed.sha256)
        data = self.given.place(name).read_bytes()  # small, or it would be there by its sha256
        return bool(there.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest())

    def _send(self, ref: str, missing: dict[str, str | None]) -> None:
        """In commits; what is to be deleted goes with the manifest, which is the last."""
        files = [name for name, kept in missing.items() if kept is not None and name != MANIFEST]
        total = self.given.nbytes
        done = total - sum(self.given.files[name].bytes for name in (*files, MANIFEST))
        tell = _Told(self.progress, f"publish {self.repo}", done, total)
        for group in self._groups(files):
            self._commit(ref, group, [], f"{len(group)} files of {self.given.called}", tell)
        stale = [name for name, kept in missing.items() if kept is None]
        self._commit(ref, [MANIFEST], stale, self._title, tell)

    def _groups(self, names: list[str]) -> Iterator[list[str]]:
        group: list[str] = []
        for name in names:
            group.append(name)
            if len(group) == _COMMIT_FILES or sum(self.given.files[each].bytes for each in group) >= _COMMIT_BYTES:
                yield group
                group = []
        if group:
            yield group

    def _commit(self, ref: str, names: list[str], stale: list[str], title: str, tell: _Told) -> None:
        added = []
        for name in names:
            operation = _counted(self.hub)(path_in_repo=name, path_or_fileobj=str(self.given.place(name)))
            operation.upload_info.sha256 = bytes.fromhex(self.given.files[name].sha256)  # verified
            operation.tell = partial(tell, name)
            added.append(operation)
        deleted = [self.hub.CommitOperationDelete(path_in_repo=name, is_folder=False) for name in stale]
        self.api.create_commit(self.repo, [*deleted, *added], commit_message=title, revision=ref)
        for name in names:
            tell(name, self.given.files[name].bytes)

    def _published(self, ref: str, name: str, private: bool, request: int | None, up_to_date: bool) -> Published:
        found = self.api.model_info(self.repo, revision=ref)
        url = f"{self.api.endpoint}/{self.repo}" + (f"/discussions/{request}" if request else f"/tree/{found.sha}")
        files = {each: file.bytes for each, file in self.given.files.items()}
        return Published(self.repo, str(found.sha), name, url, private, request, files, up_to_date)


class _Told:
    """How many bytes of all files are on the hub."""

    def __init__(self, progress: Progress, phase: str, done: int, total: int) -> None:
        self.progress, self.phase, self.done, self.total = progress, phase, done, total
        self.of: dict[str, int] = {}
        self.progress(phase, done, total)

    def __call__(self, name: str, done: int) -> None:
        self.of[name] = done
        self.progress(self.phase, min(self.done + sum(self.of.values()), self.total), self.total)


class _Counting(io.BufferedReader):
    """A file that tells how far it was read."""

    tell_place: Callable[[int], None]

    def read(self, count: int | None = -1, /) -> bytes:
        data = super().read(count)
        self.tell_place(self.tell())
        return data


def _counted(hub: Any) -> Any:
    """The hub's operation that adds a file, whose reading is told; of Xet's, which reads by itself, only the end is."""

    class Counted(hub.CommitOperationAdd):  # its module is imported late
        tell: Callable[[int], None]

        @contextmanager
        def as_file(self, with_tqdm: bool = False) -> Iterator[io.BufferedReader]:
            with _Counting(io.FileIO(self.path_or_fileobj)) as file:
                file.tell_place = self.tell if with_tqdm else lambda _: None
                yield file

    return Counted


@contextmanager
def _errors(repo: str, hub: Any) -> Iterator[None]:
    """What the hub refuses, with what to do; what breaks off can be gone on with."""
    try:
        yield
    except LlmcError:
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error  # of a file
        said = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        status = cause.response.status_code if isinstance(cause, hub.errors.HfHubHTTPError) else None
        if status == 401:
            raise InputError(
                f"publish {repo}: the hub does not take this token ({said}); set HF_TOKEN, or call `hf auth login`"
            ) from error
        if status == 403:
            refused = f"publish {repo}: the hub does not let this token write there ({said})"
            raise InputError(f"{refused}; use one that may, or another --repo") from error
        if isinstance(cause, ValueError):  # of its client, as about front matter
            raise InputError(f"publish {repo}: the hub's client refuses it: {' '.join(str(cause).split())}") from error
        raise MachineError(
            f"publish {repo}: broke off ({said}); give the same command again: what is there is not sent again"
        ) from error
