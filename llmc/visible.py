"""Characters that do something to a terminal instead of standing in it: shown as what they are.

Names of tensors and files, licenses, messages of a hub and what a model says come from others. Printed as they are,
they could set a terminal's clipboard, hide a line, or turn it around.

A leaf module: every room may import it.
"""

from __future__ import annotations

import re

# C0, DEL and C1, line and paragraph separators, overrides of the direction of writing, halves of characters.
_ALL = "\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_UNSEEN = re.compile(f"[{_ALL}]")
_UNSEEN_IN_TEXT = re.compile(f"(?![\n\t])[{_ALL}]")  # lines and tabs are text


def unseen(text: str) -> str | None:
    """The first such character, or line end or tab."""
    found = _UNSEEN.search(text)
    return found[0] if found else None


def visible(text: str) -> str:
    r"""The text with `\x1b` for an escape, and so on; line ends and tabs stay."""
    return _UNSEEN_IN_TEXT.sub(lambda found: ascii(found[0])[1:-1], text)


def visible_line(text: str) -> str:
    r"""As `visible`, in one line: `\n` for a line end."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


def visible_json(text: str) -> str:
    """JSON that means the same: such characters can only be part of its strings."""
    return _UNSEEN_IN_TEXT.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
