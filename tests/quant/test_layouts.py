"""The layouts beside compressed-tensors, and what a recipe may ask of each."""

import json

import pytest
import torch
from safetensors.torch import load_file
from support.layerwise_pass import random_ids, run_pass
from support.random_checkpoint import DEEPSEEK_V3, LLAMA, random_checkpoint
from transformers import AutoModelForCausalLM, FineGrainedFP8Config

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import CausalLM
from llmc.errors import InputError
from llmc.quant.assign import Rule
from llmc.quant.layerwise import QuantizeOptions

# An expert is two blocks of 128 rows, the second cut short; transformers spreads such scales evenly over all rows.
DEEPSEEK = DEEPSEEK_V3 | {"moe_intermediate_size": 160}
ROLES = ("experts", "shared_experts", "dense_mlp", "attention", "kv_b_proj")
TEXT = random_ids(16, 32)


def written(source, directory, rules, options):
    run_pass(source, directory, rules, TEXT, TEXT[:2], options=options)
    return directory / "out"


def tensors(path):
    return {
        name: tensor for file in sorted(path.glob("model-*.safetensors")) for name, tensor in load_file(file).items()
    }


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    directory = tmp_path_factory.mktemp("native")
    source = random_checkpoint(directory / "source", DEEPSEEK)
    rules = [Rule(role, "fp8-block", "rtn") for role in ROLES]
    return source, written(source, directory, rules, QuantizeOptions(layout="native-fp8"))


def test_native_fp8_is_what_deepseek_publishes(native):
    """Names, types, shapes, config; and the weight is codes times the scale of their 128x128 block."""
    source, output = native
    config = json.loads((output / "config.json").read_text())["quantization_config"]
    assert {key: config[key] for key in ("quant_method", "fmt", "activation_scheme", "weight_block_size")} == {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }
    stored, module = tensors(output), "model.layers.1.mlp.experts.0.gate_proj"
    codes, scale = stored[f"{module}.weight"], stored[f"{module}.weight_scale_inv"]
    assert (codes.dtype, scale.dtype, scale.shape) == (torch.float8_e4m3fn, torch.float32, (2, 1))
    weight = Checkpoint.open(source).tensor(f"{module}.weight")
    for start, factor in ((0, scale[0, 0]), (128, scale[1, 0])):
        part, kept = weight[start : start + 128], codes[start : start + 128].float() * factor
        assert torch.equal(kept.abs().max(), part.abs().max())  # the largest becomes 448
        assert ((kept - part).abs() <= part.abs() / 16 + 448 * factor * 2**-18).all()  # 4 bits, and subnormals


def test_native_fp8_goes_through_unchanged(native, tmp_path):
    """From its own scales, with no second rounding, whatever the module."""
    _, published = native
    again = written(published, tmp_path, [Rule("attention", "fp8-block", "rtn")], QuantizeOptions(layout="native-fp8"))
    before, after = tensors(published), tensors(again)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(tensor.view(torch.uint8), after[name].view(torch.uint8)), name


def test_transformers_loads_native_fp8(tmp_path):
    source = random_checkpoint(tmp_path / "source", DEEPSEEK_V3 | {"v_head_dim": 16})
    rules = [Rule(role, "fp8-block", "rtn") for role in ROLES]
    output = written(source, tmp_path, rules, QuantizeOptions(layout="native-fp8"))
    ours = CausalLM.load(Checkpoint.open(output))
    theirs = AutoModelForCausalLM.from_pretrained(
        output,
        quantization_config=FineGrainedFP8Config(dequantize=True, weight_block_size=(128, 128)),
        dtype=torch.float32,
    )
    with torch.no_grad():
        got = theirs(TEXT[:2]).logits
    want = ours.logits(ours.hidden(TEXT[:2]))
    assert ((got - want).abs().max() / want.abs().max()).item() < 1e-4


def test_gptq_config_names_every_exception(tmp_path):
    """GPTQModel quantizes what no pattern of `dynamic` takes out."""
    source = random_checkpoint(tmp_path / "source", LLAMA | {"intermediate_size": 128})
    rules = [Rule("dense_mlp", "int4-g32-asym-actorder"), Rule(r"re:.*layers\.0.*\.q_proj", "int8-g64")]
    output = written(source, tmp_path, rules, QuantizeOptions(layout="gptq"))
    config = json.loads((output / "config.json").read_text())["quantization_config"]
    assert (config["bits"], config["group_size"], config["desc_act"], config["sym"]) == (4, 32, True, False)
    assert config["checkpoint_format"] == "gptq_v2"
    other = {"bits": 8, "group_size": 64, "desc_act": False, "sym": True}
    assert [value for key, value in config["dynamic"].items() if key.startswith("+:")] == [other]
    checkpoint = Checkpoint.open(output)
    weight = checkpoint.quantized("model.layers.1.mlp.gate_proj")
    assert weight is not None and weight.g_idx is not None and weight.zero_points is not None
    assert checkpoint.quantized("model.layers.0.self_attn.q_proj").code_type == "int8"
    assert checkpoint.quantized("model.layers.0.self_attn.k_proj") is None


@pytest.mark.parametrize(
    ("layout", "scheme", "fp8_cache", "said"),
    [
        ("compressed-tensors", "int4-g32-actorder", False, "no place for int4-g32-actorder; it stores all schemes but"),
        ("gptq", "fp8-block", False, "layout gptq has no place for fp8-block; it stores integers"),
        ("native-fp8", "int4-g32", False, "layout native-fp8 has no place for int4-g32; it stores fp8-block"),
        ("gptq", "int4-g32", True, "no place for the scales of an FP8 cache; use compressed-tensors"),
        ("modelopt", "fp8-block", False, "no place for fp8-block; it stores nvfp4, nvfp4-static and fp8-tensor-static"),
        ("awq", "int4-g32", False, "unknown layout 'awq'; known: compressed-tensors, gptq, modelopt, mxfp4, native"),
    ],
)
def test_what_a_layout_has_no_place_for_is_refused(tmp_path, layout, scheme, fp8_cache, said):
    source = random_checkpoint(tmp_path / "source", LLAMA | {"intermediate_size": 128})
    with pytest.raises(InputError, match=said):
        written(source, tmp_path, [Rule("dense_mlp", scheme)], QuantizeOptions(layout=layout, fp8_cache=fp8_cache))
