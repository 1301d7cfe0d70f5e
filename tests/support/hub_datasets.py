"""Data sets on the hub of `hub_server`: what `datasets.load_dataset` asks of it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import Any

import pyarrow
import pyarrow.parquet

from support.hub_api import Api
from support.hub_server import HubServer
from support.hub_store import Blob, Repository

_NAME = r"([\w.-]+/[\w.-]+)"
_COMMIT = "([0-9a-f]{40}|main)"


def _of_data_sets(answer: Callable[..., None]) -> Callable[..., None]:
    """The same answer; a data set's repository is kept as `datasets/<name>`."""
    return lambda api, name, *rest: answer(api, f"datasets/{name}", *rest)


def _tree(api: Api, name: str, revision: str, folder: str) -> None:
    """What lies in one folder of a revision, folders included."""
    commit, inside = api._repository(name).resolve(revision), folder.strip("/") + "/" * bool(folder.strip("/"))
    found: dict[str, dict[str, Any]] = {}
    for path, blob in commit.files.items():
        if path.startswith(inside):
            first, *rest = path.removeprefix(inside).split("/")
            place = inside + first
            found[place] = {"type": "directory", "oid": "0", "size": 0, "path": place} if rest else blob.listed(place)
    api._json(list(found.values()), status=200 if found else 404)


def _resolve(api: Api, method: str, name: str, revision: str, path: str) -> None:
    api.resolve(method, f"datasets/{name}", revision, path)


class DatasetApi(Api):
    """The hub's addresses, those of data sets among them."""


DatasetApi.routes = [
    *Api.routes,
    (f"GET /api/datasets/{_NAME}", _of_data_sets(Api.info)),
    (f"GET /api/datasets/{_NAME}/revision/{_COMMIT}", _of_data_sets(Api.info)),
    (f"GET /api/datasets/{_NAME}/tree/{_COMMIT}((?:/.*)?)", _of_data_sets(_tree)),
    (f"POST /api/datasets/{_NAME}/paths-info/{_COMMIT}", _of_data_sets(Api.paths)),
    (f"(GET|HEAD) /storage/(datasets/{_NAME[1:]}/([0-9a-f]{{64}})", Api.get),
    (f"(GET|HEAD) /datasets/{_NAME}/resolve/{_COMMIT}/(.+)", _resolve),
]


def add_dataset(hub: HubServer, name: str, configurations: dict[str, tuple[str, list[dict[str, Any]]]]) -> None:
    """Put a data set on a hub, in Parquet as the real one keeps them.

    Args:
        name: owner/name
        configurations: name → its split, and the rows of that
    """
    repository = Repository.new(name, hub.folder / name.replace("/", "--"), private=False)
    files, card = {}, "---\nconfigs:\n"
    for called, (split, rows) in configurations.items():
        written = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), written)
        sha256 = hashlib.sha256(written.getvalue()).hexdigest()
        repository.store(sha256, written.getvalue())
        files[f"{called}/{split}-00000-of-00001.parquet"] = Blob.large(sha256, len(written.getvalue()))
        card += f"- config_name: {called}\n  data_files:\n  - split: {split}\n    path: {called}/{split}-*\n"
    repository.write("main", "data", files | {"README.md": Blob.small(f"{card}---\n".encode())})
    hub.repositories[f"datasets/{name}"] = repository
