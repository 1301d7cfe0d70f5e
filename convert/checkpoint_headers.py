"""Which tensors a checkpoint's files hold, and in which of them each lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmc.convert.folder import INDEX_LIMIT, read_json
from llmc.convert.other_folders import GGUF, names_in, weight_files, whole_model
from llmc.convert.safetensors_file import StoredTensor, read_header
from llmc.errors import InputError
from llmc.file_names import is_bare_file_name

INDEX = "model.safetensors.index.json"


def read_headers(path: Path) -> dict[str, StoredTensor]:
    """Find every tensor of a checkpoint by name, shard by shard; the index decides when there is one.

    Raises:
        InputError: A file is missing or damaged, or says something else than the others.
    """
    if not (path / INDEX).exists():
        return _read_gguf(path) or _read_all(path)
    weight_map = read_json(path / INDEX, INDEX_LIMIT).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{path / INDEX}: `weight_map` is missing; download the file again")
    headers: dict[str, dict[str, StoredTensor]] = {}
    for name, shard in weight_map.items():
        if not is_bare_file_name(shard, ".safetensors"):
            raise InputError(
                f"{path / INDEX}: {name} is said to be in {shard!r}; only safetensors files in the same folder are read"
            )
        if shard not in headers:
            if not (path / shard).exists():
                raise _missing_shard(path, shard, weight_map)
            headers[shard] = read_header(path / shard)
        if name not in headers[shard]:
            raise InputError(f"{path / shard}: tensor {name} is missing, but in the index; download both again")
    return {
        name: tensor
        for shard in sorted(headers)
        for name, tensor in headers[shard].items()
        if weight_map.get(name) == shard
    }


def _read_gguf(path: Path) -> dict[str, StoredTensor] | None:
    """Every tensor of a folder that stands for a GGUF file; None: it is another one."""
    names = names_in(path)
    files = [name for name in names if name.lower().endswith(GGUF)]
    if weight_files(names) or len(files) != 1:
        return None
    from llmc.convert.gguf.file import read_tensors

    return dict(read_tensors(path / files[0], read_json(path / "config.json", infinity=True)))


def _read_all(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint without an index."""
    names = names_in(path)
    if not weight_files(names):
        raise InputError(f"{path}: neither model.safetensors nor {INDEX} is there; download the weights")
    stored: dict[str, StoredTensor] = {}
    for file in whole_model(str(path), names):
        header = read_header(path / file)
        if twice := sorted(stored.keys() & header.keys()):
            raise InputError(
                f"{path / file}: tensor {twice[0]} is in {stored[twice[0]].file.name}, too; which one counts is "
                f"said by {INDEX}, which is missing; download it, too"
            )
        stored |= header
    return stored


def _missing_shard(path: Path, shard: str, weight_map: dict[str, Any]) -> InputError:
    shards = {name for name in weight_map.values() if isinstance(name, str)}
    missing = [name for name in shards if not (path / name).exists()]
    return InputError(
        f"{path / shard}: cannot be read (No such file or directory); download it again "
        f"({len(missing):,} of {len(shards):,} files of weights are missing)"
    )
