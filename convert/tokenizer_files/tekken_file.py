"""Mistral's tekken.json: tiktoken's tokens and ranks, the expression, and the tokens for control in front of them."""

from __future__ import annotations

import base64
from dataclasses import replace

from llmc.convert.tokenizer_files.description import AddedToken, Description, GivenFile
from llmc.convert.tokenizer_files.known_patterns import TEKKEN, Facts
from llmc.convert.tokenizer_files.tiktoken_file import Tiktoken, checked, described
from llmc.errors import InputError
from llmc.files import parse_json

_NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_MOST_CONTROLS = 1 << 16


def describe(given: GivenFile) -> tuple[Description, Tiktoken]:
    """The parts of tokenizer.json, and the library with the same file; see `make` for what it takes and raises."""
    path, settings = given.path, given.settings
    try:
        document = parse_json(given.data)
        config = document["config"]
        size, controls = int(config["default_vocab_size"]), int(config["default_num_special_tokens"])
        named = {int(entry["rank"]): str(entry["token_str"]) for entry in document.get("special_tokens") or ()}
        # The file may have more tokens than the model was made for.
        entries = document["vocab"][: max(0, size - controls)]
        found = [(base64.b64decode(entry["token_bytes"], validate=True), int(entry["rank"])) for entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: no vocabulary of tekken ({error!r:.100}); download it again") from None
    if not 0 <= controls < _MOST_CONTROLS or any(not 0 <= number < controls for number in named):
        raise InputError(f"{path}: its tokens for control do not fit in front of the others; download it again")
    if config.get("pattern") != TEKKEN or not named:
        lacks = "divides texts by an expression that is not known" if named else "lists no tokens for control"
        raise InputError(
            f"{path}: {lacks}; look for a copy of the model that has a tokenizer.json, and put that beside the weights"
        )
    ranks = {token: controls + rank for token, rank in checked(path, found).items()}
    added = {number: AddedToken(number, named.get(number, f"<SPECIAL_{number}>"), True) for number in range(controls)}
    own = {name: text for name, text in _NAMED.items() if text in named.values()}
    begins = "bos_token" in own and settings.get("add_bos_token") is not False
    known = Facts(TEKKEN, begins_with=(own["bos_token"],) if begins else ())
    added |= {token.number: token for token in given.listed}
    description, library = described(replace(given, listed=list(added.values())), ranks, known)
    # transformers warns of every large tokenizer of Mistral's that does not say so: early conversions had another one.
    return replace(description, settings=own | {"fix_mistral_regex": True}), library
