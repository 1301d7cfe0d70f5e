"""The model card says what others wrote without doing it."""

import pytest

from llmc.card import _plain, _table


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "model.layers.0.mlp: dense_mlp, int4-g128, 3 → 4 (5 %)",
            "model.layers.0.mlp: dense_mlp, int4-g128, 3 → 4 (5 %)",
        ),
        ("[x](http://evil.example)", r"\[x\](http\://evil.example)"),
        ("www.evil.example <img src=x> &lt;", r"www\.evil.example \<img src=x\> \&lt;"),
        ("`a` *b* _c_ ~~d~~ | e \\", r"\`a\` \*b\* \_c\_ \~\~d\~\~ \| e \\"),
        ("a\n# b\x1b[31m", r"a\\n# b\\x1b\[31m"),
    ],
)
def test_markdown_of_others_is_text(text: str, shown: str) -> None:
    assert _plain(text) == shown


def test_a_table_keeps_its_cells() -> None:
    assert (
        _table(("a|b", ""), [("c\n\n# d", "| e |")]) == "| a\\|b |  |\n| --- | --- |\n| c\\\\n\\\\n# d | \\| e \\| |\n"
    )
