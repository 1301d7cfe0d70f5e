"""What compiled programs do with weights, read from the engines of small models."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support.quantized_checkpoint import DEEPSEEK, quantized_checkpoint

from llmc.convert.targets import target

pytestmark = pytest.mark.slow

rtx = target("tensorrt-rtx")
ONE_LAYER = {"num_hidden_layers": 1, "num_nextn_predict_layers": 0}
# Wide enough for the compiler to choose what it chooses for large models.
LATENT: dict[str, Any] = DEEPSEEK | ONE_LAYER | {
    "hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 8,
    "q_lora_rank": 128, "kv_lora_rank": 128, "qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "v_head_dim": 64,
}  # fmt: skip


@pytest.mark.parametrize("plugins", [True, False], ids=["plugins", "no plugins"])
@pytest.mark.parametrize("scheme", ["int4-g64", "fp8-channel"])
def test_latent_attention_neither_copies_nor_decodes_weights(scheme: str, plugins: bool, tmp_path: Path) -> None:
    """kv_b_proj is multiplied heads first, o_proj by what it is stored as."""
    if plugins:
        pytest.importorskip("triton")
    checkpoint = quantized_checkpoint(tmp_path, LATENT, {"attention": scheme})
    rtx.build(checkpoint, rtx.Options(sm=[89], context=256, plugins=plugins), checkpoint.path, lambda *_: None)
    functions = re.findall(
        rb'function=\{ name="?(__myl_\w+)', (checkpoint.path / "engines/rtx-sm89.engine").read_bytes()
    )
    assert functions
    assert not [name for name in functions if re.fullmatch(rb"__myl_(Repl|(Repl)?CastMulCast)", name)]
