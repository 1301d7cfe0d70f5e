"""tokenizer.json for checkpoints that come without one, made from the file of tiktoken, SentencePiece or tekken there.

Nothing of a checkpoint is run. What its files do not say, and only its Python code would, is in a small table of
published facts (`known_patterns`); what is not there is refused. A tokenizer made here is held against the library that
the file was written for, on samples and on every token of its vocabulary, before anybody trusts it (`comparison`).
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llmc.convert.folder import SIDECAR_LIMIT, open_file
from llmc.convert.tokenizer_files.comparison import compare
from llmc.convert.tokenizer_files.description import AddedToken, Description, GivenFile, Original
from llmc.errors import InputError, MachineError
from llmc.extras import DISTRIBUTIONS, install

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
_TEKKEN = "tekken.json"
_SENTENCEPIECE_NAMES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_RANKS = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")


@dataclass(frozen=True)
class MadeTokenizer:
    """What takes the place of files in the checkpoint's folder.

    Attributes:
        source: Name of the file that it was made from.
        texts: How many texts have been compared with the original library.
        files: Name → content; the same bytes for the same checkpoint.
    """

    source: str
    texts: int
    files: Mapping[str, bytes]


class _Kind(Protocol):
    """A module that reads one kind of file; see `make`."""

    def describe(self, given: GivenFile) -> tuple[Description, Original]: ...


def source_file(names: Collection[str]) -> str | None:
    """The name of the file that a tokenizer.json could be made from; None: there is none."""
    ranks = sorted(name for name in names if name == "tiktoken.model" or name.endswith(".tiktoken"))
    return next((name for name in (*ranks, *_SENTENCEPIECE_NAMES, _TEKKEN) if name in names), None)


def require_library(where: str, name: str) -> None:
    """MachineError, with what to install, where the library is missing that such a file is read with."""
    _require(where, name, *(("sentencepiece", "google.protobuf") if name in _SENTENCEPIECE_NAMES else ("tiktoken",)))


def make(
    folder: Path, vocab_size: int, settings: Mapping[str, Any], special: Mapping[str, str], added: Sequence[AddedToken]
) -> MadeTokenizer:
    """Make tokenizer.json, and the tokenizer_config.json that goes with it.

    Args:
        folder: Of the checkpoint, which has one of the files that `source_file` names.
        vocab_size: Rows of the embedding.
        settings: tokenizer_config.json.
        special: `bos_token`, `eos_token`, … → its text, as the checkpoint's files say.
        added: The tokens that these files list, by number.

    Raises:
        InputError: for a file that is broken, says too little, or asks for what `tokenizers` cannot do
        MachineError: for a library that is missing
    """
    name = source_file([path.name for path in folder.iterdir()])
    assert name is not None
    path = folder / name
    with open_file(path) as file:
        data = file.read(SIDECAR_LIMIT + 1)
    if len(data) > SIDECAR_LIMIT:
        raise InputError(f"{path}: larger than the {SIDECAR_LIMIT:,} bytes that such a file may have")
    kind: _Kind
    if name == _TEKKEN:
        _require(str(folder), name, "tiktoken")
        from llmc.convert.tokenizer_files import tekken_file as kind
    elif _RANKS.match(data):  # Meta's tokenizer.model of Llama 3, too
        _require(str(folder), name, "tiktoken")
        from llmc.convert.tokenizer_files import tiktoken_file as kind
    else:
        if name not in _SENTENCEPIECE_NAMES:
            raise InputError(
                f"{path}: not a file of tiktoken, a token in base64 and its rank a line; download it again"
            )
        _require(str(folder), name, "sentencepiece", "google.protobuf")
        from llmc.convert.tokenizer_files import sentencepiece_file as kind
    description, original = kind.describe(GivenFile(path, data, vocab_size, settings, special, added))
    made = description.to_json()
    texts = compare(path, made, description, original)
    return MadeTokenizer(name, texts, {TOKENIZER: made, CONFIG: _settings(settings, special, description)})


def _settings(settings: Mapping[str, Any], special: Mapping[str, str], description: Description) -> bytes:
    """tokenizer_config.json with which transformers takes tokenizer.json as it is."""
    kept = {name: value for name, value in settings.items() if name not in _SAID_BY_TOKENIZER_JSON}
    kept |= {**description.settings, **special}
    kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    listed = sorted(description.added, key=lambda token: token.number)
    kept["added_tokens_decoder"] = {str(token.number): _flags(token) for token in listed}
    return (json.dumps(kept, indent=2, ensure_ascii=False) + "\n").encode()


# Settings of classes that build their rules themselves.
_SAID_BY_TOKENIZER_JSON = ("auto_map", "add_bos_token", "add_eos_token", "add_prefix_space", "legacy", "from_slow")


def _flags(token: AddedToken) -> dict[str, Any]:
    described = token.to_json()
    del described["id"]
    return described


def _require(where: str, name: str, *modules: str) -> None:
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            top = module.partition(".")[0]
            raise MachineError(
                f"{where}: there is no {TOKENIZER}, and making one from {name} takes {DISTRIBUTIONS.get(top, top)}, "
                f"which is not installed; {install(top)}"
            ) from error
