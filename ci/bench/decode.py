#!/usr/bin/env python3
"""Decode with llmc, onnxruntime-genai, llama.cpp and transformers, and measure them in one run on the same threads.

    python ci/bench/decode.py                          # everything; the first time it compiles llama.cpp
    python ci/bench/decode.py --models moe --tools llmc llama.cpp-q4_0

llmc with int4 in groups of 128 (64 for the embedded model) by GPTAQ, as it does by default; onnxruntime-genai with
int4 in blocks of 32, rounded to nearest, as its builder does; llama.cpp with Q4_0, Q4_K_M and, as a proof that the
conversion is right, float16; transformers in bfloat16. Each tool runs in a process and a virtual environment of its
own, conversions in others before. Prefill: one prompt of 512 tokens; decoding: 128 tokens after a prompt of 32, the
most likely one each time, end-of-text ignored; medians over several prompts, which all tools get as the same token
ids, of the best of their turns, as other work on the machine makes a turn slower and never faster. KL: of the
distributions of the next token from llmc's float32 model of the original checkpoint, over 2,048 tokens. KB per token:
weights that one token needs (experts: those that it is routed to) and cache, in the middle of decoding. Of bound:
decoding speed as a share of what memory allows, bandwidth over bytes per token, with the bandwidth measured in the
same run. Tools that end in `-mtp` draft one token a step with the MTP layer, where the model has one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from decode_tools import MTP, NEW, SHORT, TOOLS, Bench, Failed
from evaluate import logits
from onnx_traffic import traffic
from rich.console import Console
from rich.table import Table

MODELS = ("dense", "moe", "embedded")


def divergence(reference: list[torch.Tensor], said: np.ndarray) -> float:
    """Mean KL, nats per token; as evaluate.py has it."""
    kl = [
        torch.nn.functional.kl_div(
            torch.from_numpy(q[:-1]).log_softmax(-1), p.log_softmax(-1), reduction="batchmean", log_target=True
        )
        for p, q in zip(reference, said, strict=True)
    ]
    return torch.stack(kl).mean().item()


def merged(passes: list[dict[str, Any]]) -> dict[str, Any]:
    """One dictionary of all passes: the median speed of each, the shortest load, the highest peak."""
    found = {key: value for one in reversed(passes) for key, value in one.items()}
    for key in ("prefill", "decode", "tokens_per_step", "acceptance"):
        if key in found:
            found[key] = [median(one[key]) for one in passes]
    found["load"] = min(one["load"] for one in passes)
    found["peak"] = max(one["peak"] for one in passes)
    return found


def measure_model(bench: Bench, model: str, tools: list[str], passes: int) -> dict[str, dict[str, Any]]:
    """By tool; {"error": …} for one that cannot run it. Tools take turns, so that a slow minute of the machine is not
    one tool's alone."""
    text = bench.texts(model)
    config = json.loads((bench.work / model / "config.json").read_text())
    experts, active = config.get("n_routed_experts", 1), config.get("num_experts_per_tok", 1)
    if not config.get("num_nextn_predict_layers"):
        tools = [tool for tool in tools if not tool.endswith(MTP)]
    found: dict[str, list[dict[str, Any]]] = {tool: [] for tool in tools}
    errors: dict[str, str] = {}
    converted: dict[str, Path] = {}
    for turn in range(passes):
        for tool in tools:
            if tool in errors:
                continue
            try:
                if not turn:
                    converted[tool] = bench.convert(model, tool)
                found[tool].append(bench.measure(model, tool, converted[tool], say=not turn))
                speed = median(found[tool][-1]["decode"])
                Console(stderr=True).print(f"{model} {tool}: {speed:.1f} tokens/s", highlight=False)
            except Failed as error:
                errors[tool] = str(error)
                Console(stderr=True).print(f"{model} {tool}: {error}", highlight=False)
    reference = logits(bench.work / model, torch.from_numpy(text))
    results: dict[str, dict[str, Any]] = {}
    for tool in tools:
        if tool in errors:
            results[tool] = {"error": errors[tool]}
            continue
        one = results[tool] = merged(found[tool])
        if not tool.endswith(MTP):
            one["kl"] = divergence(reference, np.load(one["logits"]))
            if tool in ("llmc", "genai"):
                one = results[tool] = traffic(converted[tool] / "model.onnx", experts, active) | one
            one["bytes_per_token"] = one["weights"] + one["cache"] * (SHORT + NEW / 2)
        del one["logits"]
    return results


def row(one: dict[str, Any], bandwidth: float) -> list[str]:
    if "error" in one:
        return ["", "", "", "", "", "", "", one["error"]]
    cells = [f"{one['load']:.2f}", f"{max(one['prefill']):.0f}", f"{max(one['decode']):.1f}"]
    cells.append(f"{one['peak'] / 1e6:.0f}")
    if "kl" not in one:
        accepted, tokens = median(one["acceptance"]), median(one["tokens_per_step"])
        return [*cells, "", "", "", f"{tokens:.2f} tokens a step, {accepted:.0%} of drafts accepted"]
    share = max(one["decode"]) * one["bytes_per_token"] / bandwidth
    notes = ", ".join(f"{count} {kind}" for kind, count in one.get("types", {}).items() if kind != "F32")
    return [*cells, f"{one['kl']:.5f}", f"{one['bytes_per_token'] / 1e3:.0f}", f"{share:.0%}", notes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS)
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="checkpoints, results, environments")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="prompts per pass")
    parser.add_argument("--passes", type=int, default=3, help="times that every tool has its turn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    args = parser.parse_args()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(work, args.threads, args.rounds)
    speeds, results = [bench.bandwidth()], {}
    for model in args.models:
        results[model] = measure_model(bench, model, list(args.tools), args.passes)
        speeds.append(bench.bandwidth())
    bandwidth = max(speeds)
    title = f"{args.threads} threads, which read {bandwidth / 1e9:.1f} GB/s"
    columns = ("load s", "prefill t/s", "decode t/s", "peak MB", "KL", "KB per token", "of bound")
    table = Table("model", "tool", title=title)
    for column in columns:
        table.add_column(column, justify="right")
    table.add_column("")
    for model, found in results.items():
        for tool, one in found.items():
            table.add_row(model, tool, *row(one, bandwidth))
        table.add_section()
    Console(width=170).print(table)
    versions = {tool.partition("-")[0]: one["version"] for found in results.values() for tool, one in found.items()
                if "version" in one}  # fmt: skip
    Console().print(", ".join(f"{tool} {version}" for tool, version in versions.items()), highlight=False)
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "bandwidth": speeds, "models": results}, indent=1))


if __name__ == "__main__":
    main()
