"""transformers, with compressed-tensors, on what llmc writes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import CausalLM


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
