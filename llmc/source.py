"""Where the model of a recipe comes from: the embedded checkpoint, a directory, or the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmc import plain_yaml
from llmc.convert.finite import FiniteCheck
from llmc.convert.gguf.folder import described, gguf_in
from llmc.convert.other_folders import refuse_other_kinds, require_tokenizer, weight_files
from llmc.convert.tokenizer_files import TOKENIZER
from llmc.errors import InputError, LlmcError, MachineError
from llmc.file_names import is_bare_file_name
from llmc.files import open_regular, read_json
from llmc.hub import HubName, client
from llmc.made_tokenizer import require_made
from llmc.patterns import shown
from llmc.registry import unknown
from llmc.visible import unseen, visible_line

if TYPE_CHECKING:
    from llmc.convert.safetensors_file import StoredTensor

BUILTIN = "builtin:"
_INDEX = "model.safetensors.index.json"
# Never pickles or code.
_HUB_WEIGHTS = ["*.safetensors"]
_HUB_FILES = ["*.json", "*.jinja", "tokenizer*", "vocab.*", "merges.txt", "LICENSE*", "README.md"]
_HUB_FILES += ["tiktoken.model", "*.tiktoken", "spiece.model", "sentencepiece.bpe.model"]
# Nor what lies in folders (but additional_chat_templates/) or is hidden, nor names that a terminal would obey when the
# download's progress shows them.
_HUB_NEVER = [
    "[!a]*[/\\]*",
    "a[!d]*[/\\]*",
    "*[/\\]*[/\\]*",
    "consolidated*",
    ".*",
    "*[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]*",
]
# A repository's index and headers are promises; these limits are far above any that was ever kept.
_MAX_SHARDS, _MAX_SHARD_BYTES, _MAX_INDEX_BYTES = 4096, 1 << 42, 1 << 28
_MAX_FRONT_MATTER = 1 << 16  # bytes of a model card


@dataclass(frozen=True)
class License:
    """What a model card says of it, where it says anything: the hub's name for it, or `other`, its own name, a link."""

    id: str | None = None
    name: str | None = None
    link: str | None = None


@dataclass(frozen=True)
class ModelSource:
    id: str  # as the recipe names it; the folder's own name for a directory, so that no path gets into an artifact
    revision: str | None  # commit on the hub
    path: Path
    license: License


def locate(model: str, base: Path) -> ModelSource:
    """The checkpoint that a recipe in folder `base` names; downloads it if it is a hub id.

    InputError for what does not exist, MachineError without network or hub client.
    """
    if model.startswith(BUILTIN):
        path = _builtin(model.removeprefix(BUILTIN))
        return ModelSource(model, None, path, _license(path))
    path = base / Path(model).expanduser()
    if path.exists():
        gguf = gguf_in(path)
        folder = described(gguf) if gguf else path
        name = path.name if path.is_file() else path.resolve().name  # a file's in a hub's cache is a link
        return ModelSource(visible_line(name), None, folder, _license(folder))
    repo, revision = _hub_id(model, path)
    names = _look_first(repo, revision)
    with _hub(repo) as hub:
        if names is not None and TOKENIZER not in names:  # whether one can be made, before the weights come
            _require_made(hub, repo, revision)
        wanted = [*_HUB_WEIGHTS, *_HUB_FILES]
        path = Path(hub.snapshot_download(repo, revision=revision, allow_patterns=wanted, ignore_patterns=_HUB_NEVER))
    return ModelSource(repo, path.name, path, _license(path))


@contextmanager
def locate_headers(model: str, base: Path) -> Iterator[ModelSource]:
    """As `locate`, but of a hub model only the headers of the weights are downloaded, into a folder that is gone
    in the end: files of full size without content.
    """
    path = base / Path(model).expanduser()
    if model.startswith(BUILTIN) or path.exists():
        yield locate(model, base)
        return
    repo, revision = _hub_id(model, path)
    _look_first(repo, revision)
    with _hub(repo) as hub:
        files = Path(
            hub.snapshot_download(repo, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_NEVER)
        )
    missing = _missing_weights(files)
    if missing is None:
        yield ModelSource(repo, files.name, files, _license(files))
        return
    with tempfile.TemporaryDirectory() as folder:
        _copy_files(files, Path(folder))
        _check_index(repo, Path(folder) / _INDEX)
        with _hub(repo, f"{missing} is not in the cache") as hub:
            shards = hub.get_safetensors_metadata(repo, revision=revision).files_metadata
        for name, shard in shards.items():
            _check_shard(repo, name)
            _write_header(Path(folder) / name, shard.tensors)
        yield ModelSource(repo, files.name, Path(folder), _license(Path(folder)))


def _missing_weights(folder: Path) -> str | None:
    """A file that a checkpoint lacks; None where all weights are there, as after an earlier download."""
    names = {"model.safetensors"}
    if (folder / _INDEX).exists():
        try:
            names = set(map(str, read_json(folder / _INDEX, _MAX_INDEX_BYTES)["weight_map"].values()))
        except (InputError, LookupError, AttributeError):
            return _INDEX
    return next((name for name in sorted(names) if not is_bare_file_name(name) or not (folder / name).is_file()), None)


