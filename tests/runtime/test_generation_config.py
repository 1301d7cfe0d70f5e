"""A model's own sampling settings, against transformers, which the file is written for."""

import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from support.listed_files import list_files
from transformers import GenerationConfig

from llmc.contracts.part import File
from llmc.contracts.run_manifest import RunManifest, RunModel, RunRecipe
from llmc.errors import InputError
from llmc.runtime import SamplingParams, load
from llmc.runtime.artifact import Artifact
from llmc.runtime.generation_config import FILE, read, said

R1 = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "bos_token_id": 0, "eos_token_id": 1}
QWEN = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}


def settings(folder: Path) -> SamplingParams:
    """Of an artifact that lists what is in the folder."""
    files = {
        path.name: File(sha256=sha256(path.read_bytes()).hexdigest(), bytes=path.stat().st_size)
        for path in folder.iterdir()
    }
    model = RunModel(max_position_embeddings=1, vocab_size=1, eos_token_ids=[])
    return read(
        Artifact(
            folder,
            {},
            RunManifest(format_version=1, files=files, targets={}, model=model, recipe=RunRecipe()),
            frozenset(),
        )
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (R1, SamplingParams(temperature=0.6, top_p=0.95)),
        (QWEN, SamplingParams(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05)),
        (QWEN | {"do_sample": False}, SamplingParams(repetition_penalty=1.05)),
        ({"temperature": 0.6}, SamplingParams()),  # transformers samples only when told to
        ({"do_sample": None, "temperature": None}, SamplingParams()),
        ({"do_sample": True}, SamplingParams(temperature=1.0)),
        ({"do_sample": True, "top_k": -1}, SamplingParams(temperature=1.0)),  # vLLM's "all"
        (
            {"do_sample": True, "temperature": None, "top_k": None, "min_p": 0.1},
            SamplingParams(temperature=1.0, min_p=0.1),
        ),
        ({"do_sample": True, "temperature": 1, "max_new_tokens": 5, "max_length": 20}, SamplingParams(temperature=1.0)),
        ({}, SamplingParams()),
    ],
)
def test_settings_are_those_of_transformers(tmp_path: Path, config: Any, expected: SamplingParams) -> None:
    (tmp_path / FILE).write_text(json.dumps(config))
    assert settings(tmp_path) == expected
    theirs = GenerationConfig.from_pretrained(tmp_path)
    assert bool(theirs.do_sample) == bool(expected.temperature)
    for name in ("temperature", "top_p", "repetition_penalty"):
        if theirs.do_sample and getattr(theirs, name) is not None:
            assert getattr(theirs, name) == getattr(expected, name)


def test_without_the_file_answers_are_greedy(tmp_path: Path) -> None:
    assert settings(tmp_path) == SamplingParams() and said(SamplingParams()) == ""


def test_settings_for_people() -> None:
    found = SamplingParams(temperature=0.6, top_p=0.95, top_k=20, repetition_penalty=1.05, seed=3, stop="a")
    assert said(found) == "temperature 0.6, top_k 20, top_p 0.95, repetition_penalty 1.05"
    assert said(found, {"temperature", "top_k"}) == "top_p 0.95, repetition_penalty 1.05"
    assert (
        said(SamplingParams(top_p=0.5, repetition_penalty=1.1)) == "repetition_penalty 1.1"
    )  # the rest is of no effect


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "broken"),
        ("[1]", "no JSON object"),
        ("\xff", "broken"),
        ("[" * 100_000, "broken"),
        ('{"do_sample": "yes"}', "do_sample is 'yes'; it has to be True or False"),
        ('{"do_sample": true, "temperature": "hot"}', "temperature is 'hot'"),
        ('{"do_sample": true, "temperature": NaN}', "NaN is no finite number"),
        ('{"do_sample": true, "top_p": 2}', "top_p is 2"),
        ('{"do_sample": true, "top_k": true}', "top_k is True"),
        ('{"repetition_penalty": [1]}', r"repetition_penalty is \[1\]"),
    ],
)
def test_a_broken_file_is_told(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=f"{FILE}: .*{message}.*; give SamplingParams of your own"):
        settings(tmp_path)


def test_a_model_follows_its_own_settings_and_the_caller_wins(trained: Path, tmp_path: Path) -> None:
    artifact = shutil.copytree(trained, tmp_path / "artifact")
    (artifact / FILE).write_text(json.dumps({"do_sample": True, "temperature": 1.5, "top_k": 50}))
    list_files(artifact, FILE)
    with load(trained, threads=1) as plain, load(artifact, threads=1) as model:
        sampled = plain.generate("def ", max_new_tokens=12, temperature=1.5, top_k=50)
        greedy = plain.generate("def ", max_new_tokens=12)
        assert sampled.text != greedy.text
        assert model.generate("def ", max_new_tokens=12) == sampled
        assert model.generate("def ", max_new_tokens=12, temperature=None) == sampled
        assert "".join(model.stream("def ", max_new_tokens=12)) == sampled.text
        assert model.session().generate("def ", max_new_tokens=12).text == sampled.text
        assert model.generate("def ", max_new_tokens=12, temperature=0) == greedy
        assert model.generate("def ", SamplingParams(max_new_tokens=12)) == greedy  # taken as they are
        assert model.generate(["def "], [SamplingParams(max_new_tokens=12)]) == [greedy]
    (artifact / FILE).write_text('{"do_sample": 3}')
    list_files(artifact, FILE)
    with load(artifact, threads=1) as broken:
        with pytest.raises(InputError, match="give SamplingParams of your own"):
            broken.generate("def ")
        assert broken.generate("def ", SamplingParams(max_new_tokens=12)) == greedy
