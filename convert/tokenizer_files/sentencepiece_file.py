"""SentencePiece's model: pieces with scores, and how a text is brought into the form that they are looked for in."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmc.convert.tokenizer_files.description import LONGEST, AddedToken, Description, GivenFile, Part
from llmc.convert.tokenizer_files.merges import pairs
from llmc.errors import InputError

_UNIGRAM, _BPE = 1, 2
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_SPACE = "▁"
_NEVER = -1e6  # the score of what no text is to be made of
# The classes of transformers 4 that begin texts with bos_token where `add_bos_token` is absent.
_BEGIN_BY_DEFAULT = [f"{name}Tokenizer{kind}" for name in ("Llama", "CodeLlama", "Gemma") for kind in ("", "Fast")]


def describe(given: GivenFile) -> tuple[Description, SentencePiece]:
    """The parts of tokenizer.json, and the library with the same file; see `make` for what it takes and raises."""
    settings, proto = given.settings, _read(given.path, given.data)
    pieces, rules = list(proto.pieces), proto.normalizer_spec
    prefix = rules.add_dummy_prefix and settings.get("add_prefix_space") is not False
    # Without it, what follows a special token has no space put in front of it; transformers 4 has it by default.
    legacy = settings.get("legacy") is not False
    added = _added(given.path, pieces, given.listed)
    by_text = {token.text: token for token in added}
    numbers = {"bos_token": proto.trainer_spec.bos_id, "eos_token": proto.trainer_spec.eos_id}
    numbers["unk_token"] = next((n for n, piece in enumerate(pieces) if piece.type == _UNKNOWN), -1)
    own = {name: pieces[number].piece for name, number in numbers.items() if 0 <= number < len(pieces)}
    named = own | dict(given.special)
    begins = settings.get("add_bos_token", settings.get("tokenizer_class") in _BEGIN_BY_DEFAULT) is True
    ends = settings.get("add_eos_token") is True
    first, last = (
        [by_text[named[name]]] if wanted and named.get(name) in by_text else []
        for name, wanted in (("bos_token", begins), ("eos_token", ends))
    )
    stripped = prefix or rules.remove_extra_whitespaces
    strip: list[Part] = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if stripped else []
    steps: list[Part] = [{"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}, {"type": "ByteFallback"}]
    description = Description(
        model=(_unigram if proto.trainer_spec.model_type == _UNIGRAM else _bpe)(proto, added),
        added=added,
        pieces=[piece.piece.replace(_SPACE, " ") for piece in pieces if piece.type in (_NORMAL, _USER_DEFINED)],
        normalizer=_normalizer(rules, prefix and legacy),
        pre_tokenizer=None if legacy or not prefix else _first_alone(),
        decoder={"type": "Sequence", "decoders": [*steps, {"type": "Fuse"}, *strip]},
        begins_with=first,
        ends_with=last,
        settings=own,
        strips=prefix and not legacy,
    )
    return description, SentencePiece(proto, prefix, legacy, added)


class SentencePiece:
    """The original library. A text is divided at its special tokens first, as transformers does."""

    name = "SentencePiece"

    def __init__(self, proto: Any, prefix: bool, legacy: bool, added: Sequence[AddedToken]) -> None:
        self._first = _processor(proto, prefix)
        self._later = _processor(proto, prefix and legacy)
        self._whole = {token.text: token.number for token in added if not token.normalized}
        longest_first = sorted(self._whole, key=len, reverse=True)
        self._divide = re.compile(f"({'|'.join(map(re.escape, longest_first))})" if longest_first else "(?!)()")
        self._any_order = proto.trainer_spec.model_type == _UNIGRAM
        self._without_text = {n for n, piece in enumerate(proto.pieces) if piece.type == _UNKNOWN} | {
            token.number for token in added
        }

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str | None:
        """None for tokens that the library leaves out, or knows nothing of."""
        return None if self._without_text.intersection(ids) else self._first.decode(list(ids))

    def same(self, wanted: Sequence[int], found: Sequence[int]) -> bool:
        """Which of two orders of the same pieces scores better is decided in Unigram by how sums are rounded."""
        return wanted == found or (self._any_order and sorted(wanted) == sorted(found))

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for place, part in enumerate(self._divide.split(text)):
            if part in self._whole:
                ids.append(self._whole[part])
            else:
                ids += (self._later if place else self._first).encode(part)
        return ids


def _processor(proto: Any, prefix: bool) -> Any:
    from sentencepiece import SentencePieceProcessor

    changed, processor = type(proto)(), SentencePieceProcessor()
    changed.CopyFrom(proto)
    changed.normalizer_spec.add_dummy_prefix = prefix
    processor.LoadFromSerializedProto(changed.SerializeToString())
    return processor


def _read(path: Path, data: bytes) -> Any:
    """The protobuf; InputError for another file, and for what tokenizer.json cannot say."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made while it is imported
    try:
        proto.ParseFromString(data)
        if not all(isinstance(text, str) for text in (proto.normalizer_spec.name, *(p.piece for p in proto.pieces))):
            raise ValueError("no UTF-8")  # which protobuf hands over as bytes
        _processor(proto, True)
    except (DecodeError, RuntimeError, ValueError):
        raise InputError(f"{path}: neither a model of SentencePiece nor ranks of tiktoken; download it again") from None
    trainer, kinds = proto.trainer_spec, {piece.type for piece in proto.pieces}
    cannot = {
        "words or characters as tokens": trainer.model_type not in (_UNIGRAM, _BPE),
        "spaces behind words": trainer.treat_whitespace_as_suffix,
        "spaces that are no part of tokens": not proto.normalizer_spec.escape_whitespaces,
        "unused pieces": trainer.model_type == _BPE and _UNUSED in kinds,
        "no piece for what is unknown": _UNKNOWN not in kinds,
        f"pieces of more than {LONGEST:,} characters": any(len(piece.piece) > LONGEST for piece in proto.pieces),
    }
    if found := next((what for what, is_so in cannot.items() if is_so), None):
        raise InputError(
            f"{path}: has {found}, of which no tokenizer.json can be made; look for a copy of the model that has one, "
            "and put that beside the weights"
        )
    return proto


