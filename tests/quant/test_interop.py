"""What other programs make of the files: transformers with compressed-tensors loads them and says the same.

transformers leaves MTP tensors unread (it reports them as unexpected); that they are written is tested elsewhere.
"""

import pytest
import torch
from support.artifact_in_transformers import as_transformers_decodes, loaded_by_transformers
from support.random_checkpoint import DEEPSEEK_V3, LLAMA, random_checkpoint
from transformers import AutoModelForCausalLM

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.formats import layout
from llmc.convert.model import CausalLM
from llmc.quant.assign import Rule
from llmc.quant.layerwise import quantize
from llmc.quant.schemes import scheme

DEEPSEEK = DEEPSEEK_V3 | {"moe_intermediate_size": 64, "v_head_dim": 16, "q_lora_rank": 32}
DENSE = LLAMA | {"intermediate_size": 128}
CASES = {
    "int4 experts, FP8 attention": (DEEPSEEK, [Rule("experts", "int4-g32"), Rule("attention", "fp8-block", "rtn")]),
    "everything FP8 per channel": (DEEPSEEK, [Rule(r, "fp8-channel", "rtn") for r in ("experts", "attention")]),
    # Zero points are left out: compressed-tensors 0.20 packs them, but makes room for unpacked ones when it loads.
    "8 bits, 3 bits and 2 bits": (
        DEEPSEEK,
        [Rule("experts", "int3-g32"), Rule("kv_b_proj", "int8-channel"), Rule("shared_experts", "int2-g32", "gptq")],
    ),
    "dense, 3 bits and 2 bits": (
        LLAMA | {"intermediate_size": 128},
        [Rule("dense_mlp", "int3-g64"), Rule("attention", "int2-channel", "gptq")],
    ),
    "dense, 6 bits and 5 bits": (DENSE, [Rule("dense_mlp", "int6-g64", "rtn"), Rule("attention", "int5-g32", "rtn")]),
    # Experts that stay floats beside integers: transformers decodes experts by a group that names some.
    "int4 attention, float experts": (DEEPSEEK, [Rule("attention", "int4-g32", "rtn")]),
    "int4 shared and MTP, float experts": (
        DEEPSEEK,
        [Rule("shared_experts", "int4-g32", "rtn"), Rule("mtp", "int8-g32", "rtn")],
    ),
    "int4 kv_b, FP8 attention, float experts": (
        DEEPSEEK,
        [Rule("kv_b_proj", "int4-g32", "rtn"), Rule("attention", "fp8-block", "rtn")],
    ),
    "FP8 experts in one layer, int4 attention": (
        DEEPSEEK,
        [Rule(r"re:.*layers\.1\.mlp\.experts.*", "fp8-channel", "rtn"), Rule("attention", "int4-g32", "rtn")],
    ),
    "FP8 MTP, int4 experts": (DEEPSEEK, [Rule("mtp", "fp8-channel", "rtn"), Rule("experts", "int4-g32", "rtn")]),
    "FP8 with rounded inputs": (
        DENSE,
        [Rule("dense_mlp", "fp8-tensor-static", "rtn"), Rule("attention", "fp8-channel-dynamic", "rtn")],
    ),
    "MXFP4 experts, FP8 attention, NVFP4 shared experts": (
        DEEPSEEK,
        [Rule("experts", "mxfp4"), Rule("attention", "fp8-block", "rtn"), Rule("shared_experts", "nvfp4")],
    ),
    "FP4 with rounded inputs": (DENSE, [Rule("dense_mlp", "nvfp4-static"), Rule("attention", "mxfp4-dynamic")]),
    "dense, NVFP4 and MXFP4": (DENSE, [Rule("dense_mlp", "nvfp4"), Rule("attention", "mxfp4")]),
    "dense": (
        LLAMA | {"intermediate_size": 128},
        [Rule("dense_mlp", "int4-g64"), Rule("attention", "fp8-block", "rtn")],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_transformers_loads_what_we_write(case, tmp_path):
    config, rules = CASES[case]
    source = Checkpoint.open(random_checkpoint(tmp_path / "source", config))
    text = torch.randint(3, 96, (32, 32), generator=torch.Generator().manual_seed(0))
    quantize(source, rules, None, text, text[:2], tmp_path / "out", tmp_path / "work", lambda *_: None)
    checkpoint = Checkpoint.open(tmp_path / "out")
    theirs = loaded_by_transformers(tmp_path / "out")
    with torch.no_grad():
        got = theirs(text[:4]).logits
    ours = as_transformers_decodes(checkpoint)
    want = ours.logits(ours.hidden(text[:4]))
    assert ((got - want).abs().max() / want.abs().max()).item() < 1e-4


REFUSED = {
    "two kinds of experts": (
        [Rule(r"re:.*layers\.1\.mlp\.experts.*", "int8-g32", "rtn"), Rule("experts", "int4-g32", "rtn")],
        {"experts": ["int4-g32", "int8-g32"]},
        False,
        "stored in one way",
    ),
    "some experts": (
        [Rule(r"re:.*layers\.1\.mlp\.experts.*", "int4-g32", "rtn")],
        {"experts": ["int4-g32"]},
        True,
        "stored in one way",
    ),
    "two kinds of matrices": (
        [Rule(r"re:.*\.mlp\.experts.*down_proj", "fp8-channel", "rtn"), Rule("experts", "int4-g32", "rtn")],
        {"experts": ["int4-g32", "fp8-channel"]},
        False,
        "stored in one way",
    ),
    "zero points": (
        [Rule("attention", "int4-g32-asym", "rtn")],
        {"attention": ["int4-g32-asym"]},
        True,
        "zero points",
    ),
    "NVFP4 experts": ([Rule("experts", "nvfp4", "rtn")], {"experts": ["nvfp4"]}, False, "drops a scale"),
    "experts in blocks": ([Rule("experts", "fp8-block", "rtn")], {"experts": ["fp8-block"]}, False, "per channel"),
}


def obstacle(layout_name, schemes, plain_experts):
    specs = {role: [scheme(name).spec for name in names] for role, names in schemes.items()}
    return layout(layout_name).obstacle(specs, plain_experts)


@pytest.mark.parametrize("case", REFUSED)
def test_what_transformers_cannot_load_it_refuses_and_we_say_so(case, tmp_path):
    """Rather than that it takes codes for other codes."""
    rules, schemes, plain_experts, said = REFUSED[case]
    wide = DEEPSEEK | {"moe_intermediate_size": 256, "hidden_size": 256}
    source = Checkpoint.open(random_checkpoint(tmp_path / "source", wide | {"num_nextn_predict_layers": 0}))
    text = torch.randint(3, 96, (2, 32), generator=torch.Generator().manual_seed(0))
    quantize(source, rules, None, text, text, tmp_path / "out", tmp_path / "work", lambda *_: None)
    assert said in obstacle("compressed-tensors", schemes, plain_experts)
    with pytest.raises((RuntimeError, AttributeError)):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    CausalLM.load(Checkpoint.open(tmp_path / "out"))  # we do


def test_nothing_is_said_of_what_transformers_loads():
    assert not obstacle("compressed-tensors", {"experts": ["int4-g128"], "attention": ["fp8-block"]}, False)
    assert not obstacle("compressed-tensors", {"attention": ["int4-g32"], "mtp": ["int4-g32-asym"]}, True)
    assert not obstacle("compressed-tensors", {"experts": ["fp8-channel", "fp8-tensor"]}, True)
    assert not obstacle("gptq", {"attention": ["int4-g32-asym"]}, False)
    kept = {role: [scheme(name).spec] for role, name in (("experts", "mxfp4"), ("attention", "nvfp4"))}
    assert not layout("compressed-tensors").obstacle(kept, False)
    kept["experts"] = [scheme("nvfp4").spec]
    assert "drops a scale of experts in NVFP4" in layout("compressed-tensors").obstacle(kept, False)
