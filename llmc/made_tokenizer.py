"""The tokenizer of a checkpoint: its own tokenizer.json, or one that is made from the files that it has instead."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

from llmc.convert.families import family_of
from llmc.convert.folder import read_json
from llmc.convert.other_folders import names_in
from llmc.convert.tokenizer_files import TOKENIZER, MadeTokenizer, make, source_file
from llmc.convert.tokenizer_files.description import AddedToken
from llmc.runtime.origin import Completed
from llmc.runtime.special_tokens import added_tokens, special_tokens, tokenizer_config

# The class that transformers takes for a kind of model whose tokenizer_config.json names none; texts begin as it says.
_CLASSES = dict.fromkeys(("llama", "mistral", "mixtral"), "LlamaTokenizer")
_CLASSES |= dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), "GemmaTokenizer")


def made_tokenizer(folder: Path, vocab_size: int) -> MadeTokenizer | None:
    """What takes the place of a tokenizer.json that a checkpoint lacks; None: it has one, or nothing to make one from.

    InputError or MachineError, in one line, where it cannot be made.
    """
    names = names_in(folder)
    if TOKENIZER in names or source_file(names) is None:
        return None
    added = [AddedToken(token.number, token.text, token.special) for token in added_tokens(folder)]
    settings = tokenizer_config(folder)
    kind = _CLASSES.get(str(read_json(folder / "config.json", infinity=True).get("model_type")))
    if kind is not None:
        settings = {"tokenizer_class": kind} | settings
    return make(folder, vocab_size, settings, special_tokens(folder), added)


def require_made(folder: Path) -> None:
    """The same errors, of a checkpoint whose weights are not there yet."""
    if TOKENIZER not in names_in(folder):
        config = read_json(folder / "config.json", infinity=True)
        size = family_of(config).text_config(config).get("vocab_size")
        made_tokenizer(folder, size if type(size) is int else 0)


def completed(folder: Path, made: MadeTokenizer | None) -> Path | Completed:
    """Where the tokenizer's files are read; what was made lies in a folder that goes when nobody reads it any more."""
    if made is None:
        return folder
    place = Path(tempfile.mkdtemp(prefix="llmc-tokenizer-"))
    for name, data in made.files.items():
        (place / name).write_bytes(data)
    origin = Completed(folder, {name: place / name for name in made.files})
    weakref.finalize(origin, shutil.rmtree, place, ignore_errors=True)
    return origin
