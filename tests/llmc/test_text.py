"""Calibration and check text never share a document and are the same in every run."""

import os
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from llmc.calibration_recipe import PYTHON_DOCS, Calibration, Check
from llmc.convert.checkpoint import Checkpoint
from llmc.errors import InputError
from llmc.mixes import known_mixes
from llmc.runtime.tokenizer import Tokenizer as RuntimeTokenizer
from llmc.text import Texts, read_check, read_texts
from llmc.text_sources import python_documents, require_texts


@pytest.fixture
def checkpoint(small_model: Path) -> Checkpoint:
    return Checkpoint.open(small_model)


def texts(checkpoint: Checkpoint, base: Path, calibration: str, check: str, seed: int = 0) -> Texts:
    return read_texts(
        Calibration(text=calibration, samples=6, length=32, seed=seed), Check(text=check, tokens=128), checkpoint, base
    )


def test_python_documents_are_split_by_name() -> None:
    documents = list(python_documents())
    held_out = {text for out, text in documents if out}
    train = {text for out, text in documents if not out}
    assert 0.02 < len(held_out) / len(documents) < 0.12
    assert not held_out & train


def test_deterministic_and_seeded(checkpoint: Checkpoint) -> None:
    first, again = (texts(checkpoint, Path(), PYTHON_DOCS, PYTHON_DOCS) for _ in range(2))
    assert first.key() == again.key()
    other = texts(checkpoint, Path(), PYTHON_DOCS, PYTHON_DOCS, seed=1)
    assert (first.calibration != other.calibration).any()
    assert (first.check == other.check).all()
    assert first.calibration.shape == (6, 32)
    assert first.check.shape == (1, 128)
    assert first.calibration.dtype == np.int64


def whole_lines(checkpoint: Checkpoint, texts: Texts) -> list[set[str]]:
    """Lines of seven digits that were not cut, of the calibration and of the check."""
    tokenizer = Tokenizer.from_file(str(checkpoint.path / "tokenizer.json"))
    lines = [tokenizer.decode(part.ravel().tolist()).split() for part in (texts.calibration, texts.check)]
    return [{line for line in part if len(line) == 7 and line.isdigit()} for part in lines]


def test_one_file_for_both_is_split(checkpoint: Checkpoint, tmp_path: Path) -> None:
    # Every line is its own number: what is in both texts would be seen.
    (tmp_path / "t.txt").write_text("".join(f"{number:07d}\n" for number in range(20_000)))
    both = read_texts(
        Calibration(text="t.txt", samples=900, length=128), Check(text="t.txt", tokens=12800), checkpoint, tmp_path
    )
    whole = whole_lines(checkpoint, both)
    assert len(whole[0]) > 10_000
    assert len(whole[1]) > 1_000
    assert not whole[0] & whole[1]
    assert "every 5th piece" in both.note


