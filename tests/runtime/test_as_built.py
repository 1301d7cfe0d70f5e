"""Whether an artifact does what it did when it was built: graphs, tokenizer, chat template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.listed_files import list_files

from llmc.contracts.fidelity import BuiltRecord, ProbeRecord
from llmc.contracts.part import checked
from llmc.errors import InputError
from llmc.runtime import load
from llmc.runtime.artifact import Artifact
from llmc.runtime.as_built import as_built, ask
from llmc.runtime.backends.onnxruntime import in_float32
from llmc.runtime.probe import Probe, difference, probe
from llmc.runtime.spoken_to import spoken_to


def asked(artifact: Path) -> Probe:
    with load(artifact, threads=1) as model:
        found = ask(model.artifact, model.backend)
    assert found is not None
    return found


def test_sums_tell_how_far_logits_are_apart() -> None:
    """In the root mean square over the vocabulary, wherever they differ."""
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal((2, 9, 1000)).astype(np.float32) + 5
    changed = logits.copy()
    changed[:, :, rng.integers(0, 1000, 50)] += 0.1

    class Fixed:
        context, has_mtp, original_context, max_prefill_tokens, max_attention_scores = 9, False, None, 4, 1000

        def __init__(self, logits: Any) -> None:
            self.logits, self.widths = logits, list[int]()

        def new_cache(self, rows: int) -> None: ...

        def forward(self, graph: str, cache: None, ids: Any, position: Any, *_: Any) -> tuple[Any, None]:
            self.widths.append(ids.shape[1])
            return self.logits[:, position[0] : position[0] + ids.shape[1]], None

    tokens = rng.integers(0, 1000, (2, 10))
    before, after = (probe(Fixed(each), 1000, tokens) for each in (logits, changed))
    apart = difference(after, ProbeRecord(**before.record()))["main"]
    d = changed - logits
    d -= d.mean(-1, keepdims=True)
    exact = np.sqrt(np.square(d).mean()) / np.sqrt(np.square(logits - logits.mean(-1, keepdims=True)).mean())
    assert exact / 2 < apart < 3 * exact, "the 99th percentile of 18 positions, of four sums each"
    assert difference(before, ProbeRecord(**before.record())) == {"main": 0.0}
    assert before.spread["main"] == pytest.approx(3, rel=0.05)


def test_a_graph_that_rounds_activations_is_asked_in_float32_and_rounds_them_again_afterwards(
    trained: Path, trained_level_4: Path
) -> None:
    data = (trained_level_4 / "model.onnx").read_bytes()
    changed = onnx.load_model_from_string(in_float32(data))
    levels = [each.i for node in changed.graph.node for each in node.attribute if each.name == "accuracy_level"]
    assert len(levels) > 5 and set(levels) == {1}
    assert in_float32(in_float32(data)) == in_float32(data) != data
    ids = np.arange(2, 34)[None]
    with load(trained_level_4, threads=1) as model:

        def said() -> Any:
            every = np.arange(32)[None]
            return model.backend.forward("main", model.backend.new_cache(1), ids, np.array([0]), every)[0]

        before = said()
        with model.backend.exactly() as exact:  # type: ignore[attr-defined]
            within = said()
        assert exact and (said() == before).all() and np.abs(within - before).max() > 1e-3
    record = ProbeRecord(**asked(trained_level_4).record())
    assert asked(trained_level_4).sums.keys() == {"main", "mtp"}
    assert max(difference(asked(trained_level_4), record).values()) < 1e-5


def test_other_kernels_change_millionths(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one row and of many, which is much of what another machine does otherwise."""
    record = ProbeRecord(**asked(trained).record())
    monkeypatch.setattr("llmc.runtime.probe._STEPS", 63)
    assert 0 < max(difference(asked(trained), record).values()) < 1e-5


def test_what_a_broken_record_says(trained: Path) -> None:
    found = asked(trained)
    record = found.record()
    for sums, said in (
        ({}, "the main graph said is not on record"),
        ({"main": "AAAA", "mtp": "AAAA"}, "not on record"),
    ):
        with pytest.raises(InputError, match=said):
            difference(found, ProbeRecord(**record | {"sums": sums}))
    unknown = np.full_like(found.sums["main"], np.nan)
    with pytest.raises(InputError, match="as NaN or infinity"):
        difference(found, ProbeRecord(**Probe(found.tokens, {"main": unknown, "mtp": unknown}, found.spread).record()))
    for tokens in ([], [[1, 2], [3]], [[1], [2]]):
        with pytest.raises(InputError, match="equally long"):
            checked(ProbeRecord, record | {"tokens": tokens}, "llmc.json")
    with pytest.raises(InputError, match="more MTP drafts were accepted than drafted"):
        checked(BuiltRecord, {"mtp_accepted": 3, "mtp_drafted": 2}, "llmc.json")
    with load(trained, threads=1) as model:
        for others in (found.tokens + model.artifact.vocab_size, np.ones((1, model.backend.context + 1), np.int64)):
            with pytest.raises(InputError, match="not of this model"):
                as_built(model, BuiltRecord(probe=ProbeRecord(**record | {"tokens": others.tolist()})))


def digests(folder: Path) -> dict[str, str]:
    list_files(folder)
    with load(folder, threads=1) as model:
        return spoken_to(model.tokenizer)


def test_digests_tell_one_tokenizer_and_template_from_another(trained: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trained, tmp_path / "copy")
    plain = digests(copy)
    assert plain.keys() == {"vocabulary", "encoding"} and digests(copy) == plain
    template = copy / "chat_template.jinja"
    template.write_text("{% for each in messages %}<{{ each.role }}>{{ each.content }}{% endfor %}")
    chatty = digests(copy)
    assert chatty.keys() - plain.keys() == {"chat_template"}
    template.write_text("{% for each in messages %}[{{ each.role }}]{{ each.content }}{% endfor %}")
    assert digests(copy)["chat_template"] != chatty["chat_template"]
    template.write_text("{% for each in messages %}<{{ each.role }}>{{- each.content }}{% endfor %}")
    spelled_otherwise = digests(copy)["chat_template"]
    template.write_text("{%- for each in messages -%} {{ '<' + each.role + '>' + each.content }}{% endfor %}")
    assert digests(copy)["chat_template"] == spelled_otherwise, "it is what is rendered that counts"
    dated = "{{ strftime_now('%S%f') }}{% for each in messages %}{{ each.content }}{% endfor %}"
    template.write_text(dated)
    assert digests(copy) == digests(copy), "of what depends on the day, the source counts"
    template.write_text("{% if %}")
    assert digests(copy)["chat_template"] not in (chatty["chat_template"], None)
    tokenizer = json.loads((copy / "tokenizer.json").read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    first, second = [token for token in vocabulary if len(token) > 3][:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    assert digests(copy)["vocabulary"] != plain["vocabulary"]


def test_an_artifact_of_an_earlier_llmc_has_no_record(trained: Path) -> None:
    assert not Artifact.open(trained).built.model_fields_set
    with load(trained, threads=1) as model:
        report = model.check()
    assert report.as_built is None and report.mtp_acceptance is None
    assert BuiltRecord().to_json() == {}
