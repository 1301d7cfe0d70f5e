"""GPTQ of every decoder linear layer by llmc.

Arguments: checkpoint, calibration ids (.npy), bits, group size, output, and a method; default: GPTAQ.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from llmc.convert.checkpoint import Checkpoint
from llmc.quant.assign import Rule
from llmc.quant.layerwise import quantize

if __name__ == "__main__":
    source, ids, bits, group_size, output = sys.argv[1:6]
    calibration = torch.from_numpy(np.load(ids))
    scheme = f"int{bits}-g{group_size}"
    method = sys.argv[6] if len(sys.argv) > 6 else "gptaq"
    rules = [Rule(r"re:model\.layers\.\d+\..*", scheme, method)]
    checkpoint = Checkpoint.open(source)
    if mtp := checkpoint.spec.num_mtp_layers:  # the peers leave it out, and so it is not theirs to be timed against
        layers = "|".join(str(index) for index in range(checkpoint.spec.num_layers))
        rules = [Rule(rf"re:model\.layers\.({layers})\..*", scheme, method)]
    with tempfile.TemporaryDirectory() as work:
        quantize(checkpoint, rules, None, calibration, calibration[:1], Path(output), Path(work), lambda *_: None)
    print(json.dumps({"mtp_layers": mtp}))
