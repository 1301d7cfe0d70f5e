"""What GPTQModel makes of a checkpoint: writes its logits, prints how many quantized layers it has found.

Arguments: checkpoint, token ids (.npy), output (.npy).
"""

import os
import sys

processors = os.cpu_count() or 1
os.cpu_count = lambda: max(processors, 3)  # see with_gptqmodel.py

import numpy as np  # noqa: E402
import torch  # noqa: E402
from gptqmodel import BACKEND, GPTQModel  # noqa: E402
from gptqmodel.nn_modules.qlinear.torch import TorchLinear  # noqa: E402

if __name__ == "__main__":
    source, ids, output = sys.argv[1:]
    model = GPTQModel.load(source, device="cpu", backend=BACKEND.TORCH, dtype=torch.bfloat16).model
    with torch.no_grad():
        np.save(output, model(torch.from_numpy(np.load(ids))).logits.float().numpy())
    print(sum(isinstance(module, TorchLinear) for module in model.modules()))