def _added(path: Path, pieces: Sequence[Any], listed: Sequence[AddedToken]) -> list[AddedToken]:
    """Tokens that texts spell out: pieces for control and of users, and what the checkpoint's other files list."""
    found = {
        number: AddedToken(number, piece.piece, piece.type != _USER_DEFINED, normalized=piece.type == _USER_DEFINED)
        for number, piece in enumerate(pieces)
        if piece.type in (_CONTROL, _UNKNOWN, _USER_DEFINED)
    }
    known = {piece.piece: number for number, piece in enumerate(pieces) if number not in found}
    for token in listed:
        inside = token.number < len(pieces)
        replaced = inside and pieces[token.number].piece != token.text and token.number not in found
        if not token.text or replaced or known.get(token.text, token.number) != token.number:
            raise InputError(
                f"{path}: tokenizer_config.json adds token {token.number}, {token.text!r}, whose number or text is "
                "another token's; one of the two files belongs to another model"
            )
        found[token.number] = token
        known[token.text] = token.number
    return list(found.values())


def _bpe(proto: Any, added: Sequence[AddedToken]) -> Part:
    pieces = proto.pieces
    vocabulary = {piece.piece: number for number, piece in enumerate(pieces)}
    order = {piece.piece: -piece.score for piece in pieces if piece.type == _NORMAL}
    merges = pairs(order)
    # SentencePiece merges characters that are no piece themselves: here they need a number, that of their byte.
    for character in sorted({part for pair in merges for part in pair} - vocabulary.keys()):
        byte = vocabulary.get(f"<0x{ord(character):02X}>") if character.isascii() else None
        if byte is not None:
            vocabulary[character] = byte
    renamed = {token.number for token in added}
    vocabulary = {text: number for text, number in vocabulary.items() if number not in renamed}
    vocabulary |= {token.text: token.number for token in added}
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": _unknown(proto, added),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": proto.trainer_spec.byte_fallback,
        "ignore_merges": False,
        "vocab": dict(sorted(vocabulary.items(), key=lambda entry: entry[1])),
        "merges": [pair for pair in merges if all(part in vocabulary for part in pair)],
    }


def _unigram(proto: Any, added: Sequence[AddedToken]) -> Part:
    """Only normal pieces have a score that they are chosen by: bytes are a last resort, the others are added tokens."""
    entries = [[piece.piece, piece.score if piece.type == _NORMAL else _NEVER] for piece in proto.pieces]
    for token in sorted(added):
        entries += [[f"<|no token {number}|>", _NEVER] for number in range(len(entries), token.number + 1)]
        entries[token.number] = [token.text, _NEVER]
    return {
        "type": "Unigram",
        "unk_id": next(number for number, piece in enumerate(proto.pieces) if piece.type == _UNKNOWN),
        "vocab": entries,
        "byte_fallback": proto.trainer_spec.byte_fallback,
    }


def _unknown(proto: Any, added: Sequence[AddedToken]) -> str:
    number = next(number for number, piece in enumerate(proto.pieces) if piece.type == _UNKNOWN)
    return next(token.text for token in added if token.number == number)


def _normalizer(rules: Any, prepend: bool) -> Part:
    steps: list[Part] = []
    if rules.precompiled_charsmap:
        if "nfkc" in rules.name:  # composes sequences that `tokenizers` would look up only the beginning of
            steps.append({"type": "NFC"})
        table = base64.b64encode(rules.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": table})
    if rules.remove_extra_whitespaces:
        steps.append({"type": "Replace", "pattern": {"Regex": " +"}, "content": " "})
        steps.append({"type": "Replace", "pattern": {"Regex": r"\A | \z"}, "content": ""})  # not line breaks
    if prepend:
        steps.append({"type": "Prepend", "prepend": _SPACE})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": _SPACE})
    return {"type": "Sequence", "normalizers": steps}


def _first_alone() -> Part:
    """Puts a space in front of a text, and of nothing else; what has one gets none: see `Description.strips`."""
    return {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "first", "split": False}
