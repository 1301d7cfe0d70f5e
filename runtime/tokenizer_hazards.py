"""Which tokenizers may be used in this process: those whose work grows with the text and no faster.

A tokenizer.json is a small program: chains of replacements that multiply a text, expressions that backtrack, searches
that take the square of a word's length. What published models use is known to be harmless and is recognized here by
its form; everything else is not refused, but runs confined.
"""

from __future__ import annotations

import math
import re
from typing import Any

_MOST_GROWTH = 64  # of a text in a chain of replacements; of known models that of "▁" for a space is the largest, 3
_PARTS: dict[str, set[str]] = {
    "model": {"BPE", "Unigram", "WordLevel"},
    "normalizer": {
        "Sequence",
        "NFC",
        "NFD",
        "NFKC",
        "NFKD",
        "Lowercase",
        "Prepend",
        "Replace",
        "Strip",
        "StripAccents",
    },
    "pre_tokenizer": {"Sequence", "ByteLevel", "Digits", "Metaspace", "Punctuation", "Split", "WhitespaceSplit"},
    "post_processor": {"Sequence", "ByteLevel", "TemplateProcessing"},
    "decoder": {"Sequence", "BPEDecoder", "ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Replace", "Strip"},
}
_NESTED = ("normalizers", "pretokenizers", "processors", "decoders")
_MOST_PARTS = 32  # in a row; each goes through the whole text
_LONGEST_TOKEN = 1000  # characters; a Unigram model looks for tokens this long at every place of a text
_MOST_ITEMS = 2_500_000  # of JSON; of known models Gemma has the most, 1.9 million for 262,000 tokens

# A character of a class, or one character; a few of them, then at most one run that nothing has to follow: the search
# goes through a text once. `(?!\S)` gives back one character.
# `&&` and a class: what is in both; Kimi's letters other than those of Chinese.
_CLASS = r"\[(?:[^\[\]\\]|\\[^pP]|\\[pP]\{\^?\w+\})+(?:(?<!&)&&\[\^?(?:\\[pP]\{\w+\})+\])?\]"
_ATOM = rf"(?:{_CLASS}|\\[pP]\{{\^?\w+\}}|\\[dDsSwWrnt]|[^\\\[\](){{}}|*+?.^$])"
_LITERALS = r"\(\?i:['\w|]+\)"
_BRANCHES = (
    rf"(?:{_ATOM}(?:\?|\{{\d,\d\}})?)*(?:{_ATOM}[+*](?:{_ATOM}[*?])?)?(?:\(\?!\\S\))?",
    rf"{_LITERALS}\??",
    r"\\s\*\[(?:\\r\\n|\r\n)\]\+?",  # Llama 3, Qwen, DeepSeek: white space that ends a line
    # o200k: a word that may begin with capitals; a word of capitals is found by the next branch.
    rf"{_CLASS}\?{_CLASS}[*+]{_CLASS}[+*](?:{_LITERALS}\?)?",
)
_EXPRESSION = re.compile(r"(?:{0})(?:\|(?:{0}))*".format("|".join(_BRANCHES)))


def harmless(described: dict[str, Any], items: int) -> bool:
    """Whether all parts of a tokenizer.json, which has so many items of JSON, are of a known kind."""
    try:
        return (
            items <= _MOST_ITEMS
            and all(_known(described.get(part), kinds) for part, kinds in _PARTS.items())
            and all(_count(described.get(part)) <= _MOST_PARTS for part in _PARTS)
            and all(_growth(described.get(part)) <= _MOST_GROWTH for part in ("normalizer", "pre_tokenizer", "decoder"))
            and _text_occurs_once(described.get("post_processor"))
            and _longest(described) <= _LONGEST_TOKEN
        )
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):  # not the form that it should have
        return False


def _known(part: Any, kinds: set[str]) -> bool:
    if part is None:
        return kinds is not _PARTS["model"]
    if part["type"] not in kinds:
        return False
    if part["type"] == "Sequence":
        return all(_known(each, kinds) for name in _NESTED for each in part.get(name, ()))
    pattern = part.get("pattern")
    return "Regex" not in pattern or linear(pattern["Regex"]) if isinstance(pattern, dict) else True


def linear(expression: str) -> bool:
    """Whether a search for it takes time in proportion to the text."""
    return len(expression) <= 1000 and _EXPRESSION.fullmatch(expression) is not None


def _count(part: Any) -> int:
    """How many parts are in it, itself included."""
    below = [each for name in _NESTED for each in part.get(name, ())] if part is not None else []
    return 1 + sum(_count(each) for each in below)


def _text_occurs_once(processor: Any) -> bool:
    """A template may ask for the tokens of a text as often as it likes."""
    if processor is None:
        return True
    pieces = processor["single"] if processor["type"] == "TemplateProcessing" else ()
    once = len(pieces) <= _LONGEST_TOKEN and sum("Sequence" in piece for piece in pieces) <= 1
    return once and all(_text_occurs_once(each) for each in processor.get("processors", ()))


def _longest(described: dict[str, Any]) -> int:
    """Characters of the longest token."""
    vocabulary = described["model"].get("vocab", ())
    if isinstance(vocabulary, list):  # of a Unigram model: token and its logarithm
        vocabulary = [token for token, _ in vocabulary]
    added = [each["content"] for each in described.get("added_tokens") or ()]
    return max(map(len, (*vocabulary, *added)), default=0)


def _growth(part: Any) -> float:
    """How many times longer a text may become."""
    if part is None:
        return 1
    if part["type"] == "ByteLevel":
        return 2  # bytes beyond ASCII become characters of two
    if part["type"] == "Sequence":
        return math.prod(_growth(each) for name in _NESTED for each in part.get(name, ()))
    if part["type"] in ("NFKC", "NFKD"):
        return 11  # U+FDFA
    if part["type"] == "Prepend":
        return 1 if len(part["prepend"]) <= 16 else math.inf
    if part["type"] != "Replace":
        return 2 if part["type"] in ("NFD", "Lowercase") else 1
    (kind, pattern), length = next(iter(part["pattern"].items())), len(part["content"].encode())
    if kind == "String" and not pattern:
        return math.inf
    return max(1.0, length / len(pattern.encode()) if kind == "String" else length)
