#!/usr/bin/env python3
"""Decoding speed against the length of the context, on the latent cache of multi-head latent attention.

    python ci/bench/context.py                      # to 32,768 tokens; a few minutes
    python ci/bench/context.py --lengths 1024 4096 --threads 4

The model has random weights and the cache of DeepSeek-V3 (512 + 64 numbers per token and layer) under 16 heads in each
of 4 layers. Prints speeds, the memory of the cache as `llmc plan` foretells it and as the runtime has it, and what the
same cache would take if it were expanded to heads.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from synthesise import CONFIGS, synthesise

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
NEW_TOKENS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 8192, 16384, 32768 - NEW_TOKENS])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    args = parser.parse_args()
    source, artifact, recipe = (args.work / name for name in ("latent", "latent-built", "latent.yaml"))
    args.work.mkdir(parents=True, exist_ok=True)
    if not (source / "config.json").exists():
        synthesise(CONFIG, source)
    recipe.write_text(RECIPE.format(model=source.resolve()))
    _llmc("build", recipe, "--output", artifact, "--json")
    planned = _llmc("plan", recipe, "--json")
    columns = "context", "prefill tokens/s", "decode tokens/s", "ms per token", "cache MB", "expanded MB", "peak MB"
    table = Table(*columns, title=f"latent cache, {args.threads} threads", title_justify="left")
    for length in args.lengths:  # each in a process of its own, for its peak of memory
        sizes = "--prompt-tokens", length, "--new-tokens", NEW_TOKENS, "--rounds", 1, "--threads", args.threads
        found = _llmc("bench", artifact, *sizes, "--json")
        timing, per_token = found["timings"][0], found["cache_bytes_per_token"]
        if per_token != 2 * planned["cache_bytes"]:  # float32 here, where the plan counts bfloat16
            raise SystemExit(f"the cache takes {per_token} bytes a token, the plan says {planned['cache_bytes']}")
        entries = length + NEW_TOKENS
        table.add_row(
            f"{length:,}",
            f"{timing['prefill']:.0f}",
            f"{timing['decode']:.1f}",
            f"{1000 / timing['decode']:.1f}",
            f"{per_token * entries / 1e6:.1f}",
            f"{2 * planned['cache_bytes_expanded'] * entries / 1e6:.1f}",
            f"{found['memory_peak'] / 1e6:.0f}",
        )
    Console(width=120).print(table)


def _llmc(*arguments: object) -> dict[str, object]:
    """What the command prints as JSON."""
    command = [sys.executable, "-m", "llmc.cli", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
