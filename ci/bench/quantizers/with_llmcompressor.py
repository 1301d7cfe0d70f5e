"""GPTQ of every decoder linear layer by llm-compressor.

Arguments: checkpoint, calibration ids (.npy), bits, group size, output.
"""

import sys

import numpy as np
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier
from transformers import AutoModelForCausalLM

if __name__ == "__main__":
    source, ids, bits, group_size, output = sys.argv[1:]
    rows = np.load(ids)
    data = Dataset.from_dict({"input_ids": rows.tolist(), "attention_mask": np.ones_like(rows).tolist()})
    scheme = {
        "targets": ["Linear"],
        "weights": {"num_bits": int(bits), "strategy": "group", "group_size": int(group_size), "symmetric": True},
    }
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    oneshot(
        model=model,
        dataset=data,
        recipe=GPTQModifier(config_groups={"group_0": scheme}, ignore=["lm_head", "re:.*mlp.gate$"]),
        max_seq_length=rows.shape[1],
        num_calibration_samples=len(rows),
        shuffle_calibration_samples=False,
    )
    model.save_pretrained(output, save_compressed=True)
