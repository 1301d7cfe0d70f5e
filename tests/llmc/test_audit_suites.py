"""Suites on small data sets that lie here, and what each score makes of an answer."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llmc.audit import Options, audit
from llmc.audit_scores import CONFIDENCE, Answered, scores
from llmc.audit_tasks import ROW, WORDING, find_tasks, read_documents, suites
from llmc.errors import InputError, MachineError
from llmc.progress import Display

DATA = Path(__file__).parents[1] / "data" / "audit"
SUITES = ["hallucination", "bias", "reasoning", "robustness", "calibration"]


def test_all_suites_run_without_a_network(tmp_path: Path, audited_artifact: Path, small_model: Path) -> None:
    display = Display(Console(file=io.StringIO()))
    options = Options(data=DATA, limit=2, threads=1, batch=8)
    record = audit(audited_artifact, str(small_model), SUITES, tmp_path / "audit", options, display)
    assert sorted(suites()) == sorted(SUITES) == sorted({str(task.suite) for task in record.tasks.values()})
    found = {name: {key: each.samples for key, each in task.measures.items()} for name, task in record.tasks.items()}
    assert found == {
        "hallucination.truthfulqa_mc1": {"correct": 2},
        "hallucination.truthfulqa_mc2": {"truth": 2},
        "hallucination.closed_book": {"correct": 2, "wrong": 2, "abstained": 2},
        "bias.bbq_ambiguous": {"correct": 2, "stereotype": 2},
        "bias.bbq_disambiguated": {"correct": 2, "stereotype": 2},
        "bias.crows_pairs": {"prefers_stereotype": 2, "log_ratio": 2},
        "bias.stereoset": {"prefers_stereotype": 2, "log_ratio": 2, "meaningful": 2},
        "reasoning.gsm8k": {"correct": 2},
        "reasoning.arc_challenge": {"correct": 2},
        "reasoning.mmlu": {"correct": 2},
        "robustness.wordings": {"agreement": 2, "correct": 2},
        "robustness.repeats": {"correct": 2, "agreement": 2},
        "calibration.arc_challenge": {"calibration": 2, "brier": 2},
        "calibration.mmlu": {"calibration": 2, "brier": 2},
    }
    assert record.tasks["calibration.mmlu"].measures["calibration"].kind == "calibration error"
    grouped = {name for name, task in record.tasks.items() if any(each.groups for each in task.measures.values())}
    assert grouped == {"bias.bbq_ambiguous", "bias.bbq_disambiguated", "bias.stereoset"}
    lines = [json.loads(line) for line in (tmp_path / "audit" / "samples.jsonl").read_text().splitlines()]
    by_task = {line["task"]: line for line in lines}
    assert by_task["reasoning.mmlu"]["target"] in "ABCD" and by_task["reasoning.mmlu"]["original"]["answer"] in "ABCD"
    assert (
        by_task["hallucination.truthfulqa_mc1"]["target"]
        == "It passes through you like other food that is not digested"
    )
    assert CONFIDENCE in by_task["calibration.mmlu"]["artifact"]["values"]


def choice(target: int, *logprobs: float, choices: Any = None, **document: Any) -> Answered:
    return Answered(document, "?", target, tuple(choices or "abcdef"[: len(logprobs)]), logprobs)


def said(target: Any, *texts: str) -> Answered:
    return Answered({}, "?", target, texts=texts)


def values(score: str, *answers: Answered) -> dict[str, float]:
    found = scores[score].values(answers)
    assert found.keys() - {CONFIDENCE} <= scores[score].measures.keys()
    return found


def test_scores_of_choices() -> None:
    assert values("correct", choice(1, -3, -2, -4)) == {"correct": 1}
    long = choice(0, -8, -5, choices=("many words", "few"))
    assert values("correct", long) == {"correct": 0} and values("correct_by_length", long) == {"correct": 1}
    half = math.log(0.5), math.log(0.3), math.log(0.2)
    assert values("truth", choice(0, *half, mc2_targets={"labels": [1, 0, 1]})) == {"truth": pytest.approx(0.7)}
    expected = {"calibration": 0, CONFIDENCE: 0.5, "brier": 0.5**2 + 0.7**2 + 0.2**2}
    assert values("calibration", choice(1, *half)) == pytest.approx(expected)
    wordings = [choice(0, -1, -2), choice(0, -1, -2), choice(0, -2, -1)]
    assert values("wordings", *wordings) == {"agreement": pytest.approx(1 / 3), "correct": pytest.approx(2 / 3)}


@pytest.mark.parametrize(
    ("text", "measure"),
    [
        (" It is Paris, I believe.\nQuestion:", "correct"),
        ("the  PARIS", "correct"),
        ("Parish", "wrong"),
        ("Lyon\nParis", "wrong"),
        ("I don't know.", "abstained"),
        ("I do not know", "abstained"),
        ("I’m not sure", "abstained"),
        ("I didn't go", "wrong"),
        ("", "abstained"),
    ],
)
def test_closed_book_answers_are_correct_or_wrong_or_abstain(text: str, measure: str) -> None:
    found = values("closed_book", said(["City of Paris", "Paris"], text))
    assert found == {"correct": 0, "wrong": 0, "abstained": 0} | {measure: 1}


def test_numbers_are_compared_as_numbers() -> None:
    target = "He pays 2 * 600 = <<2*600=1200>>1,200.\n#### 1,200"
    assert values("number", said(target, "so 3 and then\n#### 1200.00, or 7")) == {"correct": 1}
    assert values("number", said(target, "it is $1,200")) == {"correct": 1}
    assert values("number", said(target, "1200 of 5")) == values("number", said(target, "none")) == {"correct": 0}
    assert values("number", said(target, "1200", "-1200", "1200")) == {"correct": pytest.approx(2 / 3)}
    assert values("repeats", said(target, "#### 5", "that is 5", "6")) == {"agreement": pytest.approx(1 / 3)}


@pytest.mark.parametrize(
    ("polarity", "chosen", "expected"),
    [("neg", 0, 1), ("neg", 1, -1), ("neg", 2, 0), ("nonneg", 0, -1), ("nonneg", 1, 1)],
)
@pytest.mark.parametrize(
    ("groups", "target", "other"),
    [
        (["old"], "old", "nonOld"),
        (["low SES"], "lowSES", "highSES"),
        (["F"], "woman", "man"),
        (["Black"], "F-Black", "F-White"),
    ],
)
def test_stereotypes_are_followed_or_contradicted(
    polarity: str, chosen: int, expected: int, groups: list[str], target: str, other: str
) -> None:
    document = {
        "question_polarity": polarity,
        "answer_info": {"ans0": ["x", target], "ans1": ["y", other], "ans2": ["Unknown", "unknown"]},
        "additional_metadata": {"stereotyped_groups": groups},
    }
    logprobs = [-1.0 if place == chosen else -2.0 for place in range(3)]
    assert values("bbq", choice(0, *logprobs, **document)) == {"stereotype": expected}
    document["additional_metadata"] = {"stereotyped_groups": ["somebody else"]}
    assert values("bbq", choice(0, *logprobs, **document)) == {}


def test_preferences_of_sentences() -> None:
    assert values("pair", choice(0, -10, -12)) == {"prefers_stereotype": 1, "log_ratio": 2}
    sentences = {"gold_label": [2, 0, 1]}
    found = values("stereoset", choice(0, -5, -6, -4, sentences=sentences))
    assert found == {"prefers_stereotype": 1, "log_ratio": 2, "meaningful": 0.5}


def test_documents_are_spread_over_the_data_set_and_worded(tmp_path: Path) -> None:
    (task,) = find_tasks(["robustness.wordings"], DATA, 4)
    assert isinstance(task.asked, dict) and task.data == "arc_challenge.jsonl"
    rows = task.asked["custom_dataset"]()["test"]
    assert [(row["id"], row[ROW], row[WORDING]) for row in rows[:4]] == [
        ("own-0", 0, 0), ("own-0", 0, 1), ("own-0", 0, 2), ("own-2", 1, 0),
    ]  # fmt: skip
    (tmp_path / "crows_pairs.csv").write_text('\ufeffsent_more,sent_less\n"A, b.",C.\n')
    assert read_documents(tmp_path / "crows_pairs.csv") == [{"sent_more": "A, b.", "sent_less": "C."}]
    (tmp_path / "list.json").write_text('[{"a": 1}]')
    assert read_documents(tmp_path / "list.json") == [{"a": 1}]
    (tmp_path / "broken.jsonl").write_text('{"a": 1}\n[1]\n')
    with pytest.raises(InputError, match="one a line is read"):
        read_documents(tmp_path / "broken.jsonl")
    with pytest.raises(InputError, match="unknown task of bias 'bbq'; did you mean 'bbq_"):
        find_tasks(["bias.bbq"], DATA, None)


def test_documents_of_one_template_are_a_group(tmp_path: Path) -> None:
    (task,) = find_tasks(["bias.bbq_ambiguous"], DATA, None)
    assert isinstance(task.asked, dict) and task.group == ("category", "question_index")
    rows = task.asked["custom_dataset"]()["test"]
    assert len({tuple(row[column] for column in task.group) for row in rows}) == len(rows) / 2
    (tmp_path / "stereoset.jsonl").write_text('{"target": "a"}\n{"context": "b"}\n')
    with pytest.raises(InputError, match=r"stereoset.jsonl: some document has no column 'target', which llmc.group"):
        find_tasks(["bias.stereoset"], tmp_path, None)
    for group, said in (("target", "a list of columns"), ([1], "a list of columns"), (["a"], r"needs llmc\.scores")):
        (tmp_path / "own.yaml").write_text(json.dumps({"llmc": {"data": "stereoset", "group": group}}))
        with pytest.raises(InputError, match=said):
            find_tasks([str(tmp_path / "own.yaml")], None, None)


def test_without_a_hub_the_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("no route\nto it")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(MachineError, match=r"gsm8k on the hub could not be loaded \(no route to it\).*gsm8k\.jsonl"):
        find_tasks(["reasoning.gsm8k"], tmp_path, None)


def test_suites_say_what_their_data_is_licensed_under() -> None:
    for path in suites().values():
        text = path.read_text("utf-8")
        assert text.count("  llmc:\n") == text.count("    license: ") == text.count("    hub:") > 0


def test_the_page_about_audits_names_every_task_and_measure() -> None:
    page = (DATA.parents[2] / "docs" / "audit.md").read_text("utf-8")
    named = set(re.findall(r"`([\w.]+)`", page))
    tasks = find_tasks(SUITES, DATA, None)
    wanted = {name for task in tasks for name in str(task.name).split(".")}
    wanted |= {name for task in tasks for score in task.scores for name in scores[score].measures}
    assert wanted <= named
    (own,) = find_tasks([str(DATA.parents[2] / "examples/audit/modules.yaml")], None, None)
    assert own.name == "modules" and len(own.asked["custom_dataset"]()["test"]) == 150
