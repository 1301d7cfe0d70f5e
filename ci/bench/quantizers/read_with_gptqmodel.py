"""What GPTQModel makes of a checkpoint: writes its logits, prints how many quantized layers it has found.

Arguments: checkpoint, token ids (.npy), output (.npy).
"""

import sys

import processors  # noqa: F401

# isort: split
import numpy as np
import torch
from gptqmodel import BACKEND, GPTQModel
from gptqmodel.nn_modules.qlinear.torch import TorchLinear

if __name__ == "__main__":
    source, ids, output = sys.argv[1:]
    model = GPTQModel.load(source, device="cpu", backend=BACKEND.TORCH, dtype=torch.bfloat16).model
    with torch.no_grad():
        np.save(output, model(torch.from_numpy(np.load(ids))).logits.float().numpy())
    print(sum(isinstance(module, TorchLinear) for module in model.modules()))
