#!/usr/bin/env python3
"""Decoding speed against the length of the context, on the latent cache of multi-head latent attention.

    python ci/bench/context.py                      # to 32,768 tokens; a minute
    python ci/bench/context.py --lengths 1024 4096 --threads 4

The model has random weights and the cache of DeepSeek-V3 (512 + 64 numbers per token and layer) under 16 heads in each
of 4 layers. Tokens are decoded behind a cache of zeros, which is as much work as one that a prompt has filled. Prints
speeds, the memory of the cache, which has to be what `llmc plan` foretells, and what the same cache would take if it
were expanded to heads.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table
from synthesize import CONFIGS, synthesize

from llmc.measure import peak_memory
from llmc.runtime import load

CONFIG = CONFIGS["moe"] | {
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "q_lora_rank": 384,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "max_position_embeddings": 131072,
}
RECIPE = """
model: {model}
calibration: {{samples: 4, length: 256}}
quantize:
  - {{match: experts, scheme: int4-g32, method: rtn}}
  - {{match: shared_experts, scheme: int4-g32, method: rtn}}
  - {{match: attention, scheme: int4-g32, method: rtn}}
targets: [{{onnxruntime: {{}}}}]
check: {{tokens: 1024, length: 512}}
"""
NEW_TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 8192, 16384, 32768])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--measure", type=Path, metavar="ARTIFACT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.lengths[0], args.threads)))
        return
    source, artifact, recipe = (args.work / name for name in ("latent", "latent-built", "latent.yaml"))
    args.work.mkdir(parents=True, exist_ok=True)
    if not (source / "config.json").exists():
        synthesize(CONFIG, source)
    recipe.write_text(RECIPE.format(model=source.resolve()))
    _llmc("build", recipe, "--output", artifact, "--json")
    planned = _llmc("plan", recipe, "--json")
    columns = "context", "decode tokens/s", "ms per token", "cache MB", "expanded MB", "peak MB"
    table = Table(*columns, title=f"latent cache, {args.threads} threads", title_justify="left")
    for length in args.lengths:  # each in a process of its own, for its peak of memory
        command = [sys.executable, __file__, "--measure", artifact, "--lengths", length, "--threads", args.threads]
        done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, check=True)
        seconds, per_token, peak = json.loads(done.stdout)
        if per_token != 2 * planned["cache_bytes"]:  # float32 here, where the plan counts bfloat16
            raise SystemExit(f"the cache takes {per_token} bytes a token, the plan says {planned['cache_bytes']}")
        cache, expanded = per_token * length, 2 * planned["cache_bytes_expanded"] * length
        sizes = (f"{count / 1e6:.1f}" for count in (cache, expanded, peak))
        table.add_row(f"{length:,}", f"{1 / seconds:.1f}", f"{1000 * seconds:.1f}", *sizes)
    Console(width=120).print(table)


def measure(artifact: Path, length: int, threads: int) -> tuple[float, int, int]:
    """Seconds of a token at the end of `length` entries, the median of many; bytes of the cache per token; peak."""
    with load(artifact, backend="onnxruntime", threads=threads) as model:
        cache, index, seconds = model.backend.new_cache(1), np.zeros((1, 1), np.int64), []
        for position in range(length - NEW_TOKENS, length):
            start = time.perf_counter()
            model.backend.forward("main", cache, np.array([[5 + position % 1000]]), np.array([position]), index)
            seconds.append(time.perf_counter() - start)
        return median(seconds), model.backend.cache_bytes, peak_memory()


def _llmc(*arguments: object) -> dict[str, object]:
    """What the command prints as JSON."""
    command = [sys.executable, "-m", "llmc.cli", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
