"""tokenizer.json and what goes with it, from what a GGUF file says of its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmc.convert.gguf.pre_tokenizers import ALIKE, EXPRESSIONS
from llmc.convert.tokenizer_files import CONFIG, TOKENIZER
from llmc.convert.tokenizer_files.description import AddedToken, Description, Part
from llmc.convert.tokenizer_files.merges import pairs
from llmc.errors import InputError

TEMPLATE = "chat_template.jinja"
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5  # gguf.TokenType
_SPACE = "▁"
_PREFIX = "tokenizer.ggml."


def tokenizer_files(path: Path, metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """Make a tokenizer of a file's metadata.

    Args:
        path: Of the file, for errors.
        metadata: All of it.

    Returns:
        Name → content of tokenizer.json, tokenizer_config.json and, where there is one, the chat template.

    Raises:
        InputError: for a kind of tokenizer that is not read
    """
    model, tokens = metadata.get(f"{_PREFIX}model"), metadata.get(f"{_PREFIX}tokens")
    kinds = metadata.get(f"{_PREFIX}token_type") or [_NORMAL] * len(tokens or ())
    if not isinstance(tokens, list) or not isinstance(kinds, list) or len(tokens) != len(kinds):
        raise InputError(f"{path}: its tokens and their types do not fit together; download it again")
    texts = [*tokens, *(metadata.get(f"{_PREFIX}merges") or ()), metadata.get(f"{_PREFIX}pre", "")]
    numbered = [*kinds, *(metadata.get(f"{_PREFIX}scores") or [0.0] * len(tokens))]
    if not all(isinstance(each, str) for each in texts) or not all(isinstance(each, int | float) for each in numbered):
        raise InputError(f"{path}: its tokens are no texts, or what is said of them no numbers; download it again")
    if len(numbered) != 2 * len(tokens):
        raise InputError(f"{path}: its tokens and their scores do not fit together; download it again")
    if len(set(tokens)) < len(tokens):
        raise InputError(f"{path}: several of its tokens are the same; put the model's tokenizer.json beside it")
    added = [
        AddedToken(number, text, kind == _CONTROL)
        for number, (text, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    if model == "gpt2":
        described = _byte_level(path, metadata, tokens, kinds, added)
    elif model == "llama":
        described = _sentencepiece(metadata, tokens, kinds, added)
    else:
        raise InputError(
            f"{path}: a tokenizer of kind {model!r} is not read; put the model's tokenizer.json beside the file"
        )
    numbers = {ours: metadata.get(f"{_PREFIX}{theirs}_token_id") for ours, theirs in _SPECIAL.items()}
    named = {
        name: tokens[number] for name, number in numbers.items() if type(number) is int and 0 <= number < len(tokens)
    }
    begins = metadata.get(f"{_PREFIX}add_bos_token", model == "llama")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": bool(begins), **named}
    files = {TOKENIZER: described.to_json(), CONFIG: _json(settings)}
    template = metadata.get("tokenizer.chat_template")
    return files | ({TEMPLATE: template.encode()} if isinstance(template, str) else {})


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _byte_level(
    path: Path, metadata: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int], added: Sequence[AddedToken]
) -> Description:
    name = metadata.get(f"{_PREFIX}pre", "gpt-2")
    expressions = EXPRESSIONS.get(ALIKE.get(name, name))
    if expressions is None or any(each.endswith("…") for each in expressions):
        raise InputError(
            f"{path}: `tokenizer.ggml.pre` is {name!r}, by which llmc cannot divide texts; put the model's "
            "tokenizer.json beside the file"
        )
    merges = [merge.split(" ") for merge in metadata.get(f"{_PREFIX}merges") or ()]
    if not all(len(merge) == 2 for merge in merges):
        raise InputError(f"{path}: some of its merges are no pairs; put the model's tokenizer.json beside the file")
    splits: list[Part] = [
        {"type": "Split", "pattern": {"Regex": each}, "behavior": "Isolated", "invert": False} for each in expressions
    ]
    byte_level: Part = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    vocabulary = {
        text: number for number, (text, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != _UNUSED
    }
    model = _model(vocabulary, merges, unknown=None, byte_fallback=False)
    model["ignore_merges"] = ALIKE.get(name, name) in ("llama-bpe", "tekken")
    pre_tokenizer = {"type": "Sequence", "pretokenizers": [*splits, byte_level]}
    return Description(model, added, list(tokens), byte_level, pre_tokenizer=pre_tokenizer)


def _sentencepiece(
    metadata: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int], added: Sequence[AddedToken]
) -> Description:
    """llama.cpp merges the neighbors whose union has the highest score, as SentencePiece does."""
    scores = metadata.get(f"{_PREFIX}scores") or [0.0] * len(tokens)
    order = {text: -score for text, score, kind in zip(tokens, scores, kinds, strict=True) if kind == _NORMAL and text}
    vocabulary = {
        text: number for number, (text, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != _UNUSED
    }
    unknown = next((text for text, kind in zip(tokens, kinds, strict=True) if kind == _UNKNOWN), None)
    merges = [list(pair) for pair in pairs(order) if all(part in vocabulary for part in pair)]
    steps: list[Part] = [{"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}]
    ends: list[Part] = []
    if metadata.get(f"{_PREFIX}add_space_prefix", True):
        steps.insert(0, {"type": "Prepend", "prepend": _SPACE})
        ends = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    decoder: Part = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            *ends,
        ],
    }
    model = _model(vocabulary, merges, unknown, byte_fallback=True)
    normalizer = {"type": "Sequence", "normalizers": steps}
    return Description(model, added, list(tokens), decoder, normalizer=normalizer)


def _model(vocabulary: dict[str, int], merges: list[list[str]], unknown: str | None, byte_fallback: bool) -> Part:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": byte_fallback,
        "byte_fallback": byte_fallback,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": merges,
    }
