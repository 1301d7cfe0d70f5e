#!/usr/bin/env python3
"""Load checkpoints that llmc wrote in GPTQ's layout with GPTQModel, and compare what both say.

    python ci/bench/layouts.py

Dense, mixture of experts and the embedded DeepSeek-V3, each with two or three schemes side by side: act-order groups,
zero points, 4 and 8 bits. GPTQModel computes in bfloat16 and llmc here in float32; a router that flips for that reason
shows in the divergence, a weight that is read wrongly makes it larger than 1.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import numpy as np
import torch
from quantize import make_source, python_of, texts_of
from rich.console import Console
from rich.table import Table

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import CausalLM
from llmc.quant.assign import Rule
from llmc.quant.layerwise import QuantizeOptions, quantize

LIMIT = 0.05  # nats
RULES = {
    "dense": [Rule("dense_mlp", "int4-g128-actorder"), Rule("attention", "int8-g128")],
    "moe": [Rule("experts", "int4-g128"), Rule("attention", "int4-g64-asym")],
    "embedded": [
        Rule("experts", "int4-g64"),
        Rule("attention", "int8-g32"),
        Rule("dense_mlp", "int4-g128-asym-actorder"),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    work = parser.parse_args().work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    reader = Path(__file__).parent / "quantizers" / "read_with_gptqmodel.py"
    table = Table("model", "schemes", "modules read", "KL", title="llmc's GPTQ layout in GPTQModel")
    worst = 0.0
    for model, rules in RULES.items():
        source, output = make_source(model, work), work / f"{model}-layout"
        subprocess.run(["rm", "-rf", output], check=True)
        ids = torch.from_numpy(texts_of(source, 8).calibration)
        quantize(
            Checkpoint.open(source), rules, None, ids, ids[:1], output, output / "work", lambda *_: None,
            QuantizeOptions(layout="gptq"),
        )  # fmt: skip
        for pattern in ("tokenizer*", "generation_config.json"):
            for file in source.glob(pattern):
                (output / file.name).write_bytes(file.read_bytes())
        np.save(output / "ids.npy", ids[:2])
        read = subprocess.run(
            [python_of("gptqmodel", work), reader, output, output / "ids.npy", output / "said.npy"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        ours = CausalLM.load(Checkpoint.open(output))
        want = ours.logits(ours.hidden(ids[:2])).log_softmax(-1)
        got = torch.from_numpy(np.load(output / "said.npy")).log_softmax(-1)
        kl = (want.exp() * (want - got)).sum(-1).mean().item()
        worst = max(worst, kl)
        names = ", ".join(f"{rule.match} {rule.scheme}" for rule in rules)
        table.add_row(model, names, read.stdout.split()[-1], f"{kl:.5f}")
    Console(width=140).print(table)
    if not worst < LIMIT:
        raise SystemExit(f"KL divergence {worst:.3g} is not below {LIMIT}: the layout is not read as it was written")


if __name__ == "__main__":
    main()
