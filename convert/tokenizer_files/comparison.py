"""A tokenizer.json that was made here against the library that the original file was written for."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmc.convert.tokenizer_files.description import Description, Original
from llmc.errors import InputError

_TOGETHER = 40  # tokens in a row, in texts made of tokens
_MOST_ADDED = 200  # tokens that are tried in the middle of a text
TEXTS = (
    "",
    " ",
    "\n",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog. It's what we'd say; they'll agree, WE'VE SEEN IT'S TRUE.",
    "  two spaces  inside   and    behind    ",
    "line one\nline two\r\n\r\nline three\n\n\n\tindented\n \n  \n",
    "tabs\t\tand\vother\fwhite\u00a0space\u2003\u3000\u200b.\u0085",
    "0 1 12 123 1234 12345 1234567890 3.14159 1,000,000 1e-9 0x1F ٣٤٥ १२३ ²³ ½ Ⅷ",
    "def f(x: int) -> list[str]:\n    return [f'{y!r}' for y in range(x)]  # done\n\n\nif __name__ == 'm':\n\tf(3)\n",
    "<div class=\"a\">&amp;</div>\n#include <map>\nstd::map<int> v{1, 2};\nSELECT * FROM t WHERE a <> 'b';\n// ***\n",
    "camelCase PascalCase snake_case SCREAMING_CASE HTTPServer iPhone McDonald's ǅungla",
    "Größe, Übermaß, naïve café, œuvre, Ærøskøbing, Łódź, İstanbul, ıd, ſtreng",
    "Быстрая коричневая лиса перепрыгивает через ленивую собаку. Ёлка, їжак.",
    "Η γρήγορη καφέ αλεπού πηδάει πάνω από το τεμπέλικο σκυλί.",
    "敏捷的棕色狐狸跳过了懒狗。你好，世界！繁體中文與简体字混排ABC中123文。",
    "素早い茶色の狐が怠け者の犬を飛び越える。カタカナとひらがな、ﾊﾝｶｸ、１２３。",
    "다람쥐 헌 쳇바퀴에 타고파. 한국어와 English를 섞어 씁니다.",
    "الثعلب البني السريع يقفز فوق الكلب الكسول، ٢٠٢٤. שועל חום מהיר קופץ מעל הכלב.",
    "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है। สุนัขจิ้งจอกสีน้ำตาลกระโดดข้าม",
    "Cáo nâu nhanh nhẹn nhảy qua chó lười. Cafe\u0301 e\u0308 n\u0303 a\u0323\u0302",
    "😀 👍🏽 👨‍👩‍👧‍👦 🇩🇪🇫🇷 ❤️ ✅ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ☃",
    "∑∫√∞ ≤≥≠ αβγ x² → y₁ ⟨ψ|φ⟩ $\\frac{a}{b}$ © ® ™ € £ ¥ … — – “quoted” ‘single’ «guillemets»",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𠜎𠜱 ﷺ \ufeff\ufffd \U000e0001 \u0600",
    "!!! ??? ... --- === /// \\\\\\ ((())) [[]] {{}} <<>> || && ~~ `` '' \"\" ''' ;;;;;;;;;;;;;;;;",
    "https://example.org/a/b?c=d&e=%20f#g user@example.org C:\\Users\\x ~/.bashrc 2024-01-31T12:34:56.789Z",
    "a" * 70 + " " + "ab" * 40 + " " * 70 + "x" + "\n" * 30 + "-" * 80,
    '{"key": [1, 2.5, null, true], "nested": {"a": "b\\n"}}',
    "I'M you're HE'S don't 'tis o'clock 'LL 'd'd ’s",
    "x ▁ y ▁▁z _ __",
    *(
        f"a{character * count}b"
        for character in " \n\t-="
        for count in (2, 3, 4, 5, 6, 7, 9, 11, 13, 15, 17, 23, 33, 47)
    ),
)


def compare(path: Path, made: bytes, description: Description, original: Original) -> int:
    """How many texts have equal tokens, and are equal again when decoded, which are all of them.

    Raises:
        InputError: with the first text that has not
    """
    from tokenizers import Tokenizer

    try:
        library = Tokenizer.from_buffer(made)
        texts = list(_texts(description))
        expected = original.encode(texts)
        found = [library.encode(text, add_special_tokens=False).ids for text in texts]
        decoded = [library.decode(ids, skip_special_tokens=False) for ids in expected]
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise _refused(
            path, f"cannot be made ({str(error).splitlines()[0][:200] if str(error) else type(error)})"
        ) from error
    for text, wanted, ids, again in zip(texts, expected, found, decoded, strict=True):
        if not original.same(wanted, ids):
            raise _refused(path, f"would make other tokens of {_shown(text)} than {original.name}")
        if again != (again if (known := original.decode(wanted)) is None else known):
            raise _refused(path, f"would spell the tokens of {_shown(text)} otherwise than {original.name}")
    return len(texts)


def _texts(description: Description) -> Iterator[str]:
    """Samples, with the tokens that texts spell out, and texts in which every token of the vocabulary is."""
    added = [token.text for token in description.added]
    for text in (*TEXTS, *_with_tokens(added), *_of_pieces(description.pieces)):
        yield text.lstrip() if description.strips else text


def _with_tokens(added: Sequence[str]) -> Iterator[str]:
    for start in range(0, len(added), _TOGETHER):
        yield "".join(added[start : start + _TOGETHER])
        yield " ".join(added[start : start + _TOGETHER])
    for number, text in enumerate(added[:_MOST_ADDED]):
        before, after = (TEXTS[3 + number * step % (len(TEXTS) - 3)] for step in (1, 7))
        yield from (text, f"{before}{text}{after}", f"{before} {text} {after}")


def _of_pieces(pieces: Sequence[str]) -> Iterator[str]:
    """Each for itself in a line, and next to others that it would not be found with in any language."""
    mixed = list(pieces)
    random.Random(0).shuffle(mixed)
    for between, row in (("\n", pieces), ("", mixed)):
        for start in range(0, len(row), _TOGETHER):
            yield between.join(row[start : start + _TOGETHER])


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 40 else f"{text[:40]}…")


def _refused(path: Path, why: str) -> InputError:
    return InputError(
        f"{path}: a tokenizer.json made from it {why}; look for a copy of the model that has a tokenizer.json, and put "
        "that beside the weights"
    )
