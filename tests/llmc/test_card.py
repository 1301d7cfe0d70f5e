"""The model card says what others wrote without doing it, and files the model as the hub wants it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub._eval_results import parse_eval_result_entries
from support.reports import HOSTILE, audit_record, manifest

from llmc.card import _plain, _table, model_card
from llmc.card_front import LICENSES, front_matter, license_keys
from llmc.contracts.manifest import SourceRecord, TextsRecord
from llmc.contracts.report import Report
from llmc.eval_results import eval_results
from llmc.remake import report_of_artifact
from llmc.report import report_of


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


def report(**changed: Any) -> Report:
    """Of a manifest whose source is on the hub."""
    return report_of(manifest().model_copy(update=changed))


def source(license: str | None = None, **more: Any) -> SourceRecord:
    return SourceRecord(id="org/model", revision="a" * 40, license=license, **more)


@pytest.mark.parametrize(
    ("given", "files", "told"),
    [
        (source("MIT"), [], {"license": "mit"}),
        (source("llama3.1"), ["LICENSE"], {"license": "llama3.1"}),
        (source(), ["LICENSE"], {}),
        (
            source("other", license_name="deepseek", license_link="https://example.org/license"), ["LICENSE"],
            {"license": "other", "license_name": "deepseek", "license_link": "https://example.org/license"},
        ),
        (
            source("other", license_link="LICENSE-MODEL"), ["LICENSE-CODE", "LICENSE-MODEL"],
            {"license": "other", "license_name": "license-of-org-model", "license_link": "LICENSE-MODEL"},
        ),
        (
            source("other", license_name="Tongyi Qianwen", license_link="LICENSE-gone"), ["config.json", "LICENSE.md"],
            {"license": "other", "license_name": "tongyi-qianwen", "license_link": "LICENSE.md"},
        ),
        (source("unknown"), [], {"license": "other", "license_name": "license-of-org-model"}),
        (source("PSF-2.0"), [], {"license": "other", "license_name": "psf-2.0"}),
        (source("mit, bsd"), [], {"license": "other", "license_name": "mit-bsd"}),
        (
            source(HOSTILE, license_link="javascript:alert(1)"), [],
            {"license": "other", "license_name": "script-alert-1-script-img-src-x-onerror-alert-2-end"},
        ),
    ],
)  # fmt: skip
def test_the_license_is_the_originals(given: SourceRecord, files: list[str], told: dict[str, str]) -> None:
    assert license_keys(given, files) == told
    assert told.get("license", "other") in {*LICENSES, "other"} and "unknown" not in LICENSES


def test_what_the_hub_files_it_by() -> None:
    read = [{"text": each, "documents": 1, "tokens": 1} for each in ("hub:org/data:main/train@v1", "a.txt", "hub:wiki")]
    texts = TextsRecord.model_validate({"read": {"calibration": read, "check": read[:1]}})
    found = front_matter(report(source=source("apache-2.0"), texts=texts))
    assert found["license"] == "apache-2.0" and found["datasets"] == ["org/data", "wiki"]
    assert (found["base_model"], found["base_model_relation"]) == (["org/model"], "quantized")
    assert found["pipeline_tag"] == "text-generation"
    tags = found["tags"]
    assert {"llmc", "compressed-tensors", "gptaq", "3-bit", "4-bit", "int3", "int4", "reap", "pruned", "mtp"} <= {*tags}
    assert len(tags) == len(set(tags))
    folder = SourceRecord(id="a-folder", revision=None, license=None)
    assert not {"base_model", "base_model_relation", "license", "datasets"} & front_matter(report(source=folder)).keys()


def test_the_hubs_own_reader_reads_it(two_artifacts: tuple[Path, Path]) -> None:
    kept, rejected = (model_card(report_of_artifact(path)) for path in two_artifacts)
    for text in (kept, model_card(report())):
        card = ModelCard(text)
        assert isinstance(card.data, ModelCardData)
        assert card.data.to_dict() == yaml.safe_load(text.split("---\n")[1])
        assert card.data.to_yaml() == ModelCard(str(card)).data.to_yaml()
    assert kept == (two_artifacts[0] / "README.md").read_text()
    assert "**It was rejected: it misses the limit of kl_mean.**" in rejected and "rejected" not in kept
    for words in (
        'with load("OWNER/small") as model:', "llmc pull OWNER/small", "AutoModelForCausalLM.from_pretrained",
        "vllm serve OWNER/small", 'onnxruntime.InferenceSession("model.onnx")', "## What was not measured",
        "no benchmark was run on it", "## Limits", "does not say which license it has",
    ):  # fmt: skip
        assert words in kept, words


def test_what_others_wrote_into_a_manifest_is_no_markup() -> None:
    text = model_card(report())
    assert not re.search(r"(?<!\\)<(script|img)", text.split("---\n", 2)[2])
    assert "base_model" not in yaml.safe_load(text.split("---\n")[1])  # its id is none


def test_scores_for_the_hub() -> None:
    audit = audit_record()
    task = next(iter(audit.tasks.values()))
    tasks = {
        "reasoning.gsm8k": task.model_copy(update={"data": "openai/gsm8k on the hub"}),
        "own": task.model_copy(update={"data": "questions.jsonl"}),
    }
    assert eval_results(audit.model_copy(update={"tasks": tasks})) == ""  # of 400 samples at most
    text = eval_results(audit.model_copy(update={"tasks": tasks, "limit": None}))
    (entry,) = parse_eval_result_entries(yaml.safe_load(text))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("openai/gsm8k", "gsm8k", 0.58)
    assert entry.notes is not None and "the original: 0.61, difference -0.03 [-0.05, -0.01] (95 %)" in entry.notes
