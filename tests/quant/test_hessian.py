"""Which linear layers share a Hessian: those that read one input, as the model is built."""

from typing import Any

import pytest
from support.random_checkpoint import DEEPSEEK_V3, LLAMA

from llmc.convert.families import family_of
from llmc.convert.model.causal_lm import empty_layer
from llmc.errors import LlmcError
from llmc.quant.hessian import source
from llmc.quant.layer_solver import linears

GATED = {"gate_proj": "", "up_proj": "", "down_proj": ".down_proj"}
LATENT = {"q_a_proj": "", "kv_a_proj_with_mqa": "", "q_b_proj": ".q_b_proj", "kv_b_proj": ".kv_b_proj"}
CASES: list[tuple[dict[str, Any], int, str, dict[str, str]]] = [
    (LLAMA, 0, "self_attn", {"q_proj": "", "k_proj": "", "v_proj": "", "o_proj": ".o_proj"}),
    (LLAMA, 0, "mlp", GATED),
    (DEEPSEEK_V3, 1, "self_attn", LATENT | {"o_proj": ".o_proj"}),
    (DEEPSEEK_V3 | {"q_lora_rank": None}, 1, "self_attn", {"q_proj": "", "kv_a_proj_with_mqa": ""}),
    (DEEPSEEK_V3, 1, "mlp.experts.7", GATED),
    (DEEPSEEK_V3, 1, "mlp.shared_experts", GATED),
]


@pytest.mark.parametrize(("config", "index", "block", "expected"), CASES)
def test_what_a_linear_layer_reads(config: dict[str, Any], index: int, block: str, expected: dict[str, str]) -> None:
    modules = linears(empty_layer(family_of(config).spec(config), index))
    found = {name: source(f"{block}.{name}", modules) for name in expected}
    assert found == {name: block + end for name, end in expected.items()}


def test_a_projection_that_the_model_does_not_have_is_an_error() -> None:
    """A fused one, say, of which nobody knows what it reads."""
    modules = linears(empty_layer(family_of(LLAMA).spec(LLAMA), 0))
    with pytest.raises(LlmcError, match=r"self_attn\.qkv_proj is no linear layer"):
        source("self_attn.qkv_proj", modules)


def test_the_mtp_projection_reads_an_input_of_its_own() -> None:
    modules = linears(empty_layer(family_of(DEEPSEEK_V3).spec(DEEPSEEK_V3), 3))
    assert source("eh_proj", modules) == "eh_proj"
