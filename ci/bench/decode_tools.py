"""The tools that decode.py measures: their environments, what they run, and the processes in which they run it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from environment import TORCH, interpreter
from quantize import make_source, texts_of

HERE = Path(__file__).parent / "decoders"
TOOLS = (
    "llmc",
    "llmc-mtp",
    "genai",
    "llama.cpp-q4_0",
    "llama.cpp-q4_0-mtp",
    "llama.cpp-q4_k_m",
    "llama.cpp-f16",
    "transformers",
)
MTP = "-mtp"  # tools that draft with the MTP layer
PROMPT, SHORT, NEW = 512, 32, 128  # tokens
RECIPE = """
model: {model}
calibration: {{samples: 32, length: 512}}
quantize:
  - {{match: attention, scheme: {scheme}}}
{rules}
targets: [{{onnxruntime: {{}}}}]
check: {{tokens: 1024, length: 512}}
"""
RULE = "  - {{match: {role}, scheme: {scheme}}}"


class Failed(Exception):
    """A tool that cannot do it; the message is its own."""


class Bench:
    """One run: where things lie, on which cores they are measured."""

    def __init__(self, work: Path, threads: int, rounds: int) -> None:
        self.work, self.threads, self.rounds = work, threads, rounds
        self.cores = sorted(os.sched_getaffinity(0))[:threads]
        self._built: set[Path] = set()  # llmc's artifacts

    def python_of(self, tool: str) -> Path:
        if tool == "genai":
            # PyTorch first: its builder asks for any, and would get one for GPUs.
            return interpreter(
                self.work / "venv-genai", [TORCH], ["onnxruntime-genai==0.18.0", "onnx_ir", "transformers"]
            )
        if tool.startswith("llama.cpp"):
            return interpreter(self.work / "venv-llama-cpp", ["llama-cpp-python==0.3.36", "gguf==0.19.0"])
        return Path(sys.executable)

    def call(self, command: Iterable[str | Path], log: Path, pinned: bool) -> None:
        """Runs it to its end; Failed with the last line that it has said."""
        environment = {"ORT_DISABLE_TELEMETRY": "1"} | os.environ | {"CUDA_VISIBLE_DEVICES": ""}
        if pinned:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        with log.open("w") as file:
            cores = self.cores if pinned else os.sched_getaffinity(0)
            done = subprocess.run(
                [*command],
                stdout=file,
                stderr=file,
                cwd=self.work,
                env=environment,
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
            )
        if done.returncode:
            raise Failed(reason(log))

    def bandwidth(self) -> float:
        log = self.work / "bandwidth.log"
        self.call([sys.executable, HERE / "bandwidth.py", str(self.threads)], log, pinned=True)
        return float(log.read_text().split()[-1])

    def convert(self, model: str, tool: str) -> Path:
        """What the tool runs. llmc's is built anew in every run, as it is llmc that changes."""
        name, _, kind = tool.partition("-")
        log = self.work / f"decode-{model}-{tool}-convert.log"
        if tool == "transformers":
            return self.work / model
        if name == "llama.cpp":
            output = self.work / f"decode-{model}-{kind}.gguf"
            if not output.with_suffix(".json").exists():
                kind, *mtp = kind.split("-")
                wide = output.with_suffix(".f16")
                self.call([sys.executable, HERE / "checkpoint_to_gguf.py", model, wide, *mtp], log, pinned=False)
                self.call([self.python_of(tool), HERE / "to_llama_cpp.py", wide, output, kind], log, pinned=False)
            return output
        output = self.work / f"decode-{model}-{name}"
        if name == "llmc":
            self._build(model, output, log)
        elif not (output / "model.onnx").exists():
            builder = [self.python_of(tool), "-m", "onnxruntime_genai.models.builder", "-m", model, "-o", output]
            options = ["-p", "int4", "-e", "cpu", "-c", "genai-cache", "--extra_options", "block_size=32"]
            self.call([*builder, *options, "accuracy_level=4"], log, pinned=False)
        return output

    def _build(self, model: str, output: Path, log: Path) -> None:
        if output in self._built:
            return
        shutil.rmtree(output, ignore_errors=True)
        recipe = output.with_suffix(".yaml")
        recipe.write_text(self._recipe(model))
        self.call([sys.executable, "-m", "llmc.cli", "build", recipe, "--output", output, "--fresh"], log, pinned=False)
        self._built.add(output)

    def _recipe(self, model: str) -> str:
        config = json.loads((self.work / model / "config.json").read_text())
        roles = []
        if not config.get("n_routed_experts") or config.get("first_k_dense_replace"):
            roles.append("dense_mlp")
        if config.get("n_routed_experts"):
            roles += ["experts", "shared_experts"]
        if config.get("num_nextn_predict_layers"):
            roles.append("mtp")
        scheme = "int4-g64" if model == "embedded" else "int4-g128"  # what divides the width of its experts
        rules = "\n".join(RULE.format(role=role, scheme=scheme) for role in roles)
        return RECIPE.format(model=self.work / model, scheme=scheme, rules=rules)

    def measure(self, model: str, tool: str, converted: Path, say: bool) -> dict[str, Any]:
        """What decoders/measure.py finds, and where the logits lie."""
        stem = self.work / f"decode-{model}-{tool}"
        said = stem.with_name(stem.name + ".npy")
        result = stem.with_name(stem.name + ".json")
        task = {
            "model": str(converted),
            "threads": self.threads,
            "prompts": str(self.work / f"decode-{model}-prompts.npy"),
            "text": str(self.work / f"decode-{model}-text.npy"),
            "short": SHORT,
            "new": NEW,
            "result": str(result),
            "logits": str(said) if say else None,
        }
        file = stem.with_name(stem.name + "-task.json")
        file.write_text(json.dumps(task))
        name = "llama_cpp" if tool.startswith("llama.cpp") else tool.partition("-")[0]
        name += "_mtp" if tool.endswith(MTP) else ""
        log = stem.with_name(stem.name + ".log")
        self.call([self.python_of(tool), HERE / f"with_{name}.py", file], log, pinned=True)
        return json.loads(result.read_text()) | {"logits": str(said)}

    def texts(self, model: str) -> np.ndarray:
        """Writes the prompts, and the text that logits are compared on, which is returned."""
        texts = texts_of(make_source(model, self.work), self.rounds)
        np.save(self.work / f"decode-{model}-prompts.npy", texts.calibration[:, :PROMPT])
        text = texts.check[:4]
        np.save(self.work / f"decode-{model}-text.npy", text)
        return text


def reason(log: Path) -> str:
    """The tool's own words: the last line that speaks of an error, or the last of all."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.search("error|failed to quantize", line, re.IGNORECASE)]
    return (errors or lines or ["it said nothing"])[-1][:160]
