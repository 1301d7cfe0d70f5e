"""The bytes of single tokens: together they are the text, whatever kind of vocabulary writes them."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers

from llmc.runtime.token_bytes import TokenBytes, shown
from llmc.runtime.tokenizer import Tokenizer

TEXT = 'def naïve(x):\n    return "日本 🎉"  # why'


def test_bytes_of_byte_level_tokens_make_up_the_text(embedded: Path) -> None:
    tokenizer = Tokenizer(embedded, 4096)
    found = TokenBytes(tokenizer)
    ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
    assert b"".join(found(token) for token in ids).decode() == TEXT
    assert any(shown(found(token)).startswith("bytes:\\x") for token in ids)
    assert tokenizer.bos_token_id is not None and tokenizer.bos_token
    assert found(tokenizer.bos_token_id) == tokenizer.bos_token.encode()
    assert found(10**6) == b""


def test_bytes_of_sentencepiece_tokens_make_up_the_text(tmp_path: Path) -> None:
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", *"defxwhyrtun():", "▁x", "▁why", "de", "def"]
    vocabulary = {"<unk>": 0} | {piece: place + 1 for place, piece in enumerate(dict.fromkeys(pieces))}
    merges = [("▁", "x"), ("d", "e"), ("de", "f")]
    library = Library(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    library.normalizer = normalizers.Replace(" ", "▁")
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path, len(vocabulary))
    found = TokenBytes(tokenizer)
    ids = tokenizer.encode("def x 日").ids
    assert b"".join(found(token) for token in ids).decode() == "def x 日"
    assert [found(token) for token in ids[:2]] == [b"def", b" x"] and shown(found(ids[-1])) == "bytes:\\xa5"


@pytest.mark.parametrize(("data", "text"), [(b" the", " the"), (b"\xe2\x80", "bytes:\\xe2\\x80"), (b"", "")])
def test_bytes_that_are_no_text_are_spelled_out(data: bytes, text: str) -> None:
    assert shown(data) == text
