"""GPTQ of every decoder linear layer by GPTQModel.

Arguments: checkpoint, calibration ids (.npy), bits, group size, output.
"""

import sys

import processors  # noqa: F401

# isort: split
import numpy as np
from gptqmodel import GPTQModel, QuantizeConfig

if __name__ == "__main__":
    source, ids, bits, group_size, output = sys.argv[1:]
    rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in np.load(ids)]
    config = QuantizeConfig(bits=int(bits), group_size=int(group_size), sym=True)
    model = GPTQModel.load(source, config, device="cpu")
    model.quantize(rows, batch_size=1)
    model.save(output)
