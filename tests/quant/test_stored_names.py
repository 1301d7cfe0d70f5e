"""Checkpoints whose family names and joins tensors in a way of its own: read where they lie, quantized, and written
back as they were named."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from support.graph_comparison import compare_with_torch
from support.quantized_checkpoint import DEEPSEEK
from support.random_checkpoint import LLAMA, random_weights, write_checkpoint

from llmc.convert.checkpoint import INDEX, Checkpoint
from llmc.convert.families import families
from llmc.convert.families.deepseek_v3 import DeepseekV3
from llmc.convert.families.family import Family
from llmc.convert.families.llama import Llama
from llmc.convert.model import CausalLM
from llmc.convert.safetensors_file import StoredTensor
from llmc.convert.stored_names import StoredNames
from llmc.convert.targets.onnxruntime import TARGET, OnnxRuntimeOptions
from llmc.errors import InputError
from llmc.quant.assign import Rule
from llmc.quant.layerwise import QuantizeOptions, quantize
from llmc.quant.prune import Pruning

IDS = torch.randint(0, 96, (16, 32), generator=torch.Generator().manual_seed(5))
Tensors = dict[str, torch.Tensor]


class Fused(Llama):
    """Phi's projections, and a prefix as models have that see, too."""

    name, architectures = "fused", ("FusedForCausalLM",)
    stored_names = StoredNames(
        renamed=(("language_model.model", "model"), ("self_attn.dense", "self_attn.o_proj")),
        joined={
            "self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"),
            "mlp.gate_up_proj": ("gate_proj", "up_proj"),
        },
    )


class Renamed(DeepseekV3):
    """Mixtral's experts."""

    name, architectures = "renamed", ("RenamedForCausalLM",)
    stored_names = StoredNames(
        renamed=(("block_sparse_moe", "mlp"), ("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj"))
    )


class Stacked(DeepseekV3):
    """One tensor for all experts, which has no `.weight` behind its name."""

    name, architectures = "stacked", ("StackedForCausalLM",)
    stored_names = StoredNames(
        renamed=(
            ("experts.gate_up_proj", "experts.gate_up_proj.weight"),
            ("experts.down_proj", "experts.down_proj.weight"),
        ),
        joined={"mlp.experts.gate_up_proj": ("gate_proj", "up_proj")},
        stacked=True,
    )


class Transposed(Stacked):
    """Qwen3-VL-MoE's experts: [E, H, 2 I], gate in the first half."""

    name, architectures = "transposed", ("TransposedForCausalLM",)
    stored_names = replace(Stacked.stored_names, transposed=True)


class Interleaved(Stacked):
    """Rows of gate and up in turn, as in gpt-oss's MXFP4."""

    name, architectures = "interleaved", ("InterleavedForCausalLM",)
    stored_names = replace(Stacked.stored_names, interleaved=True)


class Turned(Stacked):
    """gpt-oss's own: columns of gate and up in turn."""

    name, architectures = "turned", ("TurnedForCausalLM",)
    stored_names = replace(Stacked.stored_names, transposed=True, interleaved=True)


def fused(ours: Tensors) -> Tensors:
    stored: Tensors = {}
    for name, tensor in ours.items():
        block = name.replace("model.", "language_model.model.").rpartition(".")[0].rpartition(".")[0]
        if "q_proj" in name:
            part = name.rpartition(".")[2]
            rows = [ours[name.replace("q_proj", other)] for other in ("q_proj", "k_proj", "v_proj")]
            stored[f"{block}.qkv_proj.{part}"] = torch.cat(rows)
        elif "gate_proj" in name:
            stored[f"{block}.gate_up_proj.weight"] = torch.cat((tensor, ours[name.replace("gate_proj", "up_proj")]))
        elif not any(other in name for other in ("k_proj", "v_proj", "up_proj")):
            renamed = name.replace("model.", "language_model.model.", 1) if name.startswith("model.") else name
            stored[renamed.replace("o_proj", "dense")] = tensor
    return stored


def renamed(ours: Tensors) -> Tensors:
    pairs = (("mlp", "block_sparse_moe"), ("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2"))

    def name(text: str) -> str:
        for before, after in pairs:
            text = text.replace(before, after)
        return text

    return {name(text): tensor for text, tensor in ours.items()}


