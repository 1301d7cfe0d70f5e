"""MiMo-7B: its layer for multi-token prediction, in its own spelling, as vLLM (by MiMo's authors) computes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.graph_comparison import compare_with_torch
from support.graph_session import divergences
from support.mimo_mtp import MTP, reference_drafts
from support.model_lines import published_config
from support.random_checkpoint import QWEN2
from support.small_config import small_config
from support.small_model import save, witness
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2ForCausalLM

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.families import family_of
from llmc.convert.model import CausalLM
from llmc.convert.targets import target
from llmc.errors import InputError
from llmc.quant.assign import Rule
from llmc.quant.layerwise import quantize

CONFIG = small_config(published_config("XiaomiMiMo--MiMo-7B-Base"))
QWEN2_OF = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
IDS = torch.randint(3, 96, (2, 40), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def published() -> PreTrainedModel:
    return witness(CONFIG | QWEN2_OF)


@pytest.fixture(scope="module")
def source(published: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(save(published, CONFIG, tmp_path_factory.mktemp("mimo") / "source"))


@pytest.fixture(scope="module")
def artifact(source: Checkpoint) -> Checkpoint:
    rules = [Rule("attention", "fp8-channel", "rtn"), Rule("mtp", "int4-g32", "gptq")]
    folder = source.path.parent
    quantize(source, rules, None, IDS, IDS, folder / "artifact", folder / "work", lambda *_: None)
    return Checkpoint.open(folder / "artifact")


def drafted(model: CausalLM) -> torch.Tensor:
    return model.logits(model.mtp(IDS[:, 1:], model.hidden(IDS, for_mtp=True)[:, :-1]))


def test_drafts_equal_the_reference(published: PreTrainedModel, source: Checkpoint) -> None:
    expected = reference_drafts(published, source, IDS)
    model = CausalLM.load(source)
    assert divergences(expected, drafted(model)).max() < 1e-5
    cache, hidden = model.new_cache(2, 40)[-1], model.hidden(IDS, for_mtp=True)
    steps = [model.mtp(IDS[:, i + 1 : i + 2], hidden[:, i : i + 1], cache) for i in range(39)]
    assert divergences(expected, model.logits(torch.cat(steps, dim=1))).max() < 1e-5


def test_the_layer_keeps_its_spelling_and_is_quantized(artifact: Checkpoint) -> None:
    index = json.loads((artifact.path / "model.safetensors.index.json").read_text(encoding="utf-8"))
    mine = {name.removeprefix(MTP) for name in index["weight_map"] if name.startswith(MTP)}
    norms = {f"{name}_layernorm.weight" for name in ("token", "hidden", "final", "input", "post_attention")}
    assert norms | {"input_proj.weight_packed", "self_attn.q_proj.bias", "mlp.down_proj.weight_scale"} <= mine
    assert not any(".layers.2." in name for name in index["weight_map"])
    config = json.loads((artifact.path / "config.json").read_text(encoding="utf-8"))
    assert (config["architectures"], config["model_type"]) == (["MiMoForCausalLM"], "qwen2")
    assert (
        artifact.kind("model.layers.2.eh_proj.weight") == artifact.kind("model.layers.2.mlp.up_proj.weight") is not None
    )


def test_transformers_reads_the_artifact_as_qwen2(artifact: Checkpoint) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(artifact.path, dtype=torch.float32)
    assert isinstance(theirs, Qwen2ForCausalLM)
    model = CausalLM.load(artifact)
    with torch.no_grad():
        said = theirs(IDS).logits.float()
    assert divergences(said, model.logits(model.hidden(IDS))).max() < 1e-5


def test_calibration_reads_what_the_layer_does(published: PreTrainedModel, tmp_path: Path) -> None:
    """GPTQ, whose Hessians are of what `eh_proj` reads, beats rounding to nearest: not so if it took the hidden state
    behind the final norm, which here hides half of the channels.
    """
    norm = published.model.norm.weight
    before = norm.clone()
    norm[::2] = 2**-12
    source = Checkpoint.open(save(published, CONFIG, tmp_path / "source"))
    norm.copy_(before)
    model, errors = CausalLM.load(source), {}
    text = torch.randint(3, 96, (32, 40), generator=torch.Generator().manual_seed(9))
    rules = {method: Rule(r"re:.*\.eh_proj", "int3-g32", method) for method in ("gptq", "rtn")}
    for method, rule in rules.items():
        quantize(source, [rule], None, text, IDS, tmp_path / method, tmp_path / "work", lambda *_: None)
        rounded = CausalLM.load(Checkpoint.open(tmp_path / method))
        hidden = model.hidden(IDS, for_mtp=True)[:, :-1]
        want, found = (each.mtp(IDS[:, 1:], hidden) for each in (model, rounded))
        errors[method] = (found - want).norm() / want.norm()
    assert errors["gptq"] < 0.86 * errors["rtn"]


def test_graphs(artifact: Checkpoint) -> None:
    made = target("onnxruntime")
    options = made.Options(accuracy_level=1)
    compare_with_torch(artifact, made.build(artifact, options, artifact.path, lambda *_: None))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no biases": ({"attention_bias": False}, "`attention_bias` is False, but only True is supported"),
    "half a layer": ({"num_nextn_predict_layers": 0.5}, "`num_nextn_predict_layers` must be an integer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    changes, said = REFUSED[name]
    with pytest.raises(InputError) as caught:
        family_of(CONFIG).spec(CONFIG | changes)
    assert said in str(caught.value)


def test_qwen2_without_architectures_is_no_mimo() -> None:
    config = {key: value for key, value in QWEN2.items() if key != "architectures"}
    assert family_of(config).name == "qwen2"
    assert family_of(CONFIG | {"model_type": "qwen2"}).name == "mimo"
