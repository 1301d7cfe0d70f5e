"""LongRoPE: other frequencies for texts longer than the original context, as transformers has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from support.graph_comparison import write_graphs
from support.graph_session import GraphSession, divergences
from support.model_lines import published_config
from support.random_checkpoint import LLAMA
from support.small_model import save, witness
from transformers import AutoConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.engines.lowering import lower
from llmc.convert.families import family_of
from llmc.convert.families.rope import rope_spec
from llmc.convert.graph.build import graphs
from llmc.convert.model import CausalLM
from llmc.convert.spec import ModelSpec, RopeSpec
from llmc.convert.targets import onnx, target
from llmc.errors import InputError

BORDER, LENGTH = 40, 64
SCALING = {"short_factor": [1.0, 1.1, 1.3, 2.0], "long_factor": [1.5, 3.0, 8.0, 20.0]}
PHI3: dict[str, Any] = LLAMA | {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "pad_token_id": None,
    "original_max_position_embeddings": BORDER,
    "rope_scaling": SCALING | {"type": "longrope"},
}
EXACT = 1e-5


def copied(config: dict[str, Any]) -> dict[str, Any]:
    """transformers writes into the dictionary of its scaling."""
    return config | {key: dict(config[key]) for key in ("rope_scaling", "rope_parameters") if config.get(key)}


def spec_of(config: dict[str, Any]) -> ModelSpec:
    return family_of(config).spec(config)


def rope_of(config: dict[str, Any]) -> RopeSpec:
    rope = spec_of(config).attentions[0].rope
    assert rope is not None
    return rope


RELEASED = {name: published_config(f"microsoft--{name}-instruct") for name in ("Phi-3.5-mini", "Phi-4-mini")}
CONFIGS: dict[str, dict[str, Any]] = RELEASED | {
    "attention factor": PHI3 | {"rope_scaling": SCALING | {"type": "longrope", "attention_factor": 0.9}},
    "factor": PHI3 | {"rope_scaling": SCALING | {"type": "longrope", "factor": 4.0}},
    "no longer": PHI3 | {"original_max_position_embeddings": 256},
    "yarn": PHI3 | {"rope_scaling": SCALING | {"type": "yarn"}},
    "in rope_parameters": PHI3
    | {"rope_scaling": None, "head_dim": 16}
    | {"rope_parameters": SCALING | {"rope_type": "longrope", "rope_theta": 5000.0, "partial_rotary_factor": 0.5}},
    "half of a head": PHI3 | {"head_dim": 16, "partial_rotary_factor": 0.5},
    "llama": LLAMA
    | {"rope_scaling": SCALING | {"rope_type": "longrope", "factor": 6.4, "original_max_position_embeddings": BORDER}},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_frequencies_to_the_last_bit(name: str) -> None:
    ours = rope_of(CONFIGS[name])
    config = copied(CONFIGS[name])
    if "partial_rotary_factor" in (config.get("rope_parameters") or {}):
        config["partial_rotary_factor"] = 0.5  # where the class of the configuration checks the lengths of the lists
    if config["model_type"] == "phi3":
        config.pop("head_dim", None)
        config["hidden_size"] = CONFIGS[name].get("head_dim", config["hidden_size"] // config["num_attention_heads"])
        config["hidden_size"] *= config["num_attention_heads"]
    published = AutoConfig.for_model(**config)
    border = published.rope_parameters["original_max_position_embeddings"]
    short, factor = ROPE_INIT_FUNCTIONS["longrope"](published)
    long, _ = ROPE_INIT_FUNCTIONS["longrope"](published, seq_len=border + 1)
    assert ours.long is not None and ours.long.length == border
    assert ours.inverse_frequencies == tuple(short.tolist())
    assert ours.long.inverse_frequencies == tuple(long.tolist())
    assert ours.attention_factor == factor


def test_su_is_the_first_name() -> None:
    assert spec_of(PHI3) == spec_of(PHI3 | {"rope_scaling": SCALING | {"type": "su"}})


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dynamic": (LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "a text has no single result"),
    "unknown": (LLAMA | {"rope_scaling": {"type": "spiral"}}, "`rope_scaling.rope_type` is 'spiral'; supported: "),
    "linear in Phi-3": (PHI3 | {"rope_scaling": {"type": "linear", "factor": 2.0}}, "Phi-3 knows default and longrope"),
    "too few": (
        PHI3 | {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
        "`rope_scaling.short_factor` must be a list of 4 positive numbers",
    ),
    "a factor of zero": (
        PHI3 | {"rope_scaling": SCALING | {"type": "longrope", "long_factor": [1.0, 1.0, 0, 1.0]}},
        "`rope_scaling.long_factor` must be a list of 4 positive numbers",
    ),
    "a token": (PHI3 | {"original_max_position_embeddings": 1}, "`original_max_position_embeddings` is 1; LongRoPE"),
    "none": (PHI3 | {"rope_scaling": {"type": "longrope"}}, "`rope_scaling.short_factor` is missing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    config, said = REFUSED[name]
    with pytest.raises(InputError) as caught:
        spec_of(config)
    assert said in str(caught.value)


def test_partial_rotary_factor_in_both_places() -> None:
    """The inner one wins, in the older dialect as well."""
    config = PHI3 | {"head_dim": 16, "partial_rotary_factor": 1.0}
    inside = {"rope_scaling": SCALING | {"type": "longrope", "partial_rotary_factor": 0.5}}
    assert rope_of(config | inside).dim == 8


@pytest.fixture(scope="module")
def published() -> PreTrainedModel:
    return witness(copied(PHI3))


@pytest.fixture(scope="module")
def checkpoint(published: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(save(published, PHI3, tmp_path_factory.mktemp("phi3")))


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(3, 96, (2, LENGTH), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("length", [BORDER - 1, BORDER, BORDER + 1, LENGTH])
def test_a_text_in_one_go(published: PreTrainedModel, checkpoint: Checkpoint, ids: torch.Tensor, length: int) -> None:
    with torch.no_grad():
        expected = published(ids[:, :length], use_cache=False).logits
    model = CausalLM.load(checkpoint)
    assert divergences(expected, model.logits(model.hidden(ids[:, :length]))).max() < EXACT


@pytest.mark.parametrize("cuts", [(0, 10, 20, 21), (0, 50, 51, 52, 60), (0, 38, 39, 40, 41, 42, 64)])
def test_a_text_in_pieces(
    published: PreTrainedModel, checkpoint: Checkpoint, ids: torch.Tensor, cuts: Sequence[int]
) -> None:
    """In front of the border, behind it and across it, where keys that are in the cache stay as they are."""
    model, pieces = CausalLM.load(checkpoint), [*pairwise(cuts)]
    caches, theirs = model.new_cache(2, LENGTH), None
    for start, stop in pieces:
        with torch.no_grad():
            said = published(ids[:, start:stop], cache=theirs, use_cache=True)
        theirs = said.past_key_values
        found = model.logits(model.hidden(ids[:, start:stop], caches))
        assert divergences(said.logits, found).max() < EXACT


def _onnxruntime(checkpoint: Checkpoint) -> Path:
    made = target("onnxruntime")
    result = made.build(checkpoint, made.Options(accuracy_level=1), checkpoint.path, lambda *_: None)
    return checkpoint.path / result.files["main"]


def _portable(checkpoint: Checkpoint) -> Path:
    models = graphs(checkpoint)
    onnx.lower(models["main"])
    return checkpoint.path / write_graphs(checkpoint, models).files["main"]


def _tensorrt(checkpoint: Checkpoint) -> Path:
    models = graphs(checkpoint, ir.DataType.FLOAT, LENGTH)
    lower(models["main"], checkpoint.spec, ir.DataType.FLOAT, {"int4"}, (1, 2), 1)
    return checkpoint.path / write_graphs(checkpoint, models).files["main"]


@pytest.mark.parametrize("made", [_onnxruntime, _portable, _tensorrt])
def test_graphs(checkpoint: Checkpoint, ids: torch.Tensor, made: Callable[[Checkpoint], Path]) -> None:
    """Each row of a step by its own largest position, however long its neighbors are."""
    model, graph = CausalLM.load(checkpoint), GraphSession(made(checkpoint), batch=2, capacity=LENGTH)
    whole = [model.logits(model.hidden(ids[row : row + 1, :length])) for row, length in enumerate((60, 20))]
    padded = ids[:, :60].clone()
    feeds = graph.feeds(padded, [0, 0])
    feeds["position_ids"][1] = np.minimum(feeds["position_ids"][1], BORDER - 1)
    names = [output.name for output in graph.session.get_outputs()]
    logits, *presents = graph.session.run(names, feeds | graph.caches)
    for row, length in enumerate((60, 20)):
        assert divergences(whole[row], torch.from_numpy(logits[row : row + 1, :length])).max() < EXACT
    graph.caches = dict(zip(graph.caches, presents, strict=True))
    logits, _ = graph.step(ids[[0, 1], [60, 20]][:, None], [60, 20])
    for row, length in enumerate((60, 20)):
        expected = model.logits(model.hidden(ids[row : row + 1, : length + 1]))[:, -1:]
        assert divergences(expected, logits[row : row + 1]).max() < EXACT


def test_outside_of_phi3_the_inner_original_length_counts() -> None:
    scaling = SCALING | {"rope_type": "longrope", "original_max_position_embeddings": 32}
    rope = rope_spec({"rope_scaling": scaling}, 8, False, max_positions=256)
    assert rope.long is not None and rope.long.length == 32