def _copy_files(source: Path, folder: Path) -> None:
    for file in source.iterdir():
        if is_bare_file_name(file.name) and file.is_file():
            shutil.copyfile(file, folder / file.name)


def _check_index(repo: str, path: Path) -> None:
    """InputError for an index whose shards nobody should ask the hub for, or write."""
    if not path.is_file():
        return
    weight_map = read_json(path, _MAX_INDEX_BYTES).get("weight_map")
    # What is no text does not become a name by being shown as one.
    values = weight_map.values() if isinstance(weight_map, dict) else ()
    names = {name if isinstance(name, str) else repr(name) for name in values}
    for name in sorted(names):
        _check_shard(repo, name)
    if len(names) > _MAX_SHARDS:
        raise InputError(f"model {repo}: {path.name} names {len(names):,} files; at most {_MAX_SHARDS:,} are read")


def _check_shard(repo: str, name: str) -> None:
    if not is_bare_file_name(name, ".safetensors"):
        raise InputError(
            f"model {repo}: the weights are said to be in {shown(name)}; only safetensors files in the repository's "
            "main folder are read"
        )


def _require_made(hub: Any, repo: str, revision: str | None) -> None:
    files = hub.snapshot_download(repo, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_NEVER)
    require_made(Path(files))


def _look_first(repo: str, revision: str | None) -> set[str] | None:
    """The names of the files in a repository; None without a network.

    InputError for one that holds no checkpoint, or no tokenizer, before anything of it is downloaded.
    """
    names = None
    with suppress(MachineError), _hub(repo) as hub:  # without a network, what is in the cache may do
        names = {name for name in hub.list_repo_files(repo, revision=revision) if "/" not in name}
    if names is not None:
        refuse_other_kinds(f"model {repo}", names)
        if not weight_files(names):
            raise InputError(f"model {repo}: holds no safetensors; choose a repository, or a @revision, that does")
        require_tokenizer(repo, names, on_hub=True)
    return names


def _write_header(path: Path, tensors: Mapping[str, Any]) -> None:
    """A safetensors file whose tensors are a hole; InputError when they would not fit into any file."""
    entries, end = {}, 0
    for name, tensor in tensors.items():
        offsets = tuple(tensor.data_offsets)
        if len(offsets) != 2 or not all(type(each) is int and 0 <= each <= _MAX_SHARD_BYTES for each in offsets):
            raise InputError(f"{path.name}: broken safetensors header at {shown(name)}; choose another revision")
        entries[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
        end = max(end, *offsets)
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)


def hash_files(
    folder: Path, files: list[Path], progress: Callable[[int, int], None], weights: Iterable[StoredTensor] = ()
) -> dict[str, str]:
    """File name, relative to `folder` → sha256; progress gets bytes done and bytes in all.

    InputError, when all is read, for `weights` in these files that hold NaN or infinity: files whose hashes were
    returned once need no second look.
    """
    total, done = sum(file.stat().st_size for file in files), 0
    hashes, check = {}, FiniteCheck(weights)
    for path in files:
        digest = hashlib.sha256()
        try:
            for piece in check.pieces(path):
                digest.update(piece)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        hashes[path.relative_to(folder).as_posix()] = digest.hexdigest()
        done += path.stat().st_size
        progress(done, total)
    check.refuse()
    return hashes


def _builtin(name: str) -> Path:
    from llmc.recipes import checkpoints

    folder = Path(checkpoints.__file__).parent
    known = [path.parent.name for path in sorted(folder.glob("*/config.json"))]
    if name not in known:
        raise InputError(f"model {BUILTIN}{name}: {unknown('embedded checkpoint', name, known)}")
    return (folder / name / "config.json").resolve().parent  # installers may lay packages out as links


def _hub_id(model: str, path: Path) -> tuple[str, str | None]:
    """Repository and revision."""
    name = HubName.parse(model)
    if name is None:
        raise InputError(f"model {model}: there is no folder {path}, and this is not a hub id such as org/name")
    return name.repo, name.revision


def _hub(repo: str, lacking: str = "no such folder") -> AbstractContextManager[Any]:
    return client(f"model {repo}", lacking)


def _license(path: Path) -> License:
    """Of the front matter of README.md; nothing where that cannot be read, whatever is wrong with it."""
    try:
        with open_regular(path / "README.md") as file:
            text = file.read(_MAX_FRONT_MATTER).decode("utf-8-sig", "ignore")  # a character may be cut at the end
        match = re.match(r"---\n(.*?)\n---\s*(?:\n|$)", text.replace("\r\n", "\n"), re.DOTALL)
        front, _ = plain_yaml.read(match[1], typed=False) if match else (None, None)
    except (LlmcError, OSError, plain_yaml.Problem):
        return License()
    keys = front if isinstance(front, dict) else {}
    return License(*(_told(keys.get(key)) for key in ("license", "license_name", "license_link")))


def _told(value: Any) -> str | None:
    named = ", ".join(value) if isinstance(value, list) and all(isinstance(each, str) for each in value) else value
    fits = isinstance(named, str) and 0 < len(named) <= 200 and unseen(named) is None
    return named if fits else None
