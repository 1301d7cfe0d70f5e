from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from support.tokenizer_files import rank_file, ranks, sentencepiece
from tokenizers import Tokenizer

from llmc.convert.tokenizer_files import MadeTokenizer, make, source_file
from llmc.convert.tokenizer_files.comparison import TEXTS
from llmc.convert.tokenizer_files.description import AddedToken
from llmc.convert.tokenizer_files.known_patterns import TEKKEN
from llmc.convert.tokenizer_files.merges import pairs
from llmc.errors import InputError

KIMI = {
    "tokenizer_class": "TikTokenTokenizer",
    "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
}
SAID = [AddedToken(700, "[BOS]", True), AddedToken(702, "<|im_end|>", True), AddedToken(703, "<think>", False)]
LLAMA = {"tokenizer_class": "LlamaTokenizer"}


def made(
    folder: Path,
    name: str,
    data: bytes,
    settings: dict[str, Any],
    added: list[AddedToken] | None = None,
    **special: str,
) -> MadeTokenizer:
    (folder / name).write_bytes(data)
    return make(folder, 710, settings, special, added or [])


def opened(tokenizer: MadeTokenizer) -> Tokenizer:
    return Tokenizer.from_buffer(tokenizer.files["tokenizer.json"])


def plain(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def test_kimi(tmp_path: Path) -> None:
    import tiktoken

    result = made(tmp_path, "tiktoken.model", rank_file(ranks()), KIMI, SAID)
    assert result.source == "tiktoken.model" and result.texts > len(TEXTS)
    tokenizer = opened(result)
    assert plain(tokenizer, "<think>[BOS]<|im_end|><|reserved_token_701|><|reserved_token_709|>") == [
        703,
        700,
        702,
        701,
        709,
    ]
    assert tokenizer.get_vocab_size() == 710
    pattern = json.loads(result.files["tokenizer.json"])["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    original = tiktoken.Encoding("kimi", pat_str=pattern, mergeable_ranks=ranks(), special_tokens={})
    # Chinese is divided from what is around it, Japanese letters are not.
    assert original.decode_tokens_bytes(original.encode("X中文ab"))[0] == b"X"
    for text in TEXTS:
        assert plain(tokenizer, text) == original.encode(text)
        assert tokenizer.decode(original.encode(text)) == text


def test_it_is_the_same_every_time(tmp_path: Path) -> None:
    first, second = (made(tmp_path, "tiktoken.model", rank_file(ranks()), KIMI, SAID) for _ in range(2))
    assert first == second


def test_qwen(tmp_path: Path) -> None:
    tokenizer = opened(made(tmp_path, "qwen.tiktoken", rank_file(ranks()), {"tokenizer_class": "QWenTokenizer"}))
    assert plain(tokenizer, "<|endoftext|><|im_start|><|extra_204|>") == [700, 701, 907]
    assert plain(tokenizer, "e\u0301") == plain(tokenizer, "é")
    assert len(plain(tokenizer, "123")) == 3


def test_llama_3_as_its_publisher_writes_it(tmp_path: Path) -> None:
    """A tokenizer.model that is no SentencePiece."""
    texts = ("<|begin_of_text|>", "<|start_header_id|>", "<|eot_id|>")
    added = [AddedToken(800 + number, text, True) for number, text in enumerate(texts)]
    result = made(tmp_path, "tokenizer.model", rank_file(ranks()), {}, added)
    assert opened(result).encode("a").ids == [800, ranks()[b"a"]]


def test_ranks_with_gaps_and_special_tokens_in_and_behind_them(tmp_path: Path) -> None:
    spread = {token: rank + 100 * (rank >= 300) for token, rank in ranks().items()}
    added = [AddedToken(350, "[A]", True), AddedToken(5000, "[B]", True)]
    tokenizer = opened(made(tmp_path, "tiktoken.model", rank_file(spread), KIMI, added))
    assert plain(tokenizer, "[A][B]") == [350, 5000]
    assert max(plain(tokenizer, " ".join(TEXTS))) > 399


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x00\x01\x02", "not a file of tiktoken"),
        (b"", "not a file of tiktoken"),
        (rank_file({b"a": 0}), "255 of the 256 bytes are no tokens"),
        (rank_file(ranks()) + b"YWJj\n", "line 701 is not a token in base64 and its rank"),
        (rank_file(ranks()) + b"!!!! 900\n", "line 701 is not a token"),
        (rank_file(ranks()) + b"YQ== 900\n", "token 701 is too long, repeated or out of range"),
        (rank_file(ranks()) + rank_file({b"a" * 1001: 900}), "token 701 is too long"),
        (rank_file(ranks()) + b"//// -900\n", "token 701 is too long, repeated or out of range"),
        (rank_file(ranks()) + b"//////8= 699\n", "two tokens have one rank"),
    ],
)
def test_broken_ranks(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(InputError, match=rf"tiktoken\.model: {said}.*; download it again"):
        made(tmp_path, "tiktoken.model", data, KIMI)


@pytest.mark.parametrize("added", [AddedToken(5, "[A]", True), AddedToken(900, "a", True), AddedToken(900, "", True)])
def test_added_tokens_of_another_model(tmp_path: Path, added: AddedToken) -> None:
    with pytest.raises(InputError, match="one of the two files belongs to another model"):
        made(tmp_path, "tiktoken.model", rank_file(ranks()), KIMI, [added])


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"tokenizer_class": "OddTokenizer"}, "of the class 'OddTokenizer'"), ({}, "without tokenizer_class in")],
)
def test_an_unknown_pattern_is_asked_for(tmp_path: Path, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=rf"not known of a tokenizer {named}.* has a tokenizer\.json, and put that"):
        made(tmp_path, "tiktoken.model", rank_file(ranks()), settings)


