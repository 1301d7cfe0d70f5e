"""Random checkpoints of any architecture that transformers knows, as its `save_pretrained` writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from llmc.convert.families import family_of
from llmc.convert.layer_modules import weight_shapes
from llmc.convert.safetensors_file import SafetensorsWriter, read_header


def witness_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """transformers' class of an architecture, which is what its own configuration names, or what it takes for that."""
    named = getattr(transformers, (config.architectures or [""])[0], None)
    for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING):
        named = named or mapping.get(type(config), None)
    assert named is not None, type(config)
    return named


def empty_witness(config: dict[str, Any]) -> PreTrainedModel:
    """transformers' model of a configuration, without memory."""
    made = AutoConfig.for_model(**config)
    with torch.device("meta"):
        return witness_class(made)._from_config(made)


def witness(config: dict[str, Any], seed: int = 0) -> PreTrainedModel:
    """transformers' model of a configuration in float32, with random weights that bfloat16 has, too."""
    made = AutoConfig.for_model(**config)
    model = witness_class(made)._from_config(made, dtype=torch.float32).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in [*model.named_parameters(), *_buffers(model)]:
        parameter.data = _random(name, parameter, generator).bfloat16().float()
    model.tie_weights()
    return model


def _buffers(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Those that are saved, as the bias that experts are selected with."""
    saved = model.state_dict().keys()
    return [(name, buffer) for name, buffer in model.named_buffers() if name in saved]


def _random(name: str, weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Activations stay near one and routers undecided, so that every part of the model matters."""
    values = torch.randn(weight.shape, generator=generator)
    if name.endswith("sinks"):
        return values
    if weight.ndim == 1 and "norm" in name and name.endswith("weight"):
        return weight.mean().round() + 0.2 * values  # around one, or around zero where one is added to it
    if "conv1d" in name:  # positive more often than not, behind SiLU: what queries read of keys is not next to nothing
        return 2 * values
    return 0.1 * values if weight.ndim == 1 or "bias" in name else values * weight.shape[-1] ** -0.5


def save(
    model: PreTrainedModel, config: dict[str, Any], directory: Path, respelled: Sequence[tuple[str, str]] = ()
) -> Path:
    """Weights in bfloat16 by the names that the architecture's checkpoints have, beside the config.json that was
    given. What transformers' class leaves out, the layers for multi-token prediction, is added with random weights.
    """
    model.save_pretrained(directory, state_dict={name: value.bfloat16() for name, value in model.state_dict().items()})
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "generation_config.json").unlink(missing_ok=True)
    file = directory / "model.safetensors"
    tensors = {_respelled(name, respelled): tensor.read() for name, tensor in read_header(file).items()}
    with SafetensorsWriter(file) as writer:
        for name, values in (tensors | _mtp(tensors, config)).items():
            writer.add(name, values)
    return directory


def _respelled(name: str, pairs: Sequence[tuple[str, str]]) -> str:
    for before, after in pairs:
        name = after + name.removeprefix(before) if name.startswith(before) else name
    return name


def _mtp(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Random weights of layers for multi-token prediction, by the names that checkpoints have for them."""
    family = family_of(config)
    spec = family.spec(config)
    shapes = {name: shape for name, shape in weight_shapes(spec).items() if family.role(name, spec) == "mtp"}
    names = family.stored_names.spelled_as((), spec)
    generator, found = torch.Generator().manual_seed(1), {}
    for name, shape in shapes.items():
        ones = torch.ones(shape) if len(shape) == 1 and "norm" in name else torch.zeros(shape)
        found[names.stored(name)] = _random(name, ones, generator).bfloat16()
    last = f"model.layers.{spec.num_layers - 1}.self_attn.indexer."  # DSA's, which llmc carries along
    for name, values in tensors.items():
        if shapes and name.startswith(last):
            found[f"model.layers.{spec.num_layers}.self_attn.indexer.{name.removeprefix(last)}"] = values
    return found
