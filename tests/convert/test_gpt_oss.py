"""gpt-oss: what of its architecture no other family has, against transformers' own class."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from support.gpt_oss import GPT_OSS, gpt_oss_checkpoint
from transformers import AutoConfig, AutoModelForCausalLM

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.families import family_of
from llmc.convert.model import CausalLM
from llmc.convert.spec import ClampedSwiGLU, GroupedQueryAttentionSpec, MixtureOfExpertsSpec, ModelSpec
from llmc.errors import InputError

TOLERANCE = 1e-4  # of log-probabilities
IDS = torch.randint(0, 96, (2, 100), generator=torch.Generator().manual_seed(1))


def spec_of(config: dict[str, Any]) -> ModelSpec:
    return family_of(config).spec(config)


@pytest.mark.parametrize(
    "changes", [{}, {"attention_bias": False, "swiglu_alpha": 1.2, "num_hidden_layers": 1, "layer_types": None}]
)
def test_log_probabilities_equal_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = gpt_oss_checkpoint(tmp_path, **changes)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(IDS).logits.log_softmax(-1)
    model = CausalLM.load(Checkpoint.open(folder))
    whole = model.logits(model.hidden(IDS)).log_softmax(-1)
    caches = model.new_cache(2, 100)
    steps = [model.hidden(IDS[:, a:b], caches) for a, b in pairwise([0, 37, 50, *range(51, 101)])]
    stepwise = model.logits(torch.cat(steps, dim=1)).log_softmax(-1)
    assert (expected - whole).abs().max() < TOLERANCE
    assert (expected - stepwise).abs().max() < TOLERANCE


def test_what_config_json_leaves_out_is_as_transformers_has_it() -> None:
    left_out = ("rope_theta", "rope_scaling", "swiglu_limit", "sliding_window", "layer_types", "attention_bias")
    config = {key: value for key, value in GPT_OSS.items() if key not in left_out}
    published: Any = AutoConfig.for_model("gpt_oss", **{key: config[key] for key in config if key != "model_type"})
    spec = spec_of(config)
    kinds = {"sliding_attention": published.sliding_window, "full_attention": None}
    attentions = [each for each in spec.attentions if isinstance(each, GroupedQueryAttentionSpec)]
    assert [attention.window for attention in attentions] == [kinds[kind] for kind in published.layer_types]
    assert spec == spec_of(config | {"rope_scaling": None})
    assert spec == spec_of(config | {"rope_parameters": published.rope_parameters})
    assert attentions[0].qkv_bias and attentions[0].output_bias and attentions[0].sinks
    mlp = spec.mlps[0]
    assert isinstance(mlp, MixtureOfExpertsSpec) and mlp.bias and mlp.router.bias
    assert mlp.activation == ClampedSwiGLU(published.swiglu_alpha, published.swiglu_limit)


def test_what_is_not_done_is_refused() -> None:
    for changes, said in (
        ({"hidden_act": "gelu"}, "`hidden_act`"),
        ({"sliding_window": None}, "`sliding_window` is null"),
        ({"num_experts_per_tok": 9}, "`num_experts_per_tok` 9 is more than `num_local_experts` 8"),
    ):
        with pytest.raises(InputError, match=said):
            spec_of(GPT_OSS | changes)
