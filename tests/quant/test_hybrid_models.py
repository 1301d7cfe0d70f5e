"""Qwen3-Next, Qwen3.5, Nemotron-H and Nemotron-3: parity with transformers over several chunks, quantized, and back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from support.artifact_in_transformers import as_transformers_decodes, loaded_by_transformers
from support.model_lines import published_config
from support.small_config import small_config
from support.small_model import save, witness
from transformers import PreTrainedModel

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import CausalLM
from llmc.convert.safetensors_file import SafetensorsWriter, StoredTensor, read_header
from llmc.errors import InputError
from llmc.quant.assign import Rule
from llmc.quant.layerwise import QuantizeOptions, quantize
from llmc.quant.prune import Pruning

NEXT, DENSE, EXPERTS = "Qwen--Qwen3-Next-80B-A3B.bridge", "Qwen--Qwen3.5-27B", "nvidia--Qwen3.6-35B-A3B-NVFP4"
MAMBA, NANO, SUPER = (
    f"nvidia--{name}"
    for name in (
        "Nemotron-H-56B-Base-8K",
        "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
        "NVIDIA-Nemotron-3-Super-120B-A12B-FP8",  # experts in fewer channels
    )
)
QWEN, NEMOTRON = (NEXT, DENSE, EXPERTS), (MAMBA, NANO, SUPER)
TOLERANCE = 1e-4  # of log-probabilities; see tests/support/ladder.py
IDS = torch.randint(3, 127, (4, 200), generator=torch.Generator().manual_seed(5))
MTP = {
    "mtp.fc.weight": (128, 256),
    "mtp.norm.weight": (128,),
    "mtp.layers.0.self_attn.q_proj.weight": (256, 128),
    "mtp.layers.0.mlp.experts.7.up_proj.weight": (64, 128),
}


def stored_in(folder: Path) -> dict[str, StoredTensor]:
    return {name: each for file in sorted(folder.glob("*.safetensors")) for name, each in read_header(file).items()}


def kept(name: str) -> bool:
    return name.startswith(("mtp.", "model.visual."))


@dataclass
class Small:
    """One of them at a small size, with what is beside its language model."""

    name: str
    folder: Path

    @cached_property
    def witness(self) -> PreTrainedModel:
        return witness(small_config(published_config(self.name)))

    @cached_property
    def checkpoint(self) -> Checkpoint:
        folder = save(self.witness, small_config(published_config(self.name)), self.folder / "source")
        tensors = {name: tensor.read() for name, tensor in stored_in(folder).items()}
        with SafetensorsWriter(folder / "model.safetensors") as writer:
            for name, shape in MTP.items():
                tensors[name] = torch.randn(shape, generator=torch.Generator().manual_seed(len(name))).bfloat16()
            for name, tensor in tensors.items():
                writer.add(name, tensor)
        return Checkpoint.open(folder)

    @cached_property
    def has_experts(self) -> bool:
        return self.name not in (DENSE, MAMBA)

    @cached_property
    def artifact(self) -> Checkpoint:
        rules = [Rule("attention", "int8-g32")]
        rules += [
            Rule(role, "int4-g32") for role in (("experts", "shared_experts") if self.has_experts else ("dense_mlp",))
        ]
        pruning = Pruning(0.75) if self.has_experts else None
        folder = self.folder / "artifact"
        quantize(self.checkpoint, rules, pruning, IDS, IDS[:1], folder, self.folder / "work", lambda *_: None)
        return Checkpoint.open(folder)


@pytest.fixture(scope="module")
def all_small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Small]:
    return {name: Small(name, tmp_path_factory.mktemp("hybrid")) for name in (*QWEN, *NEMOTRON)}


@pytest.fixture(params=QWEN + NEMOTRON)
def small(request: pytest.FixtureRequest, all_small: dict[str, Small]) -> Small:
    return all_small[request.param]


def log_probabilities(model: CausalLM, ids: torch.Tensor) -> torch.Tensor:
    return model.logits(model.hidden(ids)).log_softmax(-1)


@torch.no_grad()
def said_by(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, use_cache=False).logits.log_softmax(-1)


def test_parity_over_several_chunks(small: Small) -> None:
    found = log_probabilities(CausalLM.load(small.checkpoint), IDS[:2])
    expected = said_by(small.witness, IDS[:2])
    assert (found - expected).abs().max() < TOLERANCE
    assert expected.std() > 0.1


@pytest.mark.parametrize("name", QWEN)
def test_roles(name: str, all_small: dict[str, Small]) -> None:
    small = all_small[name]
    checkpoint = small.checkpoint
    roles = {name: checkpoint.role(name) for name in checkpoint.names()}
    layer = "model.layers.0"
    projections = ("in_proj_qkvz", "in_proj_ba") if small.name == NEXT else ("in_proj_qkv", "in_proj_a")
    for name in (*projections, "out_proj", "conv1d", "A_log", "dt_bias"):
        assert roles[f"{layer}.self_attn.{name}.weight"] == "attention"
    assert roles[f"{layer}.self_attn.norm.weight"] == "norm"
    assert roles["mtp.layers.0.mlp.experts.7.up_proj.weight"] == "mtp"
    if small.has_experts:
        assert roles[f"{layer}.mlp.shared_expert_gate.weight"] == "router"
        assert roles[f"{layer}.mlp.shared_experts.up_proj.weight"] == "shared_experts"
    if small.name != NEXT:
        assert {role for name, role in roles.items() if name.startswith("model.visual.")} == {"vision"}


@pytest.mark.parametrize("name", NEMOTRON)
def test_roles_of_layers_of_one_block(name: str, all_small: dict[str, Small]) -> None:
    small = all_small[name]
    checkpoint = small.checkpoint
    roles = {name: checkpoint.role(name) for name in checkpoint.names()}
    kinds = [checkpoint.spec.blocks(layer) for layer in range(checkpoint.spec.num_layers)]
    assert kinds == ["attention", "mlp"] * (len(kinds) // 2 - 1) + ["attention"] * 2 or name == MAMBA
    assert roles["model.layers.0.self_attn.in_proj.weight"] == roles["model.layers.0.self_attn.D.weight"] == "attention"
    assert roles["model.layers.0.norm.weight"] == roles["model.layers.1.norm.weight"] == "norm"
    expected = {"dense_mlp"} if name == MAMBA else {"experts", "shared_experts", "router"}
    expected |= {"dense_mlp"} if name == SUPER else set()  # the projections around all experts
    assert {role for each, role in roles.items() if each.startswith("model.layers.1.mlp.")} == expected


def test_artifact_in_transformers(small: Small) -> None:
    artifact = small.artifact
    theirs = said_by(loaded_by_transformers(artifact.path, type(small.witness)), IDS[:2])
    assert (theirs - log_probabilities(as_transformers_decodes(artifact), IDS[:2])).abs().max() < TOLERANCE
    assert artifact.spec.mlps != small.checkpoint.spec.mlps or not small.has_experts
    original = log_probabilities(CausalLM.load(small.checkpoint), IDS[:2])
    divergence = (original.exp() * (original - theirs)).sum(-1).mean()
    assert 1e-4 < divergence < 1  # quantized and pruned, and still this model


def test_what_is_kept_is_kept_bit_for_bit(small: Small) -> None:
    before, after = stored_in(small.checkpoint.path), stored_in(small.artifact.path)
    beside = [name for name in before if kept(name)]
    assert len(beside) >= len(MTP) + (small.name in (DENSE, EXPERTS))
    assert [name for name in after if kept(name)] == beside
    for name in [
        *beside,
        *(
            name
            for name in before
            if name.endswith((".A_log", ".dt_bias", ".D", "conv1d.weight", "conv1d.bias", "latent_proj.weight"))
        ),
    ]:
        assert after[name].dtype == before[name].dtype and torch.equal(after[name].read(), before[name].read()), name


@pytest.mark.parametrize("name", QWEN)
def test_linear_layers_are_quantized_under_their_own_names(name: str, all_small: dict[str, Small]) -> None:
    small = all_small[name]
    own = {name for name in stored_in(small.artifact.path) if ".layers.0.linear_attn." in name}
    quantized = {name.rpartition(".")[0].rpartition(".")[2] for name in own if name.endswith("weight_packed")}
    parts = {"qkvz", "ba"} if small.name == NEXT else {"qkv", "z", "a", "b"}
    assert quantized == {f"in_proj_{part}" for part in parts} | {"out_proj"}


def test_mamba_and_experts_under_their_own_names(all_small: dict[str, Small]) -> None:
    stored = stored_in(all_small[SUPER].artifact.path)
    modules = {
        name.rpartition(".")[0] for name in stored if name.endswith("weight_packed") and ".layers.1." not in name
    }
    assert {"backbone.layers.0.mixer.in_proj", "backbone.layers.0.mixer.out_proj"} <= modules
    assert {"backbone.layers.7.mixer.q_proj", "backbone.layers.3.mixer.experts.5.up_proj"} <= modules
    assert {"backbone.embeddings.weight", "backbone.norm_f.weight", "backbone.layers.7.norm.weight"} <= stored.keys()


def test_a_pruned_model_does_not_draft(small: Small) -> None:
    config = json.loads((small.artifact.path / "config.json").read_text())
    text = config.get("text_config", config)
    if not small.has_experts:
        assert text.get("mtp_num_hidden_layers", 0) == (small.name == DENSE)
        return
    assert text.get("num_experts", text.get("n_routed_experts")) == 6
    assert text.get("mtp_num_hidden_layers", 0) == text.get("num_nextn_predict_layers", 0) == 0
    if small.name != NANO:
        assert "pruned models do not draft" in " ".join(small.checkpoint.family.notes(small.checkpoint.config))


def test_experts_in_stacks_stay_in_stacks(all_small: dict[str, Small], tmp_path: Path) -> None:
    """As they were released; transformers saves them one by one."""
    one_by_one = all_small[EXPERTS].checkpoint
    tensors = {name: tensor.read() for name, tensor in stored_in(one_by_one.path).items()}
    stacked = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for layer in range(one_by_one.spec.num_layers):
        block = f"model.language_model.layers.{layer}.mlp.experts"
        gate, up, down = (
            torch.stack([tensors[f"{block}.{expert}.{name}_proj.weight"] for expert in range(8)])
            for name in ("gate", "up", "down")
        )
        stacked |= {f"{block}.gate_up_proj": torch.cat((gate, up), dim=1), f"{block}.down_proj": down}
    folder = tmp_path / "stacked"
    folder.mkdir()
    with SafetensorsWriter(folder / "model.safetensors") as writer:
        for name, tensor in stacked.items():
            writer.add(name, tensor)
    (folder / "config.json").write_text((one_by_one.path / "config.json").read_text())
    checkpoint = Checkpoint.open(folder)
    expected = log_probabilities(CausalLM.load(one_by_one), IDS[:1])
    assert torch.equal(log_probabilities(CausalLM.load(checkpoint), IDS[:1]), expected)

    quantize(checkpoint, [Rule("attention", "int8-g32", "rtn")], None, IDS[:1], IDS[:1], tmp_path / "a", tmp_path / "w",
             lambda *_: None)  # fmt: skip
    assert {name for name in stored_in(tmp_path / "a") if ".experts." in name} == {
        name for name in stacked if ".experts." in name
    }


def test_an_fp8_cache_is_that_of_attention_alone(all_small: dict[str, Small], tmp_path: Path) -> None:
    options = QuantizeOptions(fp8_cache=True)
    source = all_small[NEXT].checkpoint
    quantize(source, [Rule("shared_experts", "int4-g32", "rtn")], None, IDS[:2], IDS[:1], tmp_path / "a",
             tmp_path / "w", lambda *_: None, options)  # fmt: skip
    scales = {name for name in stored_in(tmp_path / "a") if name.endswith("_scale") and "weight" not in name}
    assert scales == {f"model.layers.3.self_attn.{each}_scale" for each in ("k", "v")}
    assert Checkpoint.open(tmp_path / "a").cache_scales(0) == {}


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        (NEXT, {"linear_num_value_heads": 3}, "`linear_num_value_heads` 3 is no multiple of `linear_num_key_heads` 2"),
        (NEXT, {"layer_types": ["full_attention"]}, "`layer_types` has 1 entries, and the model 4 layers"),
        (NEXT, {"layer_types": ["mamba"] * 4}, "`layer_types` makes layer 0 'mamba'; supported"),
        (NEXT, {"use_sliding_window": True}, "`use_sliding_window` is True"),
        (DENSE, {"attn_output_gate": False}, "in `text_config`: `attn_output_gate` is False"),
        (DENSE, {"output_gate_type": "relu"}, "`output_gate_type` must be 'swish' or 'silu'"),
        (EXPERTS, {"mlp_only_layers": [1]}, r"`mlp_only_layers` is \[1\]"),
        (NANO, {"mlp_hidden_act": "silu"}, "`mlp_hidden_act` is 'silu'"),
        (NANO, {"hybrid_override_pattern": "MEMEX*"}, r"layer 4 is to be 'X'; supported: mamba, attention, moe, mlp"),
        (NANO, {"num_hidden_layers": 7}, "`num_hidden_layers` is 7, and 6 layers are described"),
        (NANO, {"hybrid_override_pattern": None}, "`layers_block_type`, or `hybrid_override_pattern`, is missing"),
        (NANO, {"mamba_num_heads": 5}, "`mamba_num_heads` 5 is no multiple of `n_groups` 2"),
        (NANO, {"num_experts_per_tok": 9}, "`num_experts_per_tok` 9 of 8 experts"),
        (NANO, {"num_key_value_heads": 3}, "`num_attention_heads` 4 is no multiple of `num_key_value_heads` 3"),
    ],
)
def test_what_is_refused(name: str, changes: dict[str, Any], reason: str, all_small: dict[str, Small]) -> None:
    family, config = all_small[name].checkpoint.family, all_small[name].checkpoint.config
    changed = {**config, **changes}
    if "text_config" in config:
        changed = {**config, "text_config": {**config["text_config"], **changes}}
    with pytest.raises(InputError, match=reason):
        family.spec(changed)