def stacked(ours: Tensors) -> Tensors:
    stored: Tensors = {}
    for name, tensor in ours.items():
        if ".experts." not in name:
            stored[name] = tensor
        elif ".experts.0.down_proj" in name:
            block = name.partition(".0.")[0]
            experts = range(sum(other.startswith(f"{block}.") for other in ours) // 3)
            gate, up, down = (
                [ours[f"{block}.{e}.{projection}_proj.weight"] for e in experts]
                for projection in ("gate", "up", "down")
            )
            stored[f"{block}.gate_up_proj"] = torch.stack([torch.cat(pair) for pair in zip(gate, up, strict=True)])
            stored[f"{block}.down_proj"] = torch.stack(down)
    return stored


def transposed(ours: Tensors) -> Tensors:
    return {name: tensor.mT.contiguous() if is_stack(name) else tensor for name, tensor in stacked(ours).items()}


def interleaved(ours: Tensors) -> Tensors:
    stored = stacked(ours)
    for name, tensor in stored.items():
        if name.endswith("gate_up_proj"):
            rows = tensor.shape[1] // 2
            order = torch.arange(2 * rows).view(2, rows).T.flatten()
            stored[name] = tensor[:, order]
    return stored


def turned(ours: Tensors) -> Tensors:
    return {name: tensor.mT.contiguous() if is_stack(name) else tensor for name, tensor in interleaved(ours).items()}


def is_stack(name: str) -> bool:
    return name.endswith(("experts.gate_up_proj", "experts.down_proj"))


@dataclass(frozen=True)
class Case:
    family: Family
    config: dict[str, Any]
    stored: Callable[[Tensors], Tensors]
    rules: dict[str, str]
    pruning: Pruning | None = None

    @property
    def own_config(self) -> dict[str, Any]:
        return self.config | {"architectures": [*self.family.architectures], "model_type": self.family.name}


# 128 rows of queries, 64 of keys and of values: whole FP8 blocks for none, whole words of zero points for all.
WIDE_LLAMA = LLAMA | {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 4, "attention_bias": True}
GROUPS = DEEPSEEK | {"n_group": 2, "topk_group": 2}
CASES = {
    "fused": Case(Fused(), WIDE_LLAMA, fused, {"attention": "int4-g32", "dense_mlp": "fp8-block"}),
    "fused, zero points": Case(
        Fused(), WIDE_LLAMA, fused, {"attention": "int4-g64-asym", "dense_mlp": "int2-g32-asym"}
    ),
    "fused, static inputs": Case(Fused(), WIDE_LLAMA, fused, {"attention": "fp8-channel-static"}),
    "renamed": Case(Renamed(), GROUPS, renamed, {"experts": "int8-g32", "dense_mlp": "int4-g32"}, Pruning(0.75)),
    "stacked": Case(Stacked(), GROUPS, stacked, {"experts": "int4-g32"}, Pruning(0.75)),
    "stacked, plain": Case(Stacked(), GROUPS, stacked, {"attention": "int8-g32"}, Pruning(0.75)),
    "transposed": Case(Transposed(), GROUPS, transposed, {"experts": "int4-g32"}, Pruning(0.75)),
    "transposed, plain": Case(Transposed(), GROUPS, transposed, {"attention": "int8-g32"}, Pruning(0.75)),
    "interleaved, plain": Case(Interleaved(), GROUPS, interleaved, {"attention": "int8-g32"}, Pruning(0.75)),
    "turned": Case(Turned(), GROUPS, turned, {"experts": "int4-g32"}),
    "turned, plain": Case(Turned(), GROUPS, turned, {"attention": "int8-g32"}, Pruning(0.75)),
}


@pytest.fixture(autouse=True)
def known_families(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for family in (Fused(), Renamed(), Stacked(), Transposed(), Interleaved(), Turned()):
        monkeypatch.setitem(families.all, family.name, family)
    yield


def opened(folder: Path, case: Case) -> tuple[Checkpoint, Checkpoint]:
    """The same model with our names, and with those of its family."""
    weights = {name: weight.bfloat16() for name, weight in random_weights(case.config).items()}
    plain = write_checkpoint(folder / "plain", case.config, weights)
    return Checkpoint.open(plain), Checkpoint.open(
        write_checkpoint(folder / "own", case.own_config, case.stored(weights))
    )


def quantized(checkpoint: Checkpoint, case: Case, folder: Path, rules: list[Rule] | None = None) -> Checkpoint:
    given = rules or [Rule(role, scheme) for role, scheme in case.rules.items()]
    quantize(checkpoint, given, case.pruning, IDS, IDS[:2], folder / "artifact", folder / "work", lambda *_: None)
    return Checkpoint.open(folder / "artifact")


@pytest.mark.parametrize("name", CASES)
def test_read_quantized_written_and_read_again(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    plain, own = opened(tmp_path, case)
    assert set(own.names()) == set(plain.names())
    ids = IDS[:2]
    model = CausalLM.load(own)
    assert torch.equal(model.logits(model.hidden(ids)), (same := CausalLM.load(plain)).logits(same.hidden(ids)))

    expected = quantized(plain, case, tmp_path / "of plain")
    artifact = quantized(own, case, tmp_path / "of own")
    assert set(artifact.names()) == set(expected.names())
    for tensor in expected.names():
        mine, theirs = artifact.quantized_tensor(tensor), expected.quantized_tensor(tensor)
        assert (mine is None) == (theirs is None), tensor
        assert mine is None or theirs is None or (mine.kind, mine.activations) == (theirs.kind, theirs.activations)
        assert torch.equal(artifact.tensor(tensor), expected.tensor(tensor)), tensor

    # Targets point into the files, or write again what they cannot.
    result = TARGET.build(artifact, OnnxRuntimeOptions(accuracy_level=1), artifact.path, lambda *_: None)
    compare_with_torch(artifact, result)


def test_names_in_the_files(tmp_path: Path) -> None:
    for name, present, absent in (
        (
            "fused",
            {
                "language_model.model.layers.0.self_attn.qkv_proj.weight_packed",
                "language_model.model.layers.0.self_attn.qkv_proj.bias",
                "language_model.model.layers.1.self_attn.dense.weight_scale",
                "language_model.model.layers.1.mlp.gate_up_proj.weight",
                "language_model.model.norm.weight",
                "lm_head.weight",
            },
            ("q_proj", "o_proj", "up_proj.up"),
        ),
        (
            "renamed",
            {
                "model.layers.1.block_sparse_moe.experts.5.w2.weight_packed",
                "model.layers.0.block_sparse_moe.w1.weight_packed",
                "model.layers.1.block_sparse_moe.gate.e_score_correction_bias",
            },
            ("mlp", "gate_proj"),
        ),
        ("stacked", {"model.layers.1.mlp.experts.5.gate_proj.weight_packed"}, ("layers.1.mlp.experts.gate_up_proj",)),
        (
            "stacked, plain",
            {"model.layers.1.mlp.experts.gate_up_proj", "model.layers.1.mlp.experts.down_proj"},
            ("experts.0",),
        ),
    ):
        case = CASES[name]
        artifact = quantized(opened(tmp_path / name, case)[1], case, tmp_path / name)
        stored = json.loads((artifact.path / INDEX).read_text())["weight_map"].keys()
        assert present <= stored
        assert not [each for each in stored for part in absent if part in each]
        config = json.dumps(json.loads((artifact.path / "config.json").read_text())["quantization_config"])
        assert not [part for part in absent if part.replace(".", r"\\.") in config], config


def test_a_part_is_read_without_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    read = StoredTensor._between
    names = ("fused", "stacked", "transposed", "interleaved, plain", "turned")
    own = [opened(tmp_path / name, CASES[name])[1] for name in names]
    monkeypatch.setattr(StoredTensor, "_between", lambda self, size: (taken.append(size), read(self, size))[1])
    own[0].tensor("model.layers.0.self_attn.k_proj.weight")
    for checkpoint in own[1:]:
        checkpoint.tensor("model.layers.1.mlp.experts.3.up_proj.weight")
    whole = 2 * 64 * 128
    # Of 64 rows and 128 columns: up to the last element of its own, across those of the gate.
    assert taken == [whole, whole, 2 * whole - 2 * 64, 2 * whole - 2 * 128, 2 * whole - 2]


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ([(r"re:.*\.q_proj", "int4-g32")], r"qkv_proj holds q_proj, k_proj, v_proj, which are to become as it is and"),
        ([("attention", "fp8-tensor")], r"fp8-tensor has no scales for q_proj, k_proj, v_proj alone"),
        ([("attention", "fp8-block")], r"fp8-block has no scales .* of 64 and 128 rows"),
        ([("attention", "int3-g32-asym")], r"int3-g32-asym has no scales"),
    ],
)
def test_rules_that_do_not_fit_what_is_stored_as_one(rules: list[tuple[str, str]], reason: str, tmp_path: Path) -> None:
    case = CASES["fused"]
    with pytest.raises(InputError, match=reason):
        quantized(opened(tmp_path, case)[1], case, tmp_path, [Rule(*rule) for rule in rules])


def test_a_layout_that_cannot_be_cut(tmp_path: Path) -> None:
    case, options = CASES["fused"], QuantizeOptions(layout="gptq")
    own = opened(tmp_path, case)[1]
    with pytest.raises(InputError, match="layout gptq: fused stores several modules as one"):
        quantize(own, [], None, IDS, IDS[:2], tmp_path / "a", tmp_path / "w", lambda *_: None, options)


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    case = CASES["fused"]
    weights = case.stored(random_weights(case.config))
    name = "language_model.model.layers.0.self_attn.qkv_proj.weight"
    folder = write_checkpoint(tmp_path / "cut", case.own_config, weights | {name: weights[name][:-1]})
    with pytest.raises(InputError, match=r"qkv_proj\.weight \[255, 128\] cannot be cut at rows"):
        Checkpoint.open(folder)
    folder = write_checkpoint(tmp_path / "less", case.own_config, {k: v for k, v in weights.items() if k != name})
    with pytest.raises(InputError, match=r"language_model\.model\.layers\.0\.self_attn\.q_proj\.weight is missing"):
        Checkpoint.open(folder)
    case = CASES["stacked"]
    weights = case.stored(random_weights(case.config))
    name = "model.layers.1.mlp.experts.down_proj"
    folder = write_checkpoint(tmp_path / "stack", case.own_config, weights | {name: weights[name][:-1]})
    with pytest.raises(InputError, match=r"experts\.down_proj \[7, 128, 64\] is no stack of 8 experts"):
        Checkpoint.open(folder)
    case = CASES["turned"]
    weights = case.stored(random_weights(case.config))
    name = "model.layers.1.mlp.experts.gate_up_proj"
    folder = write_checkpoint(tmp_path / "turns", case.own_config, weights | {name: weights[name][..., :-1]})
    with pytest.raises(InputError, match=r"\[127, 128\] cannot be cut in 2 rows that take turns of the 128"):
        Checkpoint.open(folder)


def test_the_files_say_the_same_as_before(tmp_path: Path) -> None:
    """Experts that stay as they are, are written where and how they lay."""
    for name in ("stacked", "transposed", "interleaved", "turned"):
        case = CASES[f"{name}, plain"]
        own = opened(tmp_path / name, replace(case, pruning=None))[1]
        artifact = quantized(own, replace(case, pruning=None), tmp_path / name)
        before, after = ({key: found.whole or found for key, found in each._stored.items()} for each in (own, artifact))
        expert = "model.layers.1.mlp.experts.5.up_proj.weight"
        assert before[expert].name == after[expert].name == "model.layers.1.mlp.experts.gate_up_proj"
        assert torch.equal(before[expert].read(), after[expert].read())


def test_programs_find_the_experts_scheme_first(tmp_path: Path) -> None:
    """transformers decodes experts by the first group; whatever a family calls them."""
    case = CASES["renamed"]
    artifact = quantized(opened(tmp_path, case)[1], case, tmp_path)
    first = artifact.config["quantization_config"]["config_groups"]["group_0"]
    assert first["weights"]["num_bits"] == 8
    assert any(r"block_sparse_moe\.experts" in target for target in first["targets"])


@pytest.mark.parametrize("name", ["fused", "stacked", "transposed", "interleaved, plain", "turned"])
def test_whoever_reads_all_of_a_model_reads_every_byte_once(name: str, tmp_path: Path) -> None:
    """Parts that lie between each other are looked at as one, for NaN, too."""
    checkpoint = opened(tmp_path, CASES[name])[1]
    used = sorted(checkpoint.used(), key=lambda tensor: tensor.offset)
    assert all(a.offset + a.nbytes == b.offset for a, b in pairwise(used))
    assert sum(tensor.nbytes for tensor in used) == checkpoint.nbytes()
