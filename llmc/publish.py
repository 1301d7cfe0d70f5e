"""Publishing: an artifact goes to a model hub, whole and as it was built, or not at all.

What misses its gates, is not as its manifest says, or holds what that does not list, is refused before anything is
sent. Where it goes decides how: this module knows the model hub, by the repository's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmc.contracts.progress import Progress, Silent
from llmc.errors import InputError
from llmc.hub import client
from llmc.publication import Publication, publication

# The hub makes addresses of it: no part of it is `..`.
_REPOSITORY = re.compile(r"(?!.*\.\.)(?!.*--)\w[\w.-]*/\w[\w.-]{0,95}")
_BRANCH = re.compile(r"(?!.*\.\.)(?!refs/)\w[\w./-]{0,200}")


@dataclass(frozen=True)
class Published:
    """Where an artifact is.

    Attributes:
        repo: the repository
        revision: the commit that holds it; empty after a dry run
        name: what `llmc pull` and `load` take
        url: where people look at it
        private: whether it is for its owners alone
        pull_request: its number, where one was opened and not merged
        files: name → bytes, in the order in which they go
        up_to_date: whether all of it was there already
    """

    repo: str
    revision: str
    name: str
    url: str
    private: bool
    pull_request: int | None
    files: dict[str, int]
    up_to_date: bool

    def to_json(self) -> dict[str, Any]:
        """Return what `llmc publish --json` prints."""
        return asdict(self)


def publish(
    artifact: str | Path,
    repo: str,
    *,
    private: bool | None = None,
    branch: str | None = None,
    pull_request: bool = False,
    dry_run: bool = False,
    allow_rejected: bool = False,
    progress: Progress | None = None,
    finish: Callable[[Path], object] | None = None,
) -> Published:
    """Publish an artifact. One that is there already is left alone; one that is there in part is completed.

    Args:
        artifact: the directory that `llmc build` made
        repo: `me/model` on the hub; it is created where it does not exist
        private: whether the repository is for its owners alone; None: a new one is, an old one stays as it is
        branch: the branch that it goes to, and stays on; None: it comes to `main` by a pull request that is merged when
            all of it is there, so that nobody finds half of it
        pull_request: leave that pull request open, for somebody to merge
        dry_run: say what would go, and ask nobody
        allow_rejected: publish what misses its gates, too; its card says so
        progress: is told how many bytes are done
        finish: is called with the artifact once it may be published: may sign it

    Raises:
        GateError: it misses its gates
        InputError: it is no artifact, not as it was built, or the hub does not let you write there
        MachineError: the hub cannot be reached, or its client is not installed
    """
    progress = progress or Silent()
    require_place(repo, branch, pull_request)
    given = publication(Path(artifact), allow_rejected, progress)
    if dry_run:
        return _planned(given, repo, branch, private)
    if finish is not None:
        finish(Path(artifact))
        given = publication(Path(artifact), allow_rejected, progress)  # with what that added
    require_login(repo)
    from llmc.hub_upload import upload

    return upload(given, repo, private, branch, pull_request, progress)


def require_login(repo: str) -> None:
    """InputError where no token is known for the hub, MachineError where its client is not installed."""
    with client(f"publish {repo}", "not published") as hub:
        if hub.get_token() is None:
            raise InputError(f"publish {repo}: you are not logged in; set HF_TOKEN, or call `hf auth login`")


def require_place(repo: str, branch: str | None = None, pull_request: bool = False) -> None:
    """InputError for what is no repository or branch."""
    if not _REPOSITORY.fullmatch(repo):
        raise InputError(f"{repo}: is no repository; write OWNER/NAME, as in me/model")
    if branch is not None and pull_request:
        raise InputError("--branch and --pull-request: pull requests go to main; leave out one of the two")
    if branch is not None and not _BRANCH.fullmatch(branch):
        raise InputError(f"{branch}: is no name of a branch; use letters, digits, - and .")


def _planned(given: Publication, repo: str, branch: str | None, private: bool | None) -> Published:
    files = {name: file.bytes for name, file in given.files.items()}
    name = repo if branch in (None, "main") else f"{repo}@{branch}"
    return Published(repo, "", name, "", private is not False, None, files, False)
