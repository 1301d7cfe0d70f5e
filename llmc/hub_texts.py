"""Data sets of the Hugging Face hub as texts: `hub:org/name`, `hub:org/name:split`, `hub:org/name:config/split`, each
with an optional `@revision`.

Only the data set's own JSON, Parquet and text files are read; code in it is never run. Which of them make up a split is
said by the front matter of its README.md, or else by their names. Files lie in the hub client's cache, and beside them
what the data set holds, so that the next run needs no network.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from llmc import plain_yaml
from llmc.documents import RECORD_FILES, Documents, Joined, read_documents
from llmc.errors import InputError
from llmc.file_names import is_bare_file_name
from llmc.hub import client
from llmc.registry import unknown

HUB = "hub:"
_ENOUGH = 1 << 29  # bytes: of a larger split some files are taken
_CONVERTED = "refs/convert/parquet"  # where the hub keeps its own conversion of what it can read
_SPLITS = ("train", "test", "validation", "valid", "dev", "eval")
_ID = re.compile(r"(?!.*\.\.)(\w[\w.-]*/[\w.-]+|\w[\w.-]*)(?::(?:([\w.-]+)/)?([\w.-]+))?(?:@(\w[\w./-]*))?")


@dataclass(frozen=True)
class DataSet:
    """One split of a data set."""

    repo: str
    config: str | None
    split: str
    revision: str | None

    @classmethod
    def parse(cls, text: str) -> DataSet:
        """InputError for what is no id."""
        match = _ID.fullmatch(text.removeprefix(HUB))
        if match is None:
            raise InputError(f"{text} is no data set; write {HUB}org/name, with :split or :config/split, and @revision")
        return cls(match[1], match[2], match[3] or "train", match[4])


@dataclass(frozen=True)
class _Listing:
    """A commit of a data set, and the bytes of each of its files."""

    commit: str
    files: dict[str, int]


def hub_documents(text: str) -> Documents:
    """The documents of a split; downloads what is not in the cache. InputError for what is not there or cannot be
    read, MachineError without network or hub client.
    """
    data = DataSet.parse(text)
    with client(f"text {text}", "not in the cache") as hub:
        listing = _listing(hub, data, data.revision)
        names = _files(hub, text, data, listing)
        if not names and data.revision is None:
            listing = _converted(hub, data) or listing
            names = _of_split(data, listing.files, by_folder=True)
        if not names:
            raise InputError(f"text {text}: no file of it is JSON, Parquet or text of the split {data.split}")
        taken = _some(names, listing.files)
        paths = [_download(hub, data, name, listing.commit) for name in taken]
    read = [read_documents(path) for path in paths]
    kinds = " and ".join(dict.fromkeys(each.kind for each in read))
    of = f", {len(taken)} of {len(names)} files" if len(taken) < len(names) else ""
    return Documents(Joined([each.found for each in read]), f"{kinds}, revision {listing.commit[:12]}{of}")


def _listing(hub: Any, data: DataSet, revision: str | None) -> _Listing:
    """From the hub, or, where that cannot be reached, what it said last time."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=data.repo, repo_type="dataset")
    name = (revision or "main").replace("/", "--")
    kept = Path(HF_HUB_CACHE) / folder / "llmc" / f"{name}.json"
    try:
        info = hub.HfApi().dataset_info(data.repo, revision=revision, files_metadata=True)
    except HfHubHTTPError:
        raise
    except Exception:
        with suppress(OSError, ValueError, TypeError):
            return _Listing(**json.loads(kept.read_text("utf-8")))
        raise
    files = {each.rfilename: each.size or 0 for each in info.siblings or () if _is_harmless(each.rfilename)}
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({"commit": info.sha, "files": files}), "utf-8")
    return _Listing(info.sha, files)


def _converted(hub: Any, data: DataSet) -> _Listing | None:
    """The hub's own conversion, which not every data set has."""
    from huggingface_hub.errors import HfHubHTTPError

    with suppress(HfHubHTTPError, OSError):
        return _listing(hub, data, _CONVERTED)
    return None


