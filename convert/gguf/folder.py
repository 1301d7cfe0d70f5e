"""A folder that stands for a GGUF file: config.json and the tokenizer's files, made of its metadata, and a link to it.

Everything after it reads a checkpoint's folder. The weights stay where they are.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

from llmc.convert.families import family_of
from llmc.convert.folder import SIDECAR_LIMIT, require_sidecars
from llmc.convert.gguf.config import config_of
from llmc.convert.gguf.file import open_gguf
from llmc.convert.gguf.tokenizer import tokenizer_files
from llmc.convert.other_folders import GGUF
from llmc.convert.tokenizer_files import CONFIG, TOKENIZER
from llmc.errors import InputError
from llmc.files import leads_outside, read_regular

_BESIDE = ("LICENSE*", "README.md")  # that are taken along where they lie beside the file


def gguf_in(path: Path) -> Path | None:
    """Return the GGUF file that is given: itself, or the only one in a folder without config.json; None: there is none.

    Raises:
        InputError: for a folder that holds several
    """
    if path.is_file():
        return path if path.suffix.lower() == GGUF else None
    if not path.is_dir() or (path / "config.json").exists():
        return None
    found = sorted(each for each in path.glob(f"*{GGUF}") if not each.name.startswith("mmproj"))
    if len(found) > 1:
        raise InputError(f"{path}: holds {len(found)} GGUF files; give one of them, as {found[0]}")
    return found[0] if found else None


def described(path: Path) -> Path:
    """Return a folder for a GGUF file, which is there as long as this program runs.

    Raises:
        InputError: for a file that is not read, with the reason
    """
    told = path.stat()
    # Not resolved: in a hub's cache that would be a file without a name, and without a tokenizer beside it.
    return _described(path.absolute(), told.st_size, told.st_mtime_ns)


@lru_cache(16)
def _described(path: Path, size: int, changed: int) -> Path:
    file = open_gguf(path)
    config = config_of(file)
    spec = family_of(config).spec(config)
    if (path.parent / TOKENIZER).is_file():  # the model's own
        beside = [path.parent / name for name in (TOKENIZER, CONFIG) if (path.parent / name).is_file()]
        require_sidecars(path.parent, beside)
        files = {each.name: read_regular(each, SIDECAR_LIMIT) for each in beside}
    else:
        files = tokenizer_files(path, file.metadata)
    ends = sorted(
        number
        for name in ("eos", "eot", "eom")
        if type(number := file.metadata.get(f"tokenizer.ggml.{name}_token_id")) is int and number < spec.vocab_size
    )
    files["config.json"] = json.dumps(config, indent=2).encode()
    files["generation_config.json"] = json.dumps({"eos_token_id": list(dict.fromkeys(ends))}, indent=2).encode()
    folder = Path(tempfile.mkdtemp(prefix="llmc-gguf-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    for pattern in _BESIDE:
        for each in path.parent.glob(pattern):
            if each.is_file() and not leads_outside(each):
                shutil.copyfile(each, folder / each.name)
    (folder / path.name).symlink_to(path)
    return folder
