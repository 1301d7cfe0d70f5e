"""Data of suites that comes from a hub: a real one, on loopback, asked by the library itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets", reason="needs the extra `eval`: datasets is not installed")
pytest.importorskip("pyarrow", reason="needs the extra `hub`: pyarrow is not installed")

from support.hub_datasets import DatasetApi, add_dataset
from support.hub_server import HubServer

from llmc import plain_yaml
from llmc.audit_tasks import suites

DATA = Path(__file__).parents[1] / "data" / "audit"
_ASK = """
import json, sys
from llmc.audit_tasks import find_tasks
for task in find_tasks(sys.argv[1:], None, None):
    print(json.dumps([task.name, task.data, list(task.asked["custom_dataset"]()["test"])]))
"""


def hub_of(name: str) -> dict[str, Any]:
    """Where a suite's task says that its data lies."""
    suite, task = name.split(".")
    config, _ = plain_yaml.read(suites()[suite].read_text("utf-8"), prose=True)
    return dict(config[task]["llmc"]["hub"]) | {"data": config[task]["llmc"]["data"]}


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub", api=DatasetApi) as server:
        yield server


def test_suites_get_their_data_from_a_hub_and_need_it_once(hub: HubServer, tmp_path: Path) -> None:
    names = "reasoning.gsm8k", "bias.bbq_ambiguous", "reasoning.mmlu"
    for name in names:
        place = hub_of(name)
        own = rows(place["data"])
        configurations = place.get("names", [place.get("name")])
        add_dataset(hub, place["path"], dict.fromkeys(configurations, (place["split"], own)))

    def ask(**more: str) -> list[Any]:
        told = os.environ | hub.environment(tmp_path / "home", None) | more
        done = subprocess.run([sys.executable, "-c", _ASK, *names], env=told, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    found = {name: (data, asked) for name, data, asked in ask()}
    assert {name: data for name, (data, _) in found.items()} == {n: f"{hub_of(n)['path']} on the hub" for n in names}
    assert found["reasoning.gsm8k"][1] == rows("gsm8k")
    assert found["bias.bbq_ambiguous"][1] == [row for row in rows("bbq") if row["context_condition"] == "ambig"]
    assert found["reasoning.mmlu"][1] == rows("mmlu") * len(hub_of("reasoning.mmlu")["names"])
    before = len(hub.exchanges)
    assert {name: (data, asked) for name, data, asked in ask(HF_HUB_OFFLINE="1")} == found
    assert len(hub.exchanges) == before, "the second time nobody is asked"


def test_a_data_set_that_is_not_there_is_named(hub: HubServer, tmp_path: Path) -> None:
    told = os.environ | hub.environment(tmp_path / "home", None)
    done = subprocess.run([sys.executable, "-c", _ASK, "reasoning.gsm8k"], env=told, capture_output=True, text=True)
    assert done.returncode == 1 and "openai/gsm8k on the hub could not be loaded" in done.stderr
    assert "give --data FOLDER with gsm8k.jsonl" in done.stderr
