"""What other programs make of the files: transformers with compressed-tensors loads them and says the same.

transformers leaves MTP tensors unread (it reports them as unexpected); that they are written is tested elsewhere.
"""

import pytest
import torch
from random_checkpoint import DEEPSEEK_V3, LLAMA, random_checkpoint
from transformers import AutoModelForCausalLM

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import CausalLM
from llmc.quant.assign import Rule
from llmc.quant.layerwise import quantise

DEEPSEEK = DEEPSEEK_V3 | {"moe_intermediate_size": 64, "v_head_dim": 16}
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
    "FP8 with rounded inputs": (
        DENSE,
        [Rule("dense_mlp", "fp8-tensor-static", "rtn"), Rule("attention", "fp8-channel-dynamic", "rtn")],
    ),
    "dense": (
        LLAMA | {"intermediate_size": 128},
        [Rule("dense_mlp", "int4-g64"), Rule("attention", "fp8-block", "rtn")],
    ),
}


def round_experts(model: CausalLM, checkpoint: Checkpoint) -> None:
    """transformers keeps dequantised int4 experts in the dtype of their scales, bfloat16: so do we, here."""
    for index, layer in enumerate(model.layers):
        for name, module in layer.named_modules():
            weight = checkpoint.quantised(f"model.layers.{index}.{name}") if ".experts." in name else None
            if weight is not None and weight.code_type.startswith("int"):
                module.weight.copy_(weight.dequantise(torch.bfloat16).float())


@pytest.mark.parametrize("case", CASES)
def test_transformers_loads_what_we_write(case, tmp_path):
    config, rules = CASES[case]
    source = Checkpoint.open(random_checkpoint(tmp_path / "source", config))
    text = torch.randint(3, 96, (32, 32), generator=torch.Generator().manual_seed(0))
    quantise(source, rules, None, text, text[:2], tmp_path / "out", tmp_path / "work", lambda *_: None)
    checkpoint = Checkpoint.open(tmp_path / "out")
    ours = CausalLM.load(checkpoint)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        round_experts(ours, checkpoint)
        theirs(text[:1])  # decompresses
        for parameter in theirs.parameters():
            parameter.data = parameter.data.float()
        got = theirs(text[:4]).logits
    want = ours.logits(ours.hidden(text[:4]))
    assert ((got - want).abs().max() / want.abs().max()).item() < 1e-4
