"""How a model is spoken to: what its tokenizer and chat template make of fixed texts, in a few digests.

Those of an artifact are taken from the original's files when it is built. The hash of a file tells less: not what
another release of the library makes of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from llmc.errors import InputError
from llmc.runtime.chat import ChatTemplate, Message
from llmc.runtime.origin import Origin

if TYPE_CHECKING:
    from llmc.runtime.tokenizer import Tokenizer

# Words, code, numbers, spaces of all kinds, scripts with and without them, marks that combine, and emoji.
_TEXT = """The quick brown fox doesn't jump over 1,234,567.89 lazy dogs -- it's "fine" (really).
  def f(x: int) -> str:\n\t\treturn f"{x:>10}"  # comment\r\n\n\n   trailing   spaces\u00a0\u3000
naïve café Ångström \u0065\u0301 ﬁn ½ Ⅷ • Größe; Привет, мир! Γειά σου κόσμε. שלום עולם مرحبا بالعالم
नमस्ते दुनिया 你好，世界。これはテストです。안녕하세요 สวัสดี 👩\u200d👩\u200d👧 🇪🇺 🤖
<div class="a">&nbsp;</div> https://example.com/?q=1&r=%20 C:\\Temp ∑_{i=0}^{n} x_i² ≤ ∞ != <= => :: ..."""
_SAID = "What is 2 + 2?", "4.", "And 3 + 3?"
_USER, _ANSWER, _AGAIN = (
    {"role": role, "content": said} for role, said in zip(("user", "assistant", "user"), _SAID, strict=True)
)
_SYSTEM = {"role": "system", "content": "Be brief."}
_CHATS: tuple[tuple[list[Message], bool], ...] = (
    ([_USER], True),
    ([_USER, _ANSWER, _AGAIN], True),
    ([_SYSTEM, _USER], True),
    ([_USER, _ANSWER], False),
)
_TELLS_TIME = "strftime_now"  # what such a template makes of a chat is another tomorrow


def spoken_to(tokenizer: Tokenizer) -> dict[str, str]:
    """SHA-256 by what it is of: `vocabulary`, how all tokens are written; `encoding`, the tokens of a text in many
    scripts, and the text of these; `chat_template`, if there is one, what it makes of four conversations, or, where
    that depends on the day, its source.
    """
    ids = tokenizer.encode(_TEXT).ids
    found = {
        "vocabulary": _digest(sorted((token, text) for text, token in tokenizer.get_vocab().items())),
        "encoding": _digest([ids, tokenizer.decode(ids)]),
    }
    return found | ({"chat_template": chats} if (chats := _chats(tokenizer.origin)) else {})


def _chats(origin: Origin) -> str | None:
    if ChatTemplate.find(origin) is None:
        return None
    try:
        template = ChatTemplate(origin)
        told: list[Any] = [template.source] if _TELLS_TIME in template.source else []
    except InputError:  # broken, or none is for a chat without tools: it stays so
        return _digest(["none that can be used"])
    for messages, prompted in [] if told else _CHATS:
        try:
            told.append(template.render(messages, add_generation_prompt=prompted))
        except InputError:  # a template may have no place for a system message
            told.append(None)
    return _digest(told)


def _digest(values: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value).encode() + b"\n")
    return digest.hexdigest()
