"""`llmc eval`: a real artifact and its original, asked by the harness itself."""

from __future__ import annotations

import io
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from rich.console import Console
from typer.testing import Result

from llmc.audit import Options, audit
from llmc.audit_answers import KeptAnswers
from llmc.audit_measures import Measure, measured, verdict
from llmc.contracts.audit import AuditRecord
from llmc.errors import InputError
from llmc.original import load_original
from llmc.progress import Display
from llmc.runtime import load
from llmc.runtime.lm_eval import ArtifactLM

Llmc = Callable[..., Result]
TASK = {
    "task": "words",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "words.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": "{{choices}}",
    "target_delimiter": "",
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc"}],
}


def quiet() -> Display:
    return Display(Console(file=io.StringIO()))


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A task file of forty questions."""
    draw = random.Random(0)
    texts = iter("".join(draw.choices("etaoinshrdlu", k=4)) for _ in range(160))
    rows = [{"q": next(texts), "choices": [next(texts) for _ in range(3)], "label": place % 3} for place in range(40)]
    (tmp_path / "words.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "words.yaml").write_text(yaml.safe_dump(TASK))
    return tmp_path / "words.yaml"


def test_the_difference_is_that_of_both_models_own_answers(
    audited_artifact: Path, small_model: Path, words: Path, llmc: Llmc
) -> None:
    result = llmc("eval", audited_artifact, "--original", small_model, "--tasks", words, "--threads", 1, "--json")
    assert result.exit_code == 0, result.output
    place = Path(f"{audited_artifact}.audit")
    assert json.loads(result.stdout) == json.loads((place / "audit.json").read_text())
    record = AuditRecord.model_validate_json((place / "audit.json").read_text())
    assert record.same_source and record.artifact.changed and not record.original.changed
    found = record.tasks["words"].measures["acc"]
    samples = [json.loads(line) for line in (place / "samples.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (words.parent / "words.jsonl").read_text().splitlines()]
    correct = []
    for model in (load_original(small_model), load(audited_artifact, threads=1)):
        asked = [[model.encode(row["q"] + choice) for choice in row["choices"]] for row in rows]
        starts = [[len(model.encode(row["q"].rstrip()))] * 3 for row in rows]
        sums = [
            [sum(each.logprob for each in tokens) for tokens in model.score(texts, start)]
            for texts, start in zip(asked, starts, strict=True)
        ]
        correct.append(
            [float(max(range(3), key=each.__getitem__) == row["label"]) for each, row in zip(sums, rows, strict=True)]
        )
        model.close()
    assert [sample["original"]["values"]["acc"] for sample in samples] == correct[0]
    assert [sample["artifact"]["values"]["acc"] for sample in samples] == correct[1]
    gained = sum(second > first for first, second in zip(*correct, strict=True))
    lost = sum(second < first for first, second in zip(*correct, strict=True))
    assert (found.gained, found.lost, found.samples) == (gained, lost, 40) and gained + lost > 0
    assert found.difference == pytest.approx((gained - lost) / 40)
    assert found.low < found.difference < found.high


def test_an_artifact_differs_in_nothing_from_itself(audited_artifact: Path, words: Path, llmc: Llmc) -> None:
    result = llmc("eval", audited_artifact, "--original", audited_artifact, "-t", words, "-o", "audit", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    measure = told["tasks"]["words"]["measures"]["acc"]
    assert (measure["gained"], measure["lost"], measure["difference"]) == (0, 0, 0) and measure["p"] == 1
    assert told["original"] == told["artifact"] and told["same_source"] and not Path("audit/review.html").exists()


@pytest.mark.parametrize(
    ("pairs", "better", "expected"),
    [
        ([(0.0, 1.0)] * 8 + [(1.0, 1.0)] * 8, "higher", "better"),
        ([(0.0, 1.0)] * 8 + [(1.0, 1.0)] * 8, "lower", "worse"),
        ([(0.0, 1.0)] * 8 + [(1.0, 1.0)] * 8, "neither", "higher"),
        ([(0.0, 1.0), (1.0, 0.0)] * 8, "higher", "unclear"),
        ([(0.0, 1.0)] * 5 + [(1.0, 1.0)] * 75, "higher", "unclear"),  # zero is not in the interval; p is 0.06
        ([(0.5, 0.25 + place / 100) for place in range(8)], "higher", "worse"),
        ([(0.5, 0.25)] * 5, "higher", "unclear"),  # resampling is sure of any five that go one way
    ],
)
def test_a_verdict_is_what_the_interval_allows(pairs: list[tuple[float, float]], better: Any, expected: str) -> None:
    found = measured(Measure(better, pairs))
    assert found is not None and verdict(found) == expected
    assert found.kind == ("share" if pairs[0][1] == 1 else "mean")
    assert found.difference == pytest.approx(found.artifact - found.original)


def test_groups_of_samples_count_as_one() -> None:
    pairs = [(0.0, 1.0)] * 12 + [(1.0, 1.0)] * 36
    alone, together = measured(Measure("higher", pairs)), None
    together = measured(Measure("higher", pairs, groups=[str(place // 4) for place in range(48)]))
    assert alone is not None and together is not None and verdict(alone) == "better" and verdict(together) == "unclear"
    assert (together.groups, together.groups_gained, together.groups_lost, together.p) == (12, 3, 0, 0.25)
    assert (together.gained, together.difference) == (alone.gained, alone.difference)
    assert together.low < alone.low < alone.high < together.high
    assert together.bootstrap[0] < alone.bootstrap[0] and alone.groups is None


def test_a_table_tells_differences(audited_artifact: Path, small_model: Path, words: Path, llmc: Llmc) -> None:
    result = llmc("eval", audited_artifact, "--original", small_model, "-t", words, "--limit", 5, "-o", "audit")
    assert result.exit_code == 0, result.output
    assert "words: 5 samples (words.jsonl)" in result.stdout
    assert "+0.0 (-43.4 … +43.4) 0 / 0 1.000 unclear" in result.stdout
    assert "written to audit" in result.stderr


def test_what_reviewers_said_stays_where_answers_stay(
    audited_artifact: Path, small_model: Path, words: Path, tmp_path: Path, llmc: Llmc
) -> None:
    asked = ("eval", audited_artifact, "--original", small_model, "-t", words, "-o", "audit", "--json")
    assert json.loads(llmc(*asked).stdout).get("review") is None
    items = [json.loads(line) for line in Path("audit/review.jsonl").read_text().splitlines()]
    label = {"sheet": items[0]["sheet"], "reviewer": "one", "item": items[0]["item"], "label": "both"}
    Path("labels.jsonl").write_text(json.dumps(label))
    reviewed = llmc("review", "audit", "labels.jsonl", "--json")
    assert reviewed.exit_code == 0 and json.loads(reviewed.stdout)["review"]["labels"]["both"] == 1
    assert json.loads(llmc(*asked).stdout) == json.loads(reviewed.stdout)
    fewer = json.loads(llmc(*asked, "--limit", 20).stdout)
    assert fewer.get("review") is None and fewer["tasks"]["words"]["samples"] == 20


def test_an_audit_that_was_interrupted_goes_on(
    audited_artifact: Path, small_model: Path, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, asked = ArtifactLM._loglikelihood_tokens, [0]
    stop_at = 3

    def counting(self: Any, requests: Any, **options: Any) -> Any:
        if asked[0] == stop_at:
            raise KeyboardInterrupt
        asked[0] += 1
        return ask(self, requests, **options)

    monkeypatch.setattr(ArtifactLM, "_loglikelihood_tokens", counting)
    options = Options(batch=4, threads=1)

    def run(output: str) -> Any:
        audit(audited_artifact, str(small_model), [str(words)], tmp_path / output, options, quiet())
        return (tmp_path / output / "audit.json").read_bytes(), (tmp_path / output / "samples.jsonl").read_bytes()

    with pytest.raises(KeyboardInterrupt):
        run("one")
    file = next((tmp_path / "one" / "answers").rglob("*.jsonl"))
    with file.open("ab") as cut:
        cut.write(file.read_bytes().splitlines()[-1][:40])  # as a power cut leaves it
    asked[0], stop_at = 0, -1
    resumed = run("one")
    assert asked[0] == 16 - 3  # 120 requests of each model, sixteen at a time
    asked[0] = 0
    assert run("one") == resumed and asked[0] == 0
    assert run("other") == resumed and asked[0] == 16


def test_repeats_are_drawn_and_kept_together(small_model: Path, tmp_path: Path) -> None:
    class Fixed:
        batch = 1
        calls: list[int] = []  # noqa: RUF012

        def generate_until(self, requests: list[Any], disable_tqdm: bool) -> list[str]:
            self.calls.append(len(requests))
            return [f"{request.args[0]}{turn}" for turn, request in enumerate(requests)]

    lm: Any = Fixed()
    one, two = (Instance("generate_until", {}, (text, {}), 0, ("task", 0, 3)) for text in ("aaaa", "b"))
    told: list[tuple[int, int]] = []
    kept = KeptAnswers(lm, tmp_path, lambda done, total, left: told.append((done, total)))
    answers = kept.generate_until([one, two, one, one, two, one, one])
    assert [answers[place] for place in (0, 2, 3, 5, 6)] == [f"aaaa{turn}" for turn in range(5)]
    assert lm.calls == [5, 2] and told == [(5, 7), (7, 7)]
    assert kept.generate_until([two, two, one]) == ["b0", "b1", "aaaa0"] and lm.calls == [5, 2, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset_kwargs": {"data_files": {"test": "none.jsonl"}}}, r"none\.jsonl: cannot be read"),
        ({"dataset_kwargs": {}}, "data_files must name a file"),
        ({"llmc": {"scores": ["corect"]}}, "unknown score 'corect'; did you mean 'correct'"),
        ({"llmc": {"where": {"label": 7}}}, "has no documents like these"),
        ({"llmc": {"when": 1}}, "has the keys data, hub"),
        ({"llmc": {"data": "set"}}, r"no set\.jsonl in"),
        ({"doc_to_target": "{{nothing}}"}, r"words: the harness cannot load it \(.*\)"),
    ],
)
def test_what_is_wrong_with_a_task_is_told_before_a_model_is_asked(
    audited_artifact: Path, small_model: Path, words: Path, llmc: Llmc, change: dict[str, Any], message: str
) -> None:
    words.write_text(yaml.safe_dump(TASK | change))
    with pytest.raises(InputError, match=message):
        audit(audited_artifact, str(small_model), [str(words)], words.parent / "audit", Options(), quiet())


def test_tasks_of_the_harness_are_asked_by_name(
    audited_artifact: Path, small_model: Path, words: Path, llmc: Llmc, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With their Python, from a folder that is named; both models get the same examples."""
    monkeypatch.setenv("HF_HOME", str(words.parent / "hub"))
    folder = words.with_name("tasks")
    folder.mkdir()
    (folder / "code.py").write_text("def question(document):\n    return document['q'] + '!'\n")
    data = {"data_files": {"test": str(words.with_name("words.jsonl"))}, "cache_dir": str(words.parent)}
    task = TASK | {"task": "words_with_code", "dataset_kwargs": data, "num_fewshot": 1, "fewshot_split": "test"}
    del task["doc_to_text"]
    (folder / "words.yaml").write_text(yaml.safe_dump(task) + "doc_to_text: !function code.question\n")
    asked = ("eval", audited_artifact, "--original", small_model, "-o", "audit", "--include", folder, "--limit", 4)
    result = llmc(*asked, "--tasks", "words_with_code", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["tasks"]["words_with_code"]["measures"]["acc"]["samples"] == 4
    samples = [json.loads(line) for line in Path("audit/samples.jsonl").read_text().splitlines()]
    assert all(sample["prompt"].endswith("!") and sample["prompt"].count("!") == 2 for sample in samples)
    kept = [path.read_text().splitlines() for path in Path("audit/answers").rglob("*.jsonl")]
    keys = [{json.loads(line)["key"] for line in lines} for lines in kept]
    assert len(keys) == 2 and keys[0] == keys[1]
    few = lambda include_path, include_defaults: TaskManager(include_path=include_path, include_defaults=False)  # noqa: E731
    monkeypatch.setattr("llmc.audit_harness.TaskManager", few)  # its own are thousands of files
    result = llmc(*asked, "--tasks", "words_with_cod")
    assert result.exit_code == 2 and "did you mean 'words_with_code'" in result.stderr


def test_what_cannot_be_asked_is_told_in_a_line(
    audited_artifact: Path, small_model: Path, words: Path, llmc: Llmc, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(*arguments: str | Path) -> str:
        result = llmc("eval", audited_artifact, *arguments)
        assert result.exit_code == 2
        return result.stderr.splitlines()[-1]

    assert "say where that lies: --original FOLDER" in told("--tasks", words)
    assert "has no chat template" in told("--original", small_model, "--tasks", words, "--chat", "--output", "audit")
    assert "words is there twice" in told("--original", small_model, "--tasks", f"{words},{words}")
    words.with_name("code.yaml").write_text("doc_to_text: !function code.run\n")
    assert "--include" in told("--original", small_model, "--tasks", words.with_name("code.yaml"))
    assert "holds no audit" in told("--original", small_model, "--tasks", words, "--output", words.parent)
    for name in [name for name in sys.modules if name.startswith("lm_eval.") or name == "llmc.runtime.lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    result = llmc("eval", audited_artifact, "--original", small_model, "--tasks", words)
    assert result.exit_code == 4 and "needs lm_eval, which is not installed; pip install" in result.stderr
