"""Where the model of a recipe comes from: the embedded checkpoint, a directory, or the Hugging Face hub."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from llmc.errors import InputError, MachineError
from llmc.recipe import unknown

BUILTIN = "builtin:"
# Weights, configuration, tokenizer, licence; never pickles or code.
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "vocab.*", "merges.txt", "LICENSE*", "README.md"]


@dataclass(frozen=True)
class Source:
    id: str  # as the recipe names it; the folder's own name for a directory, so that no path gets into an artifact
    revision: str | None  # commit on the hub
    path: Path
    license: str | None  # of the model card, where it names one


def locate(model: str, base: Path) -> Source:
    """The checkpoint that a recipe in folder `base` names; downloads it if it is a hub id.

    InputError for what does not exist, MachineError without network or hub client.
    """
    if model.startswith(BUILTIN):
        path = _builtin(model.removeprefix(BUILTIN))
        return Source(model, None, path, _license(path))
    path = base / Path(model).expanduser()
    if path.exists():
        return Source(path.resolve().name, None, path, _license(path))
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", model)
    if match is None or model.startswith("."):
        raise InputError(f"model {model}: there is no folder {path}, and this is not a hub id such as org/name")
    path = _download(match[1], match[2])
    return Source(match[1], path.name, path, _license(path))


def hash_files(files: list[Path], progress: Callable[[int, int], None]) -> dict[str, str]:
    """File name → sha256; progress gets bytes done and bytes in all."""
    total, done = sum(file.stat().st_size for file in files), 0
    hashes = {}
    for path in files:
        try:
            with path.open("rb") as file:
                hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        done += path.stat().st_size
        progress(done, total)
    return hashes


def _builtin(name: str) -> Path:
    import llmc.recipes

    folder = Path(llmc.recipes.__file__).parent / "checkpoints"
    known = [path.parent.name for path in sorted(folder.glob("*/config.json"))]
    if name not in known:
        raise InputError(f"model {BUILTIN}{name}: {unknown(name, 'embedded checkpoint', known)}")
    return folder / name


def _download(repo: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MachineError(
            f"model {repo} is no folder here, and downloading from the hub needs: pip install 'llmc[hub]'"
        ) from error
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=_HUB_FILES))
    except Exception as error:  # whatever the network, the hub and its client come up with
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MachineError(f"model {repo} is no folder here and cannot be downloaded from the hub: {reason}") from error


def _license(path: Path) -> str | None:
    """`license:` of the front matter of README.md."""
    card = path / "README.md"
    match = re.match(r"---\n(.*?)\n---\n", card.read_text("utf-8", "replace"), re.DOTALL) if card.is_file() else None
    try:
        front = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return None
    return str(front["license"]) if isinstance(front, dict) and front.get("license") else None
