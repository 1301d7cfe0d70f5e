"""transformers, with compressed-tensors, on what llmc writes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import CausalLM
from support.random_checkpoint import write_checkpoint


def loaded_by_transformers(
    directory: Path, kind: type[PreTrainedModel] | type[AutoModelForCausalLM] = AutoModelForCausalLM
) -> PreTrainedModel:
    """The model of a checkpoint, decompressed and in float32."""
    model: PreTrainedModel = kind.from_pretrained(directory, dtype=torch.float32)
    # Decompresses, and of 4-bit floats becomes bfloat16, which it cannot multiply float32 by.
    with torch.no_grad(), suppress(RuntimeError):
        model(input_ids=torch.tensor([[3]]))
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    return model


@torch.no_grad()
def as_transformers_decodes(checkpoint: Checkpoint) -> CausalLM:
    """Ours of the same: transformers keeps dequantized integer experts in the dtype of their scales, bfloat16."""
    model = CausalLM.load(checkpoint)
    for index, layer in enumerate(model.layers):
        for name, module in layer.named_modules():
            weight = checkpoint.quantized(f"model.layers.{index}.{name}") if ".experts." in name else None
            if weight is not None and weight.code_type.startswith("int"):
                module.weight.copy_(weight.dequantize(torch.bfloat16).float())
    return model


def said_by_transformers(checkpoint: Path, ids: torch.Tensor, folder: Path) -> torch.Tensor:
    """Log-probabilities, float64 [N, P, V], by the weights that a checkpoint means."""
    opened = Checkpoint.open(checkpoint)
    config = {name: value for name, value in opened.config.items() if name != "quantization_config"}
    layers = opened.spec.num_layers
    names = [name for name in opened.names() if not name.startswith(f"model.layers.{layers}.")]
    if config.get("num_nextn_predict_layers"):
        config["num_nextn_predict_layers"] = 0
    write_checkpoint(folder, config, {name: opened.tensor(name).float() for name in names})
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, experts_implementation="eager")
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    assert logits.dtype == torch.float64
    return logits[:, :-1].log_softmax(-1)
