"""Models that come with tiktoken's or SentencePiece's file alone: planned, built, loaded here and in transformers."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from support.random_checkpoint import LLAMA, random_checkpoint
from support.tokenizer_files import rank_file, ranks, sentencepiece
from transformers import AutoTokenizer

from llmc import source
from llmc.convert.tokenizer_files.comparison import TEXTS
from llmc.errors import InputError, MachineError
from llmc.pipeline import _Build
from llmc.runtime import load
from llmc.runtime.tokenizer_library import Apart, Here

SMALL: dict[str, Any] = LLAMA | {"intermediate_size": 96, "max_position_embeddings": 128, "hidden_size": 64}
KIMI = {
    "tokenizer_class": "TikTokenTokenizer",
    "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
    "bos_token": "[BOS]",
    "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "lstrip": True},
    "chat_template": "{{ bos_token }}{{ messages[0].content }}<|im_end|>",
    "added_tokens_decoder": {
        "700": {"content": "[BOS]", "special": True},
        "702": {"content": "<|im_end|>", "special": True, "lstrip": True, "rstrip": True, "normalized": True},
        "705": {"content": "<think>", "special": False},
    },
}


@pytest.fixture
def kimi(tmp_path: Path) -> Path:
    folder = random_checkpoint(tmp_path / "kimi", SMALL, vocab_size=710, bos_token_id=700, eos_token_id=702)
    (folder / "tiktoken.model").write_bytes(rank_file(ranks()))
    (folder / "tokenizer_config.json").write_text(json.dumps(KIMI))
    (folder / "tokenization_kimi.py").write_text("raise SystemExit('was run')")
    return folder


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    folder = random_checkpoint(tmp_path / "llama", SMALL, vocab_size=2048, bos_token_id=1, eos_token_id=2)
    (folder / "tokenizer.model").write_bytes(sentencepiece())
    return folder


RULES = [{"match": "dense_mlp", "scheme": "int4-g32", "method": "rtn"}]


def built(llmc: Any, recipe: Any, model: Path) -> Path:
    made = llmc("build", recipe(model=str(model), prune=None, quantize=RULES))
    assert made.exit_code == 0, made.output
    return Path("build/small").resolve()


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_artifact_of_a_model_with_ranks(llmc, recipe, kimi: Path) -> None:
    planned = llmc("plan", recipe(model=str(kimi), prune=None, quantize=RULES))
    assert planned.exit_code == 0, planned.output
    assert not (kimi / "tokenizer.json").exists()
    out = built(llmc, recipe, kimi)
    manifest = json.loads((out / "llmc.json").read_text())
    assert manifest["tokenizer"]["made_from"] == "tiktoken.model"
    digest = hashlib.sha256((kimi / "tiktoken.model").read_bytes()).hexdigest()
    assert manifest["source"]["files"]["tiktoken.model"] == digest
    assert "tokenizer.json" not in manifest["source"]["files"] and "tokenizer.json" in manifest["files"]
    assert "made from tiktoken.model" in llmc("inspect", out).stdout
    assert not [*out.glob("*.py"), *out.glob("tiktoken.model")] and not (kimi / "tokenizer.json").exists()
    theirs = AutoTokenizer.from_pretrained(out)
    with load(out, threads=1) as model:
        assert isinstance(model.tokenizer._library, Here)
        for text in (*TEXTS, "a <|im_end|> b<think>c"):
            assert model.tokenizer.encode(text).ids == theirs.encode(text)
            assert model.tokenizer.decode(theirs.encode(text), False) == theirs.decode(theirs.encode(text)) == text
        assert model.chat_prompt([{"role": "user", "content": "hi"}])[0] == 700
        assert model.artifact.eos_token_ids == {702}


def test_an_artifact_of_a_model_of_sentencepiece(llmc, recipe, llama: Path) -> None:
    """Without tokenizer_config.json, whose absence would leave the class to the model's name."""
    out = built(llmc, recipe, llama)
    theirs = AutoTokenizer.from_pretrained(out)
    assert (theirs.bos_token, theirs.eos_token, theirs.unk_token) == ("<s>", "</s>", "<unk>")
    assert theirs.encode("a")[0] == 1 and 1 not in theirs.encode("a")[1:]
    with load(out, threads=1) as model:
        for text in TEXTS:
            assert model.tokenizer.encode(text).ids == theirs.encode(text)
    assert json.loads((out / "llmc.json").read_text())["tokenizer"]["made_from"] == "tokenizer.model"