def tekken(**changes: Any) -> dict[str, Any]:
    """Seven hundred tokens, of which the model knows 690, behind ten for control."""
    control = [
        {"rank": number, "token_str": text, "is_control": True}
        for number, text in enumerate(["<unk>", "<s>", "</s>", "[INST]"])
    ]
    tokens = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for token, rank in ranks().items()
    ]
    config = {"pattern": TEKKEN, "num_vocab_tokens": 700, "default_vocab_size": 700, "default_num_special_tokens": 10}
    return {"config": config | changes, "vocab": tokens, "special_tokens": control}


def test_tekken(tmp_path: Path) -> None:
    import tiktoken

    result = made(tmp_path, "tekken.json", json.dumps(tekken()).encode(), {})
    tokenizer = opened(result)
    assert plain(tokenizer, "[INST]<SPECIAL_9>") == [3, 9] and tokenizer.get_vocab_size() == 700
    assert tokenizer.encode("a").ids == [1, 10 + ranks()[b"a"]]
    known = {token: rank for token, rank in ranks().items() if rank < 690}
    original = tiktoken.Encoding("tekken", pat_str=TEKKEN, mergeable_ranks=known, special_tokens={})
    for text in TEXTS:
        assert plain(tokenizer, text) == [10 + rank for rank in original.encode(text)]
    settings = json.loads(result.files["tokenizer_config.json"])
    assert (settings["bos_token"], settings["eos_token"], settings["fix_mistral_regex"]) == ("<s>", "</s>", True)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "no vocabulary of tekken"),
        (tekken(default_vocab_size="many"), "no vocabulary of tekken"),
        (tekken(default_num_special_tokens=2), "its tokens for control do not fit in front of the others"),
        (tekken(pattern="(a+)+b"), r"divides texts by an expression that is not known; look for a copy of the model"),
        (tekken() | {"special_tokens": None}, "lists no tokens for control; look for a copy"),
        (tekken(default_vocab_size=100), "166 of the 256 bytes are no tokens"),
    ],
)
def test_a_broken_tekken(tmp_path: Path, document: Any, said: str) -> None:
    with pytest.raises(InputError, match=rf"tekken\.json: {said}"):
        made(tmp_path, "tekken.json", json.dumps(document).encode(), {})


MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Llama 2": ({}, LLAMA),
    "Mistral, not legacy": ({}, LLAMA | {"legacy": False}),
    "no space in front": ({"add_dummy_prefix": False}, LLAMA),
    "not asked for one": ({}, LLAMA | {"add_prefix_space": False, "legacy": False}),
    "Gemma": (
        {"add_dummy_prefix": False, "user_defined_symbols": ["<b>", "\u2581\u2581", "\u2581\u2581\u2581", "<start>"]},
        {"tokenizer_class": "GemmaTokenizer"},
    ),
    "no bytes": ({"byte_fallback": False}, LLAMA),
    "control symbols": ({"control_symbols": ["[INST]", "[/INST]"]}, LLAMA),
    "Unigram": ({"model_type": "unigram", "vocab_size": 900}, LLAMA),
    "Unigram, normalized": (
        {
            "model_type": "unigram",
            "vocab_size": 700,
            "normalization_rule_name": "nmt_nfkc",
            "remove_extra_whitespaces": True,
        },
        {},
    ),
    "BPE, normalized": ({"normalization_rule_name": "nfkc", "remove_extra_whitespaces": True}, LLAMA),
}


