"""How byte-level tokenizers divide a text before they merge bytes: the names that llama.cpp has for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_BYTE_LEVEL = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGITS = r"\p{N}"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+END|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*END|"
    r"DIGITS| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PUNCTUATED = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_HAN = "[一-龥ࠀ-一가-퟿]+"
# By llama.cpp's name: the expressions by which a tokenizer.json divides, one after the other. One that ends in … begins
# so: it goes on with all letters that have two cases.
EXPRESSIONS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_BYTE_LEVEL,),
    "smollm": (_DIGITS, _BYTE_LEVEL),
    "llama-bpe": (_WORDS.replace("DIGITS", r"\p{N}{1,3}"),),
    "qwen2": (_WORDS.replace("DIGITS", _DIGITS),),
    "tekken": (_CASED.replace("END", "").replace("DIGITS", _DIGITS),),
    "gpt-4o": (_CASED.replace("END", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?").replace("DIGITS", r"\p{N}{1,3}"),),
    "deepseek-v3": (r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _PUNCTUATED),
    "deepseek-llm": (r"[\r\n]", r"\s?[A-Za-zµÀ-ÖØ-ö…", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _HAN, _DIGITS),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, _DIGITS),
}
# Other names for the same expressions.
ALIKE = {
    "llama-bpe": "llama-bpe", "llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe",
    "deepseek-r1-qwen": "qwen2", "megrez": "qwen2", "starcoder": "smollm", "refact": "smollm", "command-r": "smollm",
    "llama4": "gpt-4o", "exaone4": "gpt-2", "phi-2": "gpt-2", "olmo": "gpt-2", "mpt": "gpt-2", "hunyuan": "qwen2",
}  # fmt: skip


def name_of(pre_tokenizer: dict[str, Any] | None) -> str | None:
    """Return llama.cpp's name for how a tokenizer.json divides texts; None: it has none."""
    try:
        found = tuple(_expressions(pre_tokenizer))
    except (KeyError, TypeError, AttributeError):
        return None
    return next((name for name, known in EXPRESSIONS.items() if _alike(found, known)), None)


def is_byte_level(described: dict[str, Any]) -> bool:
    """Whether the tokens of a tokenizer.json are bytes in GPT-2's spelling."""

    def kinds(part: Any) -> list[str]:
        if not isinstance(part, dict):
            return []
        parts = part.get("pretokenizers") or part.get("decoders") or [part]
        return [str(each.get("type")) for each in parts if isinstance(each, dict)]

    return any("ByteLevel" in kinds(described.get(part)) for part in ("pre_tokenizer", "decoder"))


def _expressions(part: dict[str, Any] | None) -> Iterator[str]:
    if part is None:
        return
    if part["type"] == "Sequence":
        for each in part["pretokenizers"]:
            yield from _expressions(each)
    elif part["type"] == "Split":
        yield _escaped(part["pattern"]["Regex"])
    elif part["type"] == "Digits":
        yield _DIGITS if part.get("individual_digits") else r"\p{N}+"
    elif part["type"] == "ByteLevel":
        if part.get("use_regex", True):
            yield _BYTE_LEVEL
    else:
        yield str(part["type"])


def _alike(found: tuple[str, ...], known: tuple[str, ...]) -> bool:
    return len(found) == len(known) and all(
        expression.startswith(wanted[:-1]) if wanted.endswith("…") else expression == wanted
        for expression, wanted in zip(found, known, strict=True)
    )


def _escaped(expression: str) -> str:
    """One spelling of line ends: some files have the characters themselves."""
    return expression.replace("\r", r"\r").replace("\n", r"\n").replace('\\"', '"').replace('"', '\\"')
