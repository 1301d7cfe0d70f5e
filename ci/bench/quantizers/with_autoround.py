"""Learned rounding (SignRound) of every decoder linear layer by auto-round.

Arguments: checkpoint, calibration ids (.npy), bits, group size, output. 50 steps per block, as in its recipe `light`,
instead of 200, which would take hours here.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, AutoTokenizer

if __name__ == "__main__":
    source, ids, bits, group_size, output = sys.argv[1:]
    rows = np.load(ids)
    rounding = AutoRound(
        AutoModelForCausalLM.from_pretrained(source, dtype="auto"),
        tokenizer=AutoTokenizer.from_pretrained(source),
        bits=int(bits),
        group_size=int(group_size),
        sym=True,
        dataset=list(torch.from_numpy(rows).split(1)),
        nsamples=len(rows),
        seqlen=rows.shape[1],
        iters=50,
        batch_size=4,
        device_map="cpu",
    )
    rounding.quantize_and_save(output, format="auto_gptq")
    for folder in [each for each in Path(output).iterdir() if each.is_dir()]:  # it names some of its results itself
        shutil.copytree(folder, output, dirs_exist_ok=True)
        shutil.rmtree(folder)