def test_documents_end_with_the_end_token(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word " * 5000)  # one line: one document
    (tmp_path / "b.txt").write_text("other " * 5000)
    both = read_texts(
        Calibration(text="a.txt", samples=195, length=128), Check(text="b.txt", tokens=128), checkpoint, tmp_path
    )
    assert (both.calibration == 1).sum() == 0  # 24,960 of 25,000 characters
    with pytest.raises(InputError, match="25,001 tokens"):  # the document and its end
        read_texts(
            Calibration(text="a.txt", samples=196, length=128), Check(text="b.txt", tokens=128), checkpoint, tmp_path
        )


@pytest.mark.parametrize("text", ["missing.txt", "builtin:python-dcos"])
def test_missing(checkpoint: Checkpoint, tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=text):
        texts(checkpoint, tmp_path, text, PYTHON_DOCS)


def test_not_text(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "t.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        texts(checkpoint, tmp_path, "t.bin", PYTHON_DOCS)


def test_a_text_is_a_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, said in {"/dev/zero": "is a device", str(tmp_path): "holds no file of text", "fifo": "is a FIFO"}.items():
        with pytest.raises(InputError, match=said):
            texts(checkpoint, tmp_path, name, PYTHON_DOCS)


def test_line_ends_are_those_of_python(checkpoint: Checkpoint, tmp_path: Path) -> None:
    text = "".join(f"{number:07d}\n" for number in range(20_000))
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "b.txt").write_bytes(text.replace("\n", "\r\n").encode())
    one, other = (texts(checkpoint, tmp_path, name, PYTHON_DOCS) for name in ("a.txt", "b.txt"))
    assert one.key() == other.key()


def test_sources_get_their_shares(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * 20_000)
    (tmp_path / "b.txt").write_text("b" * 20_000)
    calibration = Calibration.model_validate(
        {"text": [{"text": "a.txt", "weight": 3}, "b.txt"], "samples": 16, "length": 64}
    )
    read = read_texts(calibration, Check(tokens=128), checkpoint, tmp_path)
    counts = {int(token): int((read.calibration == token).sum()) for token in np.unique(read.calibration)}
    assert sorted(counts.values()) == [256, 768]
    assert [(each.text, each.documents, each.tokens) for each in read.read["calibration"]] == [
        ("a.txt", 1, 768),
        ("b.txt", 1, 256),
    ]
    assert read.lines()[1] == "calibration: b.txt: 256 tokens of 1 of 1 document"
    assert read.note.startswith("calibration a.txt and b.txt, check builtin:python-docs")
    with pytest.raises(InputError, match=r"b.txt has 20,001 tokens, but its share of 400 windows of 128 is 25,600"):
        more = calibration.model_copy(update={"samples": 400, "length": 128, "text": ["b.txt", "builtin:python-docs"]})
        read_texts(Calibration.model_validate(dict(more)), Check(tokens=128), checkpoint, tmp_path)


def test_one_of_several_sources_serves_the_check_too(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * 20_000)
    (tmp_path / "t.txt").write_text("".join(f"{number:07d}\n" for number in range(4_000)))
    calibration = Calibration.model_validate({"text": ["a.txt", "t.txt"], "samples": 64, "length": 64})
    both = read_texts(calibration, Check(text="t.txt", tokens=1280), checkpoint, tmp_path)
    assert "t.txt: every 5th piece for the check" in both.note
    whole = whole_lines(checkpoint, both)
    assert len(whole[0]) > 100 < len(whole[1]) and not whole[0] & whole[1]


def test_mixes(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(known_mixes()) == {"chat", "code", "prose"}
    for name in known_mixes():
        require_texts(Calibration(text=f"mix:{name}"), Check(), tmp_path)
    (tmp_path / "three.yaml").write_text("- {text: a.txt, weight: 1}\n- {text: b.txt, weight: 3}\n")
    monkeypatch.setattr("llmc.mixes.known_mixes", lambda: {"three": tmp_path / "three.yaml"})
    calibration = Calibration.model_validate(
        {"text": [{"text": "mix:three", "weight": 2}, "a.txt"], "samples": 3, "length": 16}
    )
    assert calibration.shares(128) == [("a.txt", 24), ("b.txt", 24)]
    with pytest.raises(InputError, match=r"calibration.text: unknown mix 'tree'; did you mean 'three'"):
        texts(checkpoint, tmp_path, "mix:tree", PYTHON_DOCS)
    with pytest.raises(InputError, match=r"check.text: a mix is for the calibration"):
        texts(checkpoint, tmp_path, PYTHON_DOCS, "mix:three")


def test_each_source_of_the_check_has_windows_of_its_own(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n" * 2000)
    check = Check.model_validate({"text": ["a.txt", {"text": "b.txt", "weight": 3}], "tokens": 512, "length": 64})
    read = read_texts(Calibration(samples=2, length=32), check, checkpoint, tmp_path)
    assert [(each.text, each.windows, each.tokens) for each in read.check_read] == [
        ("a.txt", 2, 128),
        ("b.txt", 6, 384),
    ]
    tokenizer = Tokenizer.from_file(str(checkpoint.path / "tokenizer.json"))
    letters = [{*tokenizer.decode(row.tolist()).split()} for row in read.check]
    assert letters == [{"a"}] * 2 + [{"b"}] * 6
    assert read.note.endswith("check a.txt and b.txt, which share no document")
    alone, found = read_check(check, checkpoint, tmp_path, RuntimeTokenizer(checkpoint.path, 260))
    assert (alone == read.check).all() and found == read.check_read
    few = check.model_copy(update={"tokens": 64})
    with pytest.raises(InputError, match=r"check.text a.txt would get none of 1 windows of 64 tokens; give more"):
        read_texts(Calibration(samples=2, length=32), few, checkpoint, tmp_path)
    with pytest.raises(InputError, match=r"check.text: a mix is for the calibration"):
        read_check(
            Check.model_validate({"text": ["a.txt", "mix:chat"]}),
            checkpoint,
            tmp_path,
            RuntimeTokenizer(checkpoint.path, 260),
        )
