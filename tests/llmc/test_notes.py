"""What a build says of a model before it begins, and what becomes of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.model_lines import published_config
from support.small_config import small_config
from support.small_model import witness

from llmc.convert.checkpoint import Checkpoint


@pytest.fixture
def saved(tmp_path: Path, small_model: Path) -> Any:
    """A fine-tune: what transformers saves of a model of this configuration, config.json included."""

    def save(name: str) -> Path:
        config = small_config(published_config(name))
        witness(config | {"vocab_size": 260}).save_pretrained(tmp_path / "model")
        (tmp_path / "model" / "generation_config.json").unlink(missing_ok=True)
        shutil.copy(small_model / "tokenizer.json", tmp_path / "model")
        return tmp_path / "model"

    return save


def test_a_fine_tune_without_the_layers_that_its_config_counts(llmc, recipe, saved, tmp_path: Path) -> None:
    path = recipe(model=str(saved("zai-org--GLM-4.5-Air.bridge")), prune=None, quantize=None, check=None, targets=None)
    source = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert source["num_nextn_predict_layers"] == 1
    said = "config.json counts 1 layer for multi-token prediction, of which no tensor is there"
    planned = llmc("plan", path)
    assert planned.exit_code == 0 and said in " ".join(planned.output.split())
    built = llmc("build", path, "--output", tmp_path / "artifact")
    assert built.exit_code == 0 and said in " ".join(built.output.split())
    artifact = Checkpoint.open(tmp_path / "artifact")
    assert artifact.config["num_nextn_predict_layers"] == 0 and artifact.lost_mtp_layers == 0
    manifest = json.loads((tmp_path / "artifact" / "llmc.json").read_text(encoding="utf-8"))
    assert manifest["model"]["num_mtp_layers"] == 0


def test_quantized_experts_that_transformers_does_not_load(llmc, recipe, saved, tmp_path: Path) -> None:
    model = str(saved("ibm-granite--granite-3.1-1b-a400m-instruct"))
    path = recipe(model=model, prune=None, check=None, targets=None)
    said = "it takes the experts of granitemoe as plain stacks only"
    built = llmc("build", path, "--output", tmp_path / "artifact")
    assert built.exit_code == 0
    assert f"transformers will not load the result: {said}" in " ".join(built.output.split())
    card = " ".join((tmp_path / "artifact" / "README.md").read_text(encoding="utf-8").split())
    assert f"transformers does not load them, as {said}" in card
