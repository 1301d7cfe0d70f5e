"""GPTQ of every decoder linear layer by GPTQModel.

Arguments: checkpoint, calibration ids (.npy), bits, group size, output. GPTQModel 7.6 does not start on two processors
("Virtual pool 'model_loader:cpu' requests 2 workers but parent 'cpu' only has 1"), so it is told of three; how many it
gets is the caller's matter.
"""

import os
import sys

processors = os.cpu_count() or 1
os.cpu_count = lambda: max(processors, 3)

import numpy as np  # noqa: E402
from gptqmodel import GPTQModel, QuantizeConfig  # noqa: E402

if __name__ == "__main__":
    source, ids, bits, group_size, output = sys.argv[1:]
    rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in np.load(ids)]
    config = QuantizeConfig(bits=int(bits), group_size=int(group_size), sym=True)
    model = GPTQModel.load(source, config, device="cpu")
    model.quantize(rows, batch_size=1)
    model.save(output)
