"""Names of modules and tensors: taken apart, and put together to the same."""

import re

import pytest
from support.random_checkpoint import DEEPSEEK_V3, LLAMA
from support.source_files import sources

from llmc.convert.families import family_of
from llmc.convert.layer_modules import weight_shapes
from llmc.convert.tensor_names import ModuleName, TensorName, module_of

CASES = {
    "model.layers.3.mlp.experts.12.gate_proj": ModuleName(3, "mlp.experts", 12, "gate_proj"),
    "model.layers.3.mlp.experts.gate_up_proj": ModuleName(3, "mlp.experts", None, "gate_up_proj"),
    "mlp.experts.12": ModuleName(None, "mlp.experts", 12, ""),
    "model.layers.0.self_attn.q_proj": ModuleName(0, "self_attn", None, "q_proj"),
    "model.layers.0.input_layernorm": ModuleName(0, "", None, "input_layernorm"),
    "model.layers.0": ModuleName(0, "", None, ""),
    "mlp.shared_experts.up_proj": ModuleName(None, "mlp.shared_experts", None, "up_proj"),
    "lm_head": ModuleName(None, "", None, "lm_head"),
    "model.embed_tokens": ModuleName(None, "model", None, "embed_tokens"),
    # Strangers' names: no number that would be written otherwise is taken for one.
    "model.layers.007.mlp": ModuleName(None, "model.layers.007", None, "mlp"),
    "mlp.experts.\u0663.up_proj": ModuleName(None, "mlp.experts.\u0663", None, "up_proj"),
    "mlp.experts": ModuleName(None, "mlp", None, "experts"),
    "": ModuleName(None, "", None, ""),
}


@pytest.mark.parametrize("name", CASES)
def test_a_module(name: str) -> None:
    assert ModuleName.parse(name) == CASES[name]
    assert str(CASES[name]) == name


def test_parts_of_a_name() -> None:
    name = ModuleName.parse("model.layers.3.mlp.experts.12.gate_proj")
    assert (name.inside, name.parent) == ("mlp.experts.12.gate_proj", "model.layers.3.mlp.experts.12")
    assert (name.part_of_layer, ModuleName.parse("model.layers.3.eh_proj").part_of_layer) == ("mlp", "eh_proj")


@pytest.mark.parametrize("config", [DEEPSEEK_V3, LLAMA], ids=["deepseek", "llama"])
def test_every_tensor_of_a_model(config: dict[str, object]) -> None:
    for name in weight_shapes(family_of(config).spec(config)):
        parsed = TensorName.parse(name)
        assert str(parsed) == name
        assert str(parsed.module) == module_of(name)
        assert parsed.part in ("weight", "bias", "e_score_correction_bias")


def test_nobody_else_takes_names_apart() -> None:
    by_hand = re.compile(
        r"""removesuffix\("\.weight"\)|split\("\."|index\("experts"\)|"experts" (not )?in|"\S*\.experts\.\S*" in|"""
        r"""(starts|ends)with\("(model\.layers|\.?mlp|\.?self_attn)"""
    )
    homes = {"tensor_names.py", "stored_names.py"}
    found = [
        f"{path.name}: {line.strip()}"
        for path in sources("convert", "quant", "llmc")
        if path.name not in homes and path.parent.name != "families"
        for line in path.read_text(encoding="utf-8").splitlines()
        if by_hand.search(line)
    ]
    assert not [line for line in found if "__version__" not in line]
