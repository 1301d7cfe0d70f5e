"""With what texts begin and answers end, by the files that checkpoints have; and tokenizers made to do harm."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.listed_files import list_files
from tokenizers import Tokenizer as Library
from tokenizers import processors

from llmc.errors import InputError
from llmc.runtime import load
from llmc.runtime.tokenizer import Tokenizer
from llmc.runtime.tokenizer_hazards import linear
from llmc.runtime.tokenizer_library import Apart, Here

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}


def template(*pieces: Any) -> dict[str, Any]:
    """A post-processor; "A" is the text."""
    single = [
        {"Sequence": {"id": "A", "type_id": 0}} if each == "A" else {"SpecialToken": {"id": each, "type_id": 0}}
        for each in pieces
    ]
    known = {each: {"id": each, "ids": [(BOS, EOS, PAD).index(each)], "tokens": [each]} for each in (BOS, EOS, PAD)}
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": known}


@pytest.fixture
def folder(embedded: Path, tmp_path: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"):
        shutil.copy(embedded / name, tmp_path)
    return tmp_path


def change(folder: Path, name: str = "tokenizer.json", remove: Any = (), **fields: Any) -> None:
    file = folder / name
    described = json.loads(file.read_text()) if file.exists() else {}
    kept = {key: value for key, value in described.items() if key not in remove}
    file.write_text(json.dumps(kept | fields))


def configure(folder: Path, remove: Any = (), **fields: Any) -> None:
    change(folder, "tokenizer_config.json", remove, **fields)


@pytest.mark.parametrize(
    ("post_processor", "config", "begins", "because"),
    [
        (BYTE_LEVEL, {"add_bos_token": True}, [0], "add_bos_token in tokenizer_config.json"),
        (BYTE_LEVEL, {"add_bos_token": True, "tokenizer_class": "LlamaTokenizerFast"}, [0], "add_bos_token in"),
        (None, {"add_bos_token": True}, [0], "add_bos_token in"),
        (BYTE_LEVEL, {"add_bos_token": "True"}, [0], "add_bos_token in"),
        (BYTE_LEVEL, {"add_bos_token": "false", "tokenizer_class": "LlamaTokenizer"}, [], "add_bos_token in"),
        (BYTE_LEVEL, {"add_bos_token": 1}, [0], "add_bos_token in"),
        (BYTE_LEVEL, {"add_bos_token": None}, [], "no file asks for one"),
        (BYTE_LEVEL, {"add_bos_token": "perhaps"}, [], "no file asks for one"),
        (BYTE_LEVEL, {"add_bos_token": False}, [], "add_bos_token in"),
        (BYTE_LEVEL, {}, [], "no file asks for one"),
        (BYTE_LEVEL, {"tokenizer_class": "LlamaTokenizerFast"}, [0], "what a LlamaTokenizerFast does by default"),
        (BYTE_LEVEL, {"add_bos_token": True, "bos_token": None}, [], "which names no token for it"),
        (BYTE_LEVEL, {"add_bos_token": True, "bos_token": {"content": BOS, "special": True}}, [0], "add_bos_token in"),
        (template(BOS, "A"), {}, [0], "tokenizer.json"),
        (template(BOS, "A"), {"add_bos_token": False}, [0], "tokenizer.json"),
        (template(BOS, "A"), {"add_bos_token": False, "tokenizer_class": "LlamaTokenizer"}, [], "add_bos_token in"),
        (template("A", EOS), {"add_bos_token": True}, [0], "add_bos_token in"),
        ({"type": "Sequence", "processors": [template(BOS, "A"), template(PAD, "A")]}, {}, [2, 0], "tokenizer.json"),
        ({"type": "RobertaProcessing", "cls": [BOS, 0], "sep": [EOS, 1], "trim_offsets": True,
          "add_prefix_space": True}, {}, [0], "tokenizer.json"),
    ],
)  # fmt: skip
def test_what_texts_begin_with(
    folder: Path, post_processor: dict[str, Any], config: Any, begins: list[Any], because: str
) -> None:
    change(folder, post_processor=post_processor)
    configure(folder, ("add_bos_token", "tokenizer_class"), **config)
    tokenizer = Tokenizer(folder, 4096)
    bare = Library.from_file(str(folder / "tokenizer.json")).encode("import os", add_special_tokens=False).ids
    assert tokenizer.encode("import os").ids == begins + bare
    assert tokenizer.encode("import os", add_special_tokens=False).ids == bare
    assert tokenizer.begins_with == begins and because in tokenizer.because
    assert tokenizer.add_bos is bool(begins)


def test_whoever_asks_for_it_decides(folder: Path) -> None:
    assert Tokenizer(folder, 4096, add_bos=False).encode("a").ids == [67]
    change(folder, post_processor=BYTE_LEVEL)
    configure(folder, ("add_bos_token",))
    assert Tokenizer(folder, 4096).encode("a").ids == [67]
    asked = Tokenizer(folder, 4096, add_bos=True)
    assert asked.encode("a").ids == [0, 67] and asked.because == "as asked for"
    assert asked.encode(f"{BOS}a").ids == [0, 67]  # not doubled
    configure(folder, bos_token="<s>")
    with pytest.raises(InputError, match=r"no token that texts could begin with: '<s>' is not among its tokens"):
        Tokenizer(folder, 4096, add_bos=True)
    configure(folder, ("bos_token",))
    with pytest.raises(InputError, match=r"tokenizer_config.json names no bos_token; set add_bos to false"):
        Tokenizer(folder, 4096, add_bos=True)


def test_the_beginning_that_only_special_tokens_map_names(folder: Path) -> None:
    configure(folder, ("bos_token",))
    change(folder, "special_tokens_map.json", bos_token={"content": BOS})
    change(folder, post_processor=BYTE_LEVEL)
    assert Tokenizer(folder, 4096).encode("a").ids == [0, 67]


@pytest.mark.parametrize(
    ("generation", "config", "eos_token", "ends"),
    [
        ([1], 1, EOS, (1,)),
        ([1], 1, BOS, (1, 0)),  # a fine-tune names its end of turn
        ([], 1, None, (1,)),
        ([0], 1, None, (0, 1)),  # a special token
        ([0], 70, None, (0,)),  # another model's number: a word of this one
        ([], 70, None, (70,)),  # all there is
        ([0, 1], None, {"content": EOS}, (0, 1)),
        ([], None, None, ()),
        ([], None, "<unknown>", ()),
        ([9999], None, None, ()),  # this model never says it
    ],
)
def test_what_answers_end_with(
    folder: Path, generation: list[Any], config: int | None, eos_token: dict[str, str] | str | None, ends: Any
) -> None:
    change(folder, "generation_config.json", eos_token_id=generation or None)
    change(folder, "config.json", eos_token_id=config)
    configure(folder, eos_token=eos_token)
    assert Tokenizer(folder, 4096).eos_token_ids == ends


def test_an_artifact_does_as_it_was_built_and_ends_as_its_tokenizer_says(
    trained: Path, embedded: Path, tmp_path: Path
) -> None:
    artifact = shutil.copytree(trained, tmp_path / "artifact")
    with load(artifact, threads=1) as model:  # of an older llmc, which did not write it down
        assert model.encode("a") == [0, 67] and model.artifact.eos_token_ids == {1}
    change(artifact, "llmc.json", tokenizer={"add_bos": False})
    configure(artifact, bos_token=BOS, eos_token=PAD)
    list_files(artifact, "tokenizer_config.json")
    with load(artifact, threads=1) as model:
        assert model.encode("a") == [67] and model.artifact.eos_token_ids == {1, 2}
    with load(artifact, threads=1, add_bos=True) as model:
        assert model.encode("a") == [0, 67]
    change(artifact, "llmc.json", tokenizer={"add_bos": "yes"})
    with pytest.raises(InputError, match=r"llmc\.json: broken manifest"):
        load(artifact, threads=1)


def test_a_text_far_too_long_is_not_read_to_its_end(
    folder: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, read = Tokenizer(folder, 4096), []
    encode = Here.encode
    monkeypatch.setattr(Here, "encode", lambda self, text: read.append(len(text)) or encode(self, text))
    with pytest.raises(InputError, match=r"3,000,000 characters has more than 200 tokens, .*the context of 100; short"):
        tokenizer.encode("abc" * 1_000_000, fits=100)
    assert sum(read) < 20_000
    assert len(tokenizer.encode("import " * 500, fits=1000).ids) == 502
    with load(trained, threads=1) as model, pytest.raises(InputError, match="do not fit the context of 1024; shorten"):
        model.generate("abc" * 1_000_000)


SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
SHORT, END = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"|\s*[\r\n]+|\s+(?!\S)|\s+"
KNOWN = [
    # GPT-2, Llama 3, Qwen 2 and 3.5, three of DeepSeek-V3, o200k, this repository's
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + END,
    SHORT + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + END,
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + SHORT + "?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + SHORT + "?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + END,
    r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\n+ *|\s+(?!\S)|\s+",
    # Kimi
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    + SHORT
    + r"?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    + SHORT
    + r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    + END,
]


@pytest.mark.parametrize("expression", KNOWN)
def test_expressions_of_published_models_are_known(expression: str) -> None:
    assert linear(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "(a+)+$",
        "(a|a)*b",
        "a*a*b",
        r"\s+x",
        "[ab]+[cd]",
        ".*.*=",
        "(?:a|b)+",
        "a{1,9999}",
        r"(\w)\1+",
        "[a&&[b]]+",
        r"[\p{L}&&[(a+)+]]",
    ],
)
def test_others_are_not(expression: str) -> None:
    assert not linear(expression)


@pytest.mark.parametrize("text", ["", "import os\n\n  x = 'ä👍'", BOS + "a"])
def test_confined_tokenizers_say_the_same(folder: Path, text: str) -> None:
    here = Tokenizer(folder, 4096)
    pre = json.loads((folder / "tokenizer.json").read_text())["pre_tokenizer"]
    change(folder, pre_tokenizer={"type": "Sequence", "pretokenizers": [SPLIT | {"pattern": {"Regex": "(?:q)"}}, pre]})
    apart = Tokenizer(folder, 4096)
    assert isinstance(here._library, Here) and isinstance(apart._library, Apart)
    ids = here.encode(text).ids
    assert apart.encode(text).ids == ids
    assert apart.decode(ids) == here.decode(ids)
    assert apart.decode(ids, skip_special_tokens=False) == here.decode(ids, skip_special_tokens=False)
    assert [apart.id_to_token(i) for i in (0, 67, 99999)] == [here.id_to_token(i) for i in (0, 67, 99999)]
    assert apart.get_vocab(with_added_tokens=False) == here.get_vocab(with_added_tokens=False)
    assert apart.record() == here.record()
    assert here.decoder.decode(["Ġa", "Ã©"]) == apart.decoder.decode(["Ġa", "Ã©"]) == " aé"


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


GROW = [replace({"String": "a"}, "a" * 1000)] * 4


@pytest.mark.parametrize(
    "change_to",
    [
        {"pre_tokenizer": SPLIT | {"pattern": {"Regex": "(a+)+$"}}},  # Rust panics: it gives up
        {"normalizer": {"type": "Sequence", "normalizers": GROW}},
        {"normalizer": replace({"Regex": "(a+)+$"}, "b")},
        {"normalizer": replace({"String": ""}, "b")},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAAAAAAAAAAA"}},
        {"decoder": {"type": "Sequence", "decoders": GROW}},
        {"decoder": {"type": "Strip", "content": "a", "start": 10**9, "stop": 10**9}},
        {"post_processor": template("A") | {"single": [{"Sequence": {"id": "B", "type_id": 0}}]}},
        {"post_processor": template("A") | {"single": [{"SpecialToken": {"id": "unknown", "type_id": 0}}]}},
        {"post_processor": {"type": "TemplateProcessing", "single": 1}},
        {"post_processor": 5},
        {"model": {"type": "WordLevel", "vocab": {"q": 0}, "unk_token": "unknown"}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}},
        {"model": None},
        {"normalizer": {"type": "Sequence", "normalizers": GROW},
         "added_tokens": [{"id": 4097, "content": "aa", "normalized": True, "special": False, "single_word": False,
                           "lstrip": False, "rstrip": False}]},
    ],
)  # fmt: skip
def test_tokenizers_made_to_do_harm_and_broken_ones(folder: Path, change_to: Any) -> None:
    change(folder, **change_to)
    with pytest.raises(InputError, match=r"tokenizer\.json: "):
        tokenizer = Tokenizer(folder, 4096)
        tokenizer.encode("hello " + "a" * 50 + "!")
        tokenizer.decode([67, 67, 67])


TEXT = {"Sequence": {"id": "A", "type_id": 0}}


def row(part: dict[str, Any], kind: str, count: int) -> dict[str, Any]:
    return {"type": "Sequence", kind: [part] * count}


@pytest.mark.parametrize(
    "change_to",
    [
        {"pre_tokenizer": row(BYTE_LEVEL | {"use_regex": False}, "pretokenizers", 30)},  # each doubles what is no ASCII
        {"normalizer": row({"type": "Prepend", "prepend": "x" * 16}, "normalizers", 100_000)},
        {"post_processor": template("A") | {"single": [TEXT] * 500_000}},
        {"post_processor": {"type": "Sequence", "processors": [template("A") | {"single": [TEXT] * 9}] * 9}},
        {"model": {"type": "Unigram", "unk_id": 0, "byte_fallback": False, "vocab": [["b", 0.0], ["é" * 10**6, -1.0]]}},
        {"model": {"type": "Unigram", "unk_id": 0, "byte_fallback": False, "vocab": [["b", 0.0, 1], ["c"]]}},
    ],
)
def test_parts_that_are_harmless_only_once_or_short_run_apart(folder: Path, change_to: dict[str, Any]) -> None:
    change(folder, **change_to)
    try:
        tokenizer = Tokenizer(folder, 4096)
        assert isinstance(tokenizer._library, Apart)
        tokenizer.encode("é" * 10)
    except InputError as error:
        assert "tokenizer.json: this tokenizer fails" in str(error)


def test_more_items_than_any_tokenizer_has(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": [' + "[]," * 2_000_001 + "[]]}")
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer \(more than 4,000,000 items\)"):
        Tokenizer(folder, 4096)


@pytest.mark.parametrize("confined", [False, True])
@pytest.mark.parametrize("older", [False, True])
def test_tokens_that_only_the_configuration_adds(folder: Path, older: bool, confined: bool) -> None:
    if confined:
        change(folder, normalizer=replace({"Regex": "(?:q)"}, "q"))
    if older:
        change(folder, "added_tokens.json", **{"<|im_end|>": 4096, "<tool>": 4097, "<far>": 5000})
    else:
        tokens = {"4096": {"content": "<|im_end|>", "special": True}, "4097": {"content": "<tool>"}, "9" * 5000: {}}
        configure(folder, added_tokens_decoder=tokens)
    configure(folder, eos_token="<|im_end|>")
    tokenizer = Tokenizer(folder, 4100)
    assert tokenizer.encode("<tool><|im_end|>", add_special_tokens=False).ids == [4097, 4096]
    assert tokenizer.decode([4097, 4096]) == "<tool>" and tokenizer.eos_token_ids == (1, 4096)


def test_half_a_character_is_not_the_tokenizers_fault(folder: Path) -> None:
    with pytest.raises(InputError, match=r"^a text is no valid text at character 1; give it in UTF-8"):
        Tokenizer(folder, 4096).encode("a\ud800")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"version": ' + b"1" * 5000 + b"}"])
def test_what_is_no_tokenizer(folder: Path, content: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer\.json: "):
        Tokenizer(folder, 4096)


def test_what_training_left_in_the_file_is_taken_out(folder: Path) -> None:
    padding = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 2}
    truncation = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    wanted = Tokenizer(folder, 4096).encode("import os, sys").ids
    change(
        folder,
        padding=padding | {"pad_type_id": 0, "pad_token": PAD},
        truncation=truncation,
        model=model | {"dropout": 0.9},
    )
    assert [Tokenizer(folder, 4096).encode("import os, sys").ids for _ in range(5)] == [wanted] * 5


def test_a_prompt_goes_on_whatever_tokenizer_json_puts_behind_it(folder: Path) -> None:
    library = Library.from_file(str(folder / "tokenizer.json"))
    library.post_processor = processors.TemplateProcessing(single=[BOS, "$A", EOS], special_tokens=[(BOS, 0), (EOS, 1)])
    library.save(str(folder / "tokenizer.json"))
    assert library.encode("a").ids == [0, 67, 1]
    assert Tokenizer(folder, 4096).encode("a").ids == [0, 67]
