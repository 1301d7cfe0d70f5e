"""What the Python code of published tokenizers says, and no other file of theirs: facts, by the name of the class.

A rank file of tiktoken has tokens alone. The expression that divides a text before anything is merged stands in the
code beside it, which is not run here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

# Of tekken.json, which has it in it: what is not this one is not taken from a stranger's file.
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = (rf"[{kinds}\p{{Lm}}\p{{Lo}}\p{{M}}&&[^\p{{Han}}]]" for kinds in (r"\p{Lu}\p{Lt}", r"\p{Ll}"))
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_KIMI = "|".join(
    (
        r"[\p{Han}]+",
        f"{_BEFORE}{_UPPER}*{_LOWER}+{_ENDINGS}?",
        f"{_BEFORE}{_UPPER}+{_LOWER}*{_ENDINGS}?",
        r"\p{N}{1,3}",
        _REST,
    )
)


@dataclass(frozen=True)
class Facts:
    """Of one tokenizer.

    Attributes:
        pattern: What a text is divided by; everything that it finds is merged for itself.
        placeholder: How tokens beyond the ranks are called that tokenizer_config.json does not list, with their number.
        named: Tokens that follow upon the last rank.
        begins_with: In front of every text.
        nfc: Whether texts are brought into Unicode's form NFC.
    """

    pattern: str
    placeholder: str | None = None
    named: tuple[str, ...] = ()
    begins_with: tuple[str, ...] = ()
    nfc: bool = False


_CLASSES = {
    # tokenization_moonshot.py, tokenization_kimi.py: Moonlight, Kimi-K2 and later
    "TikTokenTokenizer": Facts(_KIMI, placeholder="<|reserved_token_{}|>"),
    # tokenization_qwen.py, of the first generation
    "QWenTokenizer": Facts(
        rf"{_ENDINGS}|{_BEFORE}\p{{L}}+|\p{{N}}|{_REST}",
        named=("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205))),
        nfc=True,
    ),
}
# Meta's own file, beside tokenizer_config.json as Hugging Face has it
_LLAMA3 = Facts(rf"{_ENDINGS}|{_BEFORE}\p{{L}}+|\p{{N}}{{1,3}}|{_REST}", begins_with=("<|begin_of_text|>",))


def facts(tokenizer_class: object, added: Collection[str]) -> Facts | None:
    """What is known of a class, or of a tokenizer of no class of its own by the tokens that were added to it."""
    if isinstance(tokenizer_class, str) and tokenizer_class in _CLASSES:
        return _CLASSES[tokenizer_class]
    generic = tokenizer_class in (None, "LlamaTokenizer", "PreTrainedTokenizer", "PreTrainedTokenizerFast")
    return _LLAMA3 if generic and {"<|begin_of_text|>", "<|start_header_id|>", "<|eot_id|>"} <= set(added) else None