def test_one_that_is_not_known_to_be_harmless(llmc, recipe, llama: Path) -> None:
    """The normalizer of Unigram models runs apart, from a file."""
    normalized = {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True, "model_type": "unigram"}
    (llama / "tokenizer.model").write_bytes(sentencepiece(**normalized, vocab_size=900))
    (llama / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": False}))
    out = built(llmc, recipe, llama)
    theirs = AutoTokenizer.from_pretrained(out)
    with load(out, threads=1) as model:
        assert isinstance(model.tokenizer._library, Apart)
        for text in TEXTS:
            assert model.tokenizer.encode(text).ids == theirs.encode(text)


def test_a_build_that_was_interrupted_ends_in_the_same_bytes(
    llmc, recipe, kimi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bytes_of(built(llmc, recipe, kimi))

    def stop(*_: object) -> None:
        raise InputError("stopped here")

    with monkeypatch.context() as patch:
        patch.setattr(_Build, "_target", stop)
        assert llmc("build", tmp_path / "small.yaml", "--fresh").exit_code == 2
    assert Path("build/small.work").exists()
    shutil.rmtree("build/small")
    assert bytes_of(built(llmc, recipe, kimi)) == whole


def test_a_tokenizer_json_is_taken_as_it_is(llmc, recipe, small_model: Path, tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "both", SMALL, vocab_size=300)
    (folder / "tokenizer.json").write_bytes((small_model / "tokenizer.json").read_bytes())
    (folder / "tiktoken.model").write_text("broken")
    out = built(llmc, recipe, folder)
    assert (out / "tokenizer.json").read_bytes() == (small_model / "tokenizer.json").read_bytes()
    assert not (out / "tiktoken.model").exists()
    assert "made_from" not in json.loads((out / "llmc.json").read_text())["tokenizer"]


@pytest.mark.parametrize(
    ("name", "package"),
    [("tiktoken.model", "tiktoken"), ("tokenizer.model", "sentencepiece"), ("x.tiktoken", "tiktoken")],
)
def test_a_library_that_is_missing(llmc, kimi: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
    (kimi / "tiktoken.model").rename(kimi / name)
    monkeypatch.setitem(sys.modules, package, None)
    for command in ("plan", "build"):
        made = llmc(command, kimi)
        assert made.exit_code == 4
        assert f"there is no tokenizer.json, and making one from {name} takes {package}, which is not" in made.stderr
        assert "pip install" in made.stderr


def test_a_pattern_that_is_not_known(llmc, kimi: Path) -> None:
    for kind, named in (("OwnTokenizer", "OwnTokenizer"), (None, "LlamaTokenizer")):
        (kimi / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind} if kind else {}))
        for command in ("plan", "build"):
            made = llmc(command, kimi)
            assert made.exit_code == 2
            assert f"not known of a tokenizer of the class '{named}'; look for a copy" in made.stderr


@pytest.mark.parametrize("known", [True, False])
def test_of_a_hub_model_small_files_come_first(
    monkeypatch: pytest.MonkeyPatch, kimi: Path, tmp_path: Path, known: bool
) -> None:
    if not known:
        (kimi / "tokenizer_config.json").write_text("{}")
    asked: list[list[str]] = []

    def download(repo: str, allow_patterns: list[str], **_: object) -> str:
        asked.append(allow_patterns)
        return str(kimi)

    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: [path.name for path in kimi.iterdir()])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    if known:
        assert source.locate("org/kimi", tmp_path).path == kimi
    else:
        with pytest.raises(InputError, match="not known of a tokenizer of the class"):
            source.locate("org/kimi", tmp_path)
    assert "tiktoken.model" in asked[0] and "*.safetensors" not in asked[0]
    assert len(asked) == 1 + known and ("*.safetensors" in asked[-1]) is known


def test_nothing_is_downloaded_for_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = ["config.json", "model.safetensors", "tiktoken.model"]
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("downloaded"))
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(MachineError, match=r"org/kimi: there is no tokenizer\.json, .* takes tiktoken"):
        source.locate("org/kimi", tmp_path)
