#!/usr/bin/env python3
"""Quantize the same checkpoints with llmc, GPTQModel and llm-compressor, and measure all results by one evaluator.

    python ci/bench/quantize.py                        # everything: an hour
    python ci/bench/quantize.py --models moe --tools llmc gptqmodel

int4, symmetric, GPTQ, every linear layer of the decoder; groups of 128, or of 64 for the embedded checkpoint and for
SmolLM2-135M-Instruct, whose widths 128 does not divide; the same calibration tokens in the same order; each tool in a
process and a virtual environment of its own, on the same cores. llmc runs twice: with GPTAQ, its default, and with
plain GPTQ, as the others do. Prints the table that stands in ci/bench/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from environment import TORCH, interpreter
from evaluate import Evaluation, evaluate, logits, perplexity
from gguf_to_checkpoint import convert
from real import NAME, model_file
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from synthesize import CONFIGS, synthesize

from llmc.calibration_recipe import Calibration, Check
from llmc.convert.checkpoint import Checkpoint
from llmc.source import locate
from llmc.text import Texts, read_texts

HERE = Path(__file__).parent
MODELS = {"dense": 128, "moe": 128, "embedded": 64, "smollm2": 64}  # with the size of a group
TOOLS = {"llmc": None, "llmc-gptq": None, "gptqmodel": "gptqmodel==7.6.0", "llmcompressor": "llmcompressor==0.14.0.1"}


@dataclass
class Run:
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    result: Evaluation | None  # None: the tool failed
    log: Path


def python_of(tool: str, work: Path) -> Path:
    """The interpreter that has the tool; its virtual environment is made when it is not there."""
    if TOOLS[tool] is None:
        return Path(sys.executable)
    return interpreter(work / f"venv-{tool}", [TORCH, str(TOOLS[tool]), "datasets"])


def make_source(model: str, work: Path) -> Path:
    """The checkpoint of that name; it is made when it is not there."""
    source = work / model
    if model == "smollm2":
        return _smollm2(work)
    if model == "embedded":
        if not source.exists():
            source.unlink(missing_ok=True)  # a link to where the checkpoint has been
            source.symlink_to(locate("builtin:tiny-deepseek-v3", Path()).path)
    elif not (source / "config.json").exists():
        synthesize(CONFIGS[model], source)
    return source


def _smollm2(work: Path) -> Path:
    """In bfloat16, as its makers publish it."""
    if not (path := work / f"{NAME}-bf16").exists():
        convert(model_file(work), wide := work / NAME)
        weights = {name: weight.bfloat16() for name, weight in load_file(wide / "model.safetensors").items()}
        made = shutil.copytree(wide, work / "half-made", dirs_exist_ok=True)
        save_file(weights, made / "model.safetensors")
        config = json.loads((made / "config.json").read_text()) | {"dtype": "bfloat16"}
        (made / "config.json").write_text(json.dumps(config, indent=2))
        made.rename(path)
    return path


def texts_of(source: Path, samples: int) -> Texts:
    calibration, check = Calibration(samples=samples, length=512), Check(tokens=8192, length=512)
    return read_texts(calibration, check, Checkpoint.open(source), Path())


def run(
    tool: str, source: Path, ids: Path, group_size: int, work: Path, cores: list[int], bits: int = 4
) -> tuple[Run, Path]:
    """One tool over one checkpoint."""
    output = work / f"{source.name}-{tool}"
    subprocess.run(["rm", "-rf", output], check=True)
    log = work / f"{source.name}-{tool}.log"
    script, _, method = tool.partition("-")
    scheme = [str(bits), str(group_size)]
    command = [python_of(tool, work), HERE / "quantizers" / f"with_{script}.py", source, ids, *scheme, output]
    command += [method] if method else []
    environment = os.environ | {"OMP_NUM_THREADS": str(len(cores)), "CUDA_VISIBLE_DEVICES": ""}
    with log.open("w") as file:
        start = time.monotonic()
        child = subprocess.Popen(
            command, stdout=file, stderr=file, env=environment, preexec_fn=lambda: os.sched_setaffinity(0, cores)
        )
        peak, pid = 0, 0
        while not pid:
            peak = max(peak, peak_bytes(child.pid))
            time.sleep(0.05)
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        seconds = time.monotonic() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    measured = Run(seconds, usage.ru_utime + usage.ru_stime, peak, None, log)
    return measured, output if child.returncode == 0 else Path()


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had so far. Not ru_maxrss, which it inherits from the process that started
    it; 0 once it has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="checkpoints, results, environments")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--samples", type=int, default=32, help="calibration windows of 512 tokens")
    args = parser.parse_args()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    cores = sorted(os.sched_getaffinity(0))[: args.cores]
    title = f"int4, {args.samples} x 512 calibration tokens, {len(cores)} cores"
    table = Table("model", "tool", "wall s", "CPU s", "peak MB", "KL", "ppl", "missed", "MTP", title=title)
    for model in args.models:
        source = make_source(model, work)
        texts = texts_of(source, args.samples)
        ids = work / f"{model}.npy"
        np.save(ids, texts.calibration)
        check = torch.from_numpy(texts.check)
        reference = logits(source, check)
        table.add_row(model, "original", "", "", "", "", f"{perplexity(reference, check):.3f}", "", "")
        for tool in args.tools:
            measured, output = run(tool, source, ids, MODELS[model], work, cores)
            row = [
                model,
                tool,
                f"{measured.seconds:.1f}",
                f"{measured.cpu_seconds:.1f}",
                f"{measured.peak_bytes / 1e6:.0f}",
            ]
            if output != Path():
                found = evaluate(output, source, check, reference)
                row += [f"{found.kl:.5f}", f"{found.ppl:.3f}", str(found.missed), found.mtp]
            else:
                row += ["failed:", (log_tail(measured.log)), "", ""]
            table.add_row(*row)
            Console(stderr=True).print(" ".join(row), highlight=False)
        table.add_section()
    Console(width=160).print(table)


def log_tail(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:120] if lines else ""


if __name__ == "__main__":
    main()
