"""tiktoken's file: a token in base64 and its rank on every line, and nothing else."""

from __future__ import annotations

import base64
import binascii
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmc.convert.tokenizer_files.description import LONGEST, AddedToken, Description, GivenFile, Part
from llmc.convert.tokenizer_files.known_patterns import Facts, facts
from llmc.convert.tokenizer_files.merges import pairs
from llmc.errors import InputError

_MOST_NUMBER = 1 << 24


def describe(given: GivenFile) -> tuple[Description, Tiktoken]:
    """The parts of tokenizer.json, and the library with the same file; see `make` for what it takes and raises."""
    ranks = _read(given.path, given.data)
    kind = given.settings.get("tokenizer_class")
    known = facts(kind, [token.text for token in given.listed])
    if known is None:
        named = (
            f"of the class {kind!r}" if isinstance(kind, str) else "without tokenizer_class in tokenizer_config.json"
        )
        raise InputError(
            f"{given.path}: the expression that divides texts is not in this file, and not known of a tokenizer "
            f"{named}; look for a copy of the model that has a tokenizer.json, and put that beside the weights"
        )
    return described(given, ranks, known)


def described(given: GivenFile, ranks: dict[bytes, int], known: Facts) -> tuple[Description, Tiktoken]:
    """The same, when the ranks have been read, and what else there is to know."""
    special, added = given.special, _added(given, ranks, known)
    vocabulary = {_written(token): rank for token, rank in ranks.items()}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": True,  # what is a token as a whole is not taken apart, in tiktoken neither
        # With the added ones, whose numbers `tokenizers` takes from here.
        "vocab": dict(sorted((vocabulary | {t.text: t.number for t in added}).items(), key=lambda entry: entry[1])),
        "merges": pairs(vocabulary),
    }
    by_text = {token.text: token for token in added}
    first = known.begins_with
    if not first and given.settings.get("add_bos_token") is True and special.get("bos_token") in by_text:
        first = (special["bos_token"],)
    whole = (token.decode("utf-8", "ignore") for token in ranks)
    return Description(
        model=model,
        added=added,
        pieces=[text for text in whole if text],
        normalizer={"type": "NFC"} if known.nfc else None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [_split(known.pattern), _byte_level()]},
        decoder=_byte_level(),
        begins_with=[by_text[text] for text in first],
    ), Tiktoken(known, ranks, added)


class Tiktoken:
    """The original library."""

    name = "tiktoken"

    def __init__(self, known: Facts, ranks: dict[bytes, int], added: Sequence[AddedToken]) -> None:
        import tiktoken

        self._nfc = known.nfc
        special = {token.text: token.number for token in added}
        self._library = tiktoken.Encoding("made", pat_str=known.pattern, mergeable_ranks=ranks, special_tokens=special)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        given = [unicodedata.normalize("NFC", text) if self._nfc else text for text in texts]
        return [self._library.encode(text, allowed_special="all") for text in given]

    def same(self, wanted: Sequence[int], found: Sequence[int]) -> bool:
        return wanted == found

    def decode(self, ids: Sequence[int]) -> str:
        return self._library.decode(list(ids))


def _read(path: Path, data: bytes) -> dict[bytes, int]:
    """Token → rank; ranks may have gaps. InputError for anything else than a whole file."""
    found: list[tuple[bytes, int]] = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            if line.strip():
                token, rank = line.split()
                found.append((base64.b64decode(token, validate=True), int(rank)))
        except (ValueError, binascii.Error):
            raise InputError(
                f"{path}: line {number} is not a token in base64 and its rank; download it again"
            ) from None
    return checked(path, found)


def checked(path: Path, found: Sequence[tuple[bytes, int]]) -> dict[bytes, int]:
    """The same of tokens and their ranks; InputError where they are none of tiktoken's."""
    ranks: dict[bytes, int] = {}
    for number, (token, rank) in enumerate(found, 1):
        if not 0 < len(token) <= LONGEST or token in ranks or not 0 <= rank < _MOST_NUMBER:
            raise InputError(f"{path}: token {number} is too long, repeated or out of range; download it again")
        ranks[token] = rank
    if len(set(ranks.values())) < len(ranks):
        raise InputError(f"{path}: two tokens have one rank; download it again")
    if missing := [value for value in range(256) if bytes([value]) not in ranks]:
        raise InputError(f"{path}: {len(missing)} of the 256 bytes are no tokens; download it again")
    return ranks


def _added(given: GivenFile, ranks: Mapping[bytes, int], known: Facts) -> list[AddedToken]:
    """Tokens beside the ranks: as listed, as the class names them, and placeholders up to the end of the vocabulary."""
    taken, beyond = set(ranks.values()), max(ranks.values()) + 1
    found = {beyond + place: AddedToken(beyond + place, text, True) for place, text in enumerate(known.named)}
    found |= {token.number: token for token in given.listed}
    if known.placeholder is not None:
        for number in range(beyond, given.vocab_size):
            found.setdefault(number, AddedToken(number, known.placeholder.format(number), True))
    texts: dict[str, int] = {_written(token): rank for token, rank in ranks.items()}
    for number, token in sorted(found.items()):
        same = texts.get(token.text)
        if not token.text or same not in (None, number) or (same is None and number in taken):
            raise InputError(
                f"{given.path}: tokenizer_config.json adds token {number}, {token.text!r}, whose number or text is "
                "another token's; one of the two files belongs to another model"
            )
        texts[token.text] = number
    return list(found.values())


def _split(pattern: str) -> Part:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _byte_level() -> Part:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def _alphabet() -> list[str]:
    """What stands for each byte in tokenizer.json: its character where that can be seen, else one from U+0100 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unseen = (value for value in range(256) if value not in seen)
    table = {value: chr(value) for value in seen} | {value: chr(256 + n) for n, value in enumerate(unseen)}
    return [table[value] for value in range(256)]


_CHARACTERS = _alphabet()


def _written(token: bytes) -> str:
    return "".join(_CHARACTERS[value] for value in token)
