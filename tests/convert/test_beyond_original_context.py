"""Texts longer than the context that rotations were scaled from, against transformers; where config.json says how."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from support.architectures import LLAMA3, TOLERANCE, error, yarn
from support.random_checkpoint import DEEPSEEK_V3, LLAMA, QWEN2, random_checkpoint
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.families import family_of
from llmc.convert.graph.builder import GraphBuilder
from llmc.convert.graph.rotary import rotary_angles
from llmc.convert.model import CausalLM
from llmc.convert.model.rotary import rotary_table
from llmc.convert.spec import LongRopeSpec, RopeSpec
from llmc.errors import InputError
from llmc.runtime.quiet_onnxruntime import onnxruntime

SCALED: dict[str, dict[str, Any]] = {
    "yarn": QWEN2 | yarn(),
    "llama3": LLAMA | {"rope_scaling": LLAMA3},
    "linear": LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "yarn over latent attention": DEEPSEEK_V3 | yarn(mscale=1.0, mscale_all_dim=1.0),
}
LENGTH = 240  # the original context is 64, that of the model 256


@pytest.mark.parametrize("name", SCALED)
def test_across_the_border(tmp_path: Path, name: str) -> None:
    path = random_checkpoint(tmp_path, SCALED[name])
    ids = torch.randint(0, 96, (2, LENGTH), generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(ids).logits
    model = CausalLM.load(Checkpoint.open(path))
    assert error(expected, model.logits(model.hidden(ids))) < TOLERANCE
    caches, cuts = model.new_cache(2, LENGTH), [0, 50, 63, 64, 65, 66, 150, 151, LENGTH]
    pieces = [model.hidden(ids[:, start:stop], caches) for start, stop in pairwise(cuts)]
    assert error(expected, model.logits(torch.cat(pieces, dim=1))) < TOLERANCE


FREQUENCIES = tuple(10000.0 ** (-i / 8) for i in range(8))
LONG = LongRopeSpec(100, tuple(f / 3 for f in FREQUENCIES))


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16])
@pytest.mark.parametrize("long", [None, LONG])
def test_angles_are_float32_in_graphs_of_any_type(
    dtype: ir.DataType, long: LongRopeSpec | None, tmp_path: Path
) -> None:
    """At position 131,071 float16 has no integers, and bfloat16 only every 512th."""
    rope = RopeSpec(16, 10000.0, False, FREQUENCIES, 1.25, long)
    checkpoint = Checkpoint.open(random_checkpoint(tmp_path, LLAMA))
    b = GraphBuilder(checkpoint, "angles", dtype)
    positions = b.input("position_ids", ir.DataType.INT64, "batch", "sequence")
    for name, value in zip(("cos", "sin"), rotary_angles(b, positions, rope), strict=True):
        b.output(value, name, dtype, "batch", "sequence", 8)
    model = ir.serde.serialize_model(b.model())
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = np.array([[0, 1, 99, 4097, 131070, 131071], [0, 1, 2, 3, 4, 99]])
    expected = rotary_table(rope, torch.from_numpy(given))
    for found, table in zip(session.run(["cos", "sin"], {"position_ids": given}), expected, strict=True):
        np.testing.assert_allclose(found, table[:, 0], atol=1e-3 if dtype == ir.DataType.FLOAT16 else 2e-6)


GEMMA3: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 24,
}
LINEAR = {"rope_type": "linear", "factor": 8.0}
NESTED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "old": {"rope_theta": 5e5, "rope_local_base_freq": 5e3, "rope_scaling": LINEAR},
    "new": {
        "rope_parameters": {
            "full_attention": LINEAR | {"rope_theta": 2e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
        }
    },
    "new, bases outside": {
        "rope_theta": 5e5,
        "rope_local_base_freq": 5e3,
        "rope_parameters": {"full_attention": LINEAR, "sliding_attention": {"rope_type": "default"}},
    },
    "new, one kind": {"rope_theta": 5e5, "rope_parameters": {"full_attention": LINEAR}},
    "both": {
        "rope_scaling": LINEAR,
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 2e5}, "sliding_attention": None},
    },
}


@pytest.mark.parametrize("name", NESTED)
def test_kinds_of_layers_rotate_as_in_transformers(name: str) -> None:
    spec = family_of(GEMMA3).spec(GEMMA3 | NESTED[name])
    copied = {key: dict(value) if isinstance(value, dict) else value for key, value in NESTED[name].items()}
    for key, value in copied.get("rope_parameters", {}).items():  # transformers writes into them
        copied["rope_parameters"][key] = value and dict(value)
    published = Gemma3RotaryEmbedding(AutoConfig.for_model(**(GEMMA3 | copied)))
    for layer, kind in ((0, "sliding_attention"), (5, "full_attention")):
        rope = spec.attentions[layer].rope
        assert rope is not None
        assert rope.inverse_frequencies == tuple(getattr(published, f"{kind}_inv_freq").tolist())


def test_a_rotation_for_each_kind_of_layer_is_refused_where_all_rotate_alike() -> None:
    nested = {"rope_parameters": {"full_attention": {"rope_theta": 5e5}}}
    with pytest.raises(InputError, match=r"`rope_parameters.full_attention` is of some layers, but all layers"):
        family_of(LLAMA).spec(LLAMA | nested)
