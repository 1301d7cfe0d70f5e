"""Text that a model writes itself: the same every time, whole chats, and written once."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

import llmc
from llmc import self_text
from llmc.calibration_recipe import Calibration, Check
from llmc.contracts.progress import Silent
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import CausalLM
from llmc.errors import InputError, MachineError
from llmc.quant.layerwise import QuantizeOptions
from llmc.runtime.tokenizer import Tokenizer
from llmc.self_text import SelfText
from llmc.sensitivity import sensitivity_key
from llmc.text import read_texts

TEMPLATE = (
    "<bos>S.{% for m in messages %}{{ m.role[0] }}:{{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


@pytest.fixture
def checkpoint(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    monkeypatch.setattr(self_text, "_ROWS", 4)
    return Checkpoint.open(Path(shutil.copytree(small_model, tmp_path / "model")))


def written(
    checkpoint: Checkpoint, count: int, seed: int = 0, folder: Path | None = None, longest: int = 16
) -> list[list[int]]:
    text = SelfText(checkpoint, Tokenizer(checkpoint.path, checkpoint.spec.vocab_size), seed, longest)
    return list(islice(text.documents(folder, Silent(), 100), count))


def test_batches_depend_on_seed_and_number_and_are_written_once(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = written(checkpoint, 8, folder=tmp_path / "self")
    assert written(checkpoint, 8) == found != written(checkpoint, 8, seed=1)
    assert found[:4] != found[4:] and max(map(len, found)) <= 16
    (tmp_path / "self" / "text-00001.json").write_text('{"docu')  # as by a kill in the middle
    assert written(checkpoint, 8, folder=tmp_path / "self") == found
    monkeypatch.setattr(SelfText, "_batch", None)
    assert written(checkpoint, 8, folder=tmp_path / "self") == found


def test_rows_are_what_the_model_says_without_a_cache(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though rows end at different times and their caches grow: the most likely token after each beginning."""
    monkeypatch.setattr(self_text, "_draw", lambda logits, _: logits.argmax(-1).tolist())
    monkeypatch.setattr(Tokenizer, "begins_with", [], raising=False)
    text = SelfText(checkpoint, Tokenizer(checkpoint.path, checkpoint.spec.vocab_size), 0, 40)
    text.frame = self_text.Frame([])
    text._ends = {int(token) for token in range(0, 260, 9)}
    model, known = CausalLM.load(checkpoint), set(text.tokenizer.get_vocab().values())
    rows = list(islice(text.documents(None, Silent(), 100), 4))
    assert len({len(row) for row in rows}) > 1 and len({row[0] for row in rows}) > 1
    for row in rows:
        logits = model.logits(model.hidden(torch.tensor([row])))[0, :-1]
        logits[:, [token for token in range(260) if token not in known]] = -torch.inf
        logits[0, list(text._ends)] = -torch.inf  # nothing ends before it has begun
        assert logits.argmax(-1).tolist() == row[1:]


def test_a_chat_model_asks_and_answers(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (checkpoint.path / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = Tokenizer(checkpoint.path, checkpoint.spec.vocab_size)
    for ids in written(checkpoint, 6, longest=48):
        said = tokenizer.decode(ids, skip_special_tokens=False)
        assert said.startswith("<bos>S.u:") and "<eos>\na:" in said
        question, _, answer = said.removeprefix("<bos>S.u:").partition("<eos>\na:")
        assert question and answer and "<eos>" not in question
        assert len(ids) == 48 or answer.endswith("<eos>\n")


def test_the_texts_are_known_before_they_are_written(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(name * 1000)

    def read(weight: int = 1) -> llmc.text.Texts:
        sources = [{"text": "self", "weight": weight}, "a.txt"]
        calibration = Calibration.model_validate({"text": sources, "samples": 8, "length": 32})
        return read_texts(calibration, Check(text="b.txt", tokens=128), checkpoint, tmp_path)

    texts = read()
    key = texts.key()
    assert key == read().key() != read(2).key() and not texts.is_written
    assert texts.lines()[0].startswith("check: ") and len(texts.lines()) == 1
    files = {"source_files": {}, "options": QuantizeOptions()}
    measured, other = (sensitivity_key(cast(Any, SimpleNamespace(texts=each, **files))) for each in (texts, read(2)))
    assert measured != other and not texts.is_written
    assert texts.calibration.shape == (8, 32) and texts.is_written and texts.key() == key
    assert (texts.calibration == read().calibration).all()
    own, other = texts.read["calibration"]
    assert (own.text, own.tokens, own.available) == ("self", 128, None) and other.tokens == 128
    assert int((np.bincount(texts.calibration.ravel(), minlength=260)).max()) >= 128
    with pytest.raises(MachineError, match=r"calibration.text self: .* the whole model has to be in memory, about"):
        texts.require(1000)
    with pytest.raises(InputError, match=r"check.text: self is for the calibration"):
        read_texts(Calibration(), Check(text="self"), checkpoint, tmp_path)


def test_a_build_on_its_own_text(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b.txt").write_text("b" * 1000)
    recipe = {
        "model": str(checkpoint.path),
        "calibration": {"text": "self", "samples": 4, "length": 32},
        "quantize": [{"match": "experts", "scheme": "int4-g32", "method": "gptq"}],
        "targets": [],
        "check": {"text": str(tmp_path / "b.txt"), "tokens": 64, "length": 32},
    }
    result = llmc.build(recipe, tmp_path / "out")
    (read,) = result.manifest.texts.read["calibration"]
    assert (read.text, read.tokens) == ("self", 128)
    assert "- calibration: self: 128 tokens" in (tmp_path / "out" / "README.md").read_text()
    monkeypatch.setattr(SelfText, "documents", None)  # neither to find out that nothing changed …
    assert llmc.build(recipe, tmp_path / "out").up_to_date
    again = llmc.build(recipe | {"targets": [{"onnx": {}}]}, tmp_path / "out")  # … nor for another target
    assert again.manifest.texts == result.manifest.texts
