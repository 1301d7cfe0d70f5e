"""What is said of a divergence, against transformers in float64 over the whole vocabulary."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file
from support.artifact_in_transformers import said_by_transformers
from support.random_checkpoint import QWEN2, random_checkpoint
from support.runnable_artifact import make_artifact

from llmc.quant.assign import Rule
from llmc.runtime import load


@pytest.fixture(scope="module")
def qwen_source(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 with many more tokens than are kept and drawn."""
    source = random_checkpoint(tmp_path_factory.mktemp("qwen"), QWEN2, vocab_size=700, intermediate_size=128)
    return Path(shutil.copy(small_model / "tokenizer.json", source)).parent


@pytest.fixture(scope="module")
def qwen(qwen_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = torch.randint(2, 700, (3, 40), generator=torch.Generator().manual_seed(0))
    return make_artifact(qwen_source, [Rule("attention", "int8-channel", "rtn")], text, tmp_path_factory.mktemp("qwen"))


@pytest.mark.parametrize("name", ["trained", "dense", "qwen"])
def test_exact_and_sampled_divergence_are_those_of_transformers(
    name: str, request: pytest.FixtureRequest, embedded: Path, tmp_path: Path
) -> None:
    artifact: Path = request.getfixturevalue(name)
    source = embedded if name == "trained" else request.getfixturevalue(f"{name}_source")
    reference = load_file(artifact / "reference.safetensors")
    ids = torch.from_numpy(reference["input_ids"]).long()
    p, q = (said_by_transformers(each, ids, tmp_path / str(i)) for i, each in enumerate((source, artifact)))
    exact = (p.exp() * (p - q)).sum(-1)
    assert float((artifact.parent / "kl").read_text()) == pytest.approx(exact.mean().item(), rel=1e-4)
    with load(artifact, threads=1) as model:
        report = model.check()
    assert report.kl_kind == "sampled" and report.kl_sampling_stderr
    assert abs(report.kl_mean - exact.mean().item()) < 4 * report.kl_sampling_stderr < 0.1 * report.kl_mean