@pytest.mark.parametrize("kind", MODELS)
def test_sentencepiece(tmp_path: Path, kind: str) -> None:
    """What `make` returns has been compared; here the library is asked once more, without its help."""
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    options, settings = MODELS[kind]
    data = sentencepiece(**options)
    tokenizer = opened(made(tmp_path, "tokenizer.model", data, settings))
    model, original = sentencepiece_model_pb2.ModelProto.FromString(data), SentencePieceProcessor()
    model.normalizer_spec.add_dummy_prefix &= settings.get("add_prefix_space") is not False
    original.LoadFromSerializedProto(model.SerializeToString())
    for text in TEXTS:
        text = text.lstrip() if settings.get("legacy") is False else text
        found, wanted = plain(tokenizer, text), original.encode(text)
        if options.get("model_type") == "unigram":  # where sums of scores are equal, the order is left to rounding
            found, wanted = sorted(found), sorted(wanted)
        assert found == wanted, text
    assert tokenizer.decode(original.encode("Hello, world!")) == "Hello, world!"


def test_what_follows_a_special_token(tmp_path: Path) -> None:
    data = sentencepiece()
    legacy, other = (
        opened(made(tmp_path, "tokenizer.model", data, LLAMA | {"legacy": each})) for each in (True, False)
    )
    assert legacy.encode("x</s>The", add_special_tokens=False).tokens[-1].startswith("▁")
    assert not other.encode("x</s>The", add_special_tokens=False).tokens[2].startswith("▁")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (LLAMA, [1]),
        (LLAMA | {"add_bos_token": False}, []),
        ({"tokenizer_class": "YiTokenizer", "auto_map": {}}, []),
        ({"add_bos_token": True, "add_eos_token": True}, [1, 2]),
    ],
)
def test_what_texts_begin_and_end_with(tmp_path: Path, settings: dict[str, Any], expected: list[int]) -> None:
    tokenizer = opened(made(tmp_path, "tokenizer.model", sentencepiece(), settings))
    assert [token for token in tokenizer.encode("The").ids if token in (1, 2)] == expected


def test_tokens_beyond_the_pieces(tmp_path: Path) -> None:
    added = [AddedToken(2000, "<|im_start|>", True), AddedToken(2005, "<|im_end|>", False)]
    for options in ({}, {"model_type": "unigram", "vocab_size": 900}):
        tokenizer = opened(made(tmp_path, "tokenizer.model", sentencepiece(**options), LLAMA, added))
        ids = plain(tokenizer, "a<|im_start|>b<|im_end|>")
        assert [token for token in ids if token >= 2000] == [2000, 2005]
        assert tokenizer.id_to_token(2005) == "<|im_end|>"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model_type": "char"}, "has words or characters as tokens, of which no tokenizer.json can be made"),
        ({"treat_whitespace_as_suffix": True}, "has spaces behind words"),
        (
            {"user_defined_symbols": ["<sep>"]},
            "would make other tokens of '.*<sep>.*' than SentencePiece; look for a copy",
        ),
    ],
)
def test_what_no_tokenizer_json_can_be_made_of(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        made(tmp_path, "tokenizer.model", sentencepiece(**options), LLAMA)


@pytest.mark.parametrize("data", [b"", b"\x00\x01garbage", b"{}", "cut", b"ident", b"<0x60>", "▁the".encode()])
def test_a_broken_model(tmp_path: Path, data: bytes | str) -> None:
    """Also where a byte is no UTF-8 any more: in the name of the normalizer, of a byte and of a piece."""
    whole = sentencepiece()
    if isinstance(data, str):
        data = whole[:5000]
    elif data in whole and data:
        data = whole.replace(data, data[:-1] + b"\xff")
    with pytest.raises(InputError, match=r"tokenizer\.model: neither a model of SentencePiece nor ranks of tiktoken"):
        made(tmp_path, "tokenizer.model", data, LLAMA)


def test_a_difference_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if merges were listed in the wrong order."""
    monkeypatch.setattr("llmc.convert.tokenizer_files.tiktoken_file.pairs", lambda order: pairs(order)[::-1])
    with pytest.raises(InputError, match=r"tiktoken\.model: .* would make other tokens of .* than tiktoken; look for"):
        made(tmp_path, "tiktoken.model", rank_file(ranks()), KIMI)


def test_merges() -> None:
    assert pairs({"a": 0, "b": 1, "c": 2, "bc": 3, "abc": 4, "ab": 5}) == [("b", "c"), ("a", "bc"), ("a", "b")]
    assert pairs({"a": 0, "b": 0, "ab": 2, "ac": 1, "abdd": 3}) == [("a", "c"), ("a", "b")]
    tied = pairs({"▁": 0, "▁▁": 9, "▁▁▁": 9})
    assert tied == [("▁", "▁"), ("▁▁", "▁"), ("▁", "▁▁")]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["tiktoken.model", "tokenizer.model"], "tiktoken.model"),
        (["qwen.tiktoken", "config.json"], "qwen.tiktoken"),
        (["spiece.model"], "spiece.model"),
        (["tekken.json", "params.json"], "tekken.json"),
        (["vocab.json", "merges.txt", "tokenizer.model.v3"], None),
    ],
)
def test_which_file(names: list[str], found: str | None) -> None:
    assert source_file(names) == found