def _is_harmless(name: str) -> bool:
    return all(is_bare_file_name(part) for part in name.split("/"))


def _download(hub: Any, data: DataSet, name: str, commit: str) -> Path:
    return Path(hub.hf_hub_download(data.repo, name, repo_type="dataset", revision=commit))


def _files(hub: Any, text: str, data: DataSet, listing: _Listing) -> list[str]:
    """The names of a split's files, sorted."""
    declared = _declared(_download(hub, data, "README.md", listing.commit)) if "README.md" in listing.files else {}
    if not declared:
        return _of_split(data, listing.files, by_folder=data.config is not None)
    config = data.config or ("default" if "default" in declared else next(iter(declared)))
    if data.config is None and config != "default" and len(declared) > 1:
        raise InputError(f"text {text}: has several configurations ({', '.join(declared)}); name one: :config/split")
    if config not in declared:
        raise InputError(f"text {text}: {unknown('configuration', config, declared)}")
    splits = declared[config]
    if data.split not in splits:
        raise InputError(f"text {text}: {unknown('split', data.split, splits)}")
    patterns = splits[data.split]
    return sorted(name for name in listing.files if any(fnmatchcase(name, pattern) for pattern in patterns))


def _declared(readme: Path) -> dict[str, dict[str, list[str]]]:
    """Configuration → split → patterns of names, of a data set's README.md; nothing where that says nothing."""
    match = re.match(r"---\s*\n(.*?)\n---\s*(?:\n|$)", readme.read_text("utf-8", "ignore"), re.DOTALL)
    try:
        front = plain_yaml.read(match[1], typed=False)[0] if match else None
    except plain_yaml.Problem:
        return {}
    configs = front.get("configs") if isinstance(front, dict) else None
    found: dict[str, dict[str, list[str]]] = {}
    for config in configs if isinstance(configs, list) else ():
        if isinstance(config, dict) and (splits := _splits(config.get("data_files"))):
            name = "default" if config.get("default") == "true" else str(config.get("config_name", "default"))
            found[name] = splits
            found[str(config.get("config_name", "default"))] = splits
    return found


def _splits(files: Any) -> dict[str, list[str]]:
    """`data_files` in each of its spellings."""
    found: dict[str, list[str]] = {}
    for entry in files if isinstance(files, list) else [files]:
        split, path = ("train", entry) if isinstance(entry, str) else ("", None)
        if isinstance(entry, dict):
            split, path = str(entry.get("split", "train")), entry.get("path")
        patterns = [path] if isinstance(path, str) else path
        if split and isinstance(patterns, list):
            found.setdefault(split, []).extend(str(each).replace("**/", "*") for each in patterns)
    return found


def _of_split(data: DataSet, files: Iterable[str], by_folder: bool) -> list[str]:
    """By names alone; where none tells a split, all are of the training split. by_folder: each configuration has one,
    and the first is taken where none is asked for.
    """
    names = sorted(name for name in files if re.search(RECORD_FILES, name.lower()))
    if by_folder:
        folders = [name.partition("/")[0] for name in names if "/" in name]
        config = data.config or ("default" if "default" in folders else next(iter(folders), ""))
        names = [name for name in names if name.startswith(f"{config}/")]
    if any(_tells(name, split) for name in names for split in _SPLITS):
        return [name for name in names if _tells(name, data.split)]
    return names if data.split == "train" else []


def _tells(name: str, split: str) -> bool:
    return re.search(rf"(?<![a-z]){re.escape(split.lower())}(?![a-z])", name.lower()) is not None


def _some(names: Sequence[str], sizes: dict[str, int]) -> list[str]:
    """Files of half a gigabyte together, in an order that only their names decide."""
    taken, total = [], 0
    for name in sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        if total >= _ENOUGH:
            break
        taken.append(name)
        total += sizes[name]
    return sorted(taken)
