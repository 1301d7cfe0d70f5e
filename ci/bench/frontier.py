#!/usr/bin/env python3
"""Size against KL divergence: what llmc and other tools make of the same checkpoints, measured by one evaluator.

    python ci/bench/frontier.py                                    # everything: hours on two cores
    python ci/bench/frontier.py --models embedded --tools llmc llama.cpp
    python ci/bench/frontier.py --draw docs                        # the picture of what has been measured so far

Every tool gets the same calibration tokens and runs in a process and a virtual environment of its own. A point's size
is that of all tensors of the model, embedding and head included, without layers for multi-token prediction, which
most tools drop. Its KL divergence is the mean over the tokens of a check text of the exact sum over the whole
vocabulary; weights are decoded to float32 first, so that it is of the weights alone and not of a runtime. What has been
measured is kept in WORK/frontier.json and not measured again, but with --again. A tool that fails is a row that says
why.

`smollm2` is SmolLM2-135M-Instruct out of a GGUF file in Q4_1 (see real.py): its weights lie on a grid of llama.cpp's,
whose types Q4_1 and Q5_1 hold them almost without loss. `smollm2-off-grid` is the same function without that: what a
matrix reads is multiplied channel by channel, in the norm or the matrix that it comes from, and its columns are
divided by the same.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from decode_tools import reason
from environment import TORCH, interpreter
from evaluate import evaluate, logits
from importance import importance
from quantize import HERE, make_source, texts_of
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from llmc.convert.checkpoint import Checkpoint
from llmc.errors import InputError

MODELS = ("embedded", "smollm2", "smollm2-off-grid")
GROUPS = (64, 32)  # what divides their widths
K_QUANTS = ("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k")
PACKAGES = {
    "gptqmodel": ["gptqmodel==7.6.0", "datasets"],
    "llmcompressor": ["llmcompressor==0.14.0.1", "datasets"],
    "autoround": ["auto-round==0.16.1"],
}
TOOLS = ("llmc", "llmc-budget", *PACKAGES, "llama.cpp")
BITS = {"llmc": (2, 3, 4, 8), "gptqmodel": (2, 3, 4, 8), "llmcompressor": (3, 4, 8), "autoround": (2, 3, 4)}
BUDGETS = (2.25, 2.5, 2.75, 3.0, 3.25, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 7.0, 8.0)  # bits per weight
ENDS_KEPT = (3.0, 3.25)  # of the layers alone: 3.25 are those of int3-g64


@dataclass
class Point:
    """What a tool made of a model. kl: nats per token; failed: the tool's own words."""

    model: str
    tool: str
    variant: str
    bytes: int = 0
    kl: float = 0.0
    ppl: float = 0.0
    seconds: float = 0.0
    failed: str = ""


class Model:
    """A checkpoint, its texts, and what it says of the check text."""

    def __init__(self, name: str, work: Path, samples: int) -> None:
        self.name, self.work = name, work
        self.source = off_grid(work) if name == "smollm2-off-grid" else make_source(name, work)
        texts = texts_of(self.source, samples)
        self.check, self.calibration = torch.from_numpy(texts.check), texts.calibration
        self.ids = work / f"{name}.npy"
        np.save(self.ids, texts.calibration)
        self.reference = logits(self.source, self.check)

    def measure(self, point: Point, result: Path) -> None:
        found = evaluate(result, self.source, self.check, self.reference)
        point.kl, point.ppl = found.kl, found.ppl
        if not point.bytes:
            point.bytes = weights_of(result)

    def importance(self) -> Path:
        path = self.work / f"{self.name}-importance.npz"
        if not path.exists():
            np.savez(path, **importance(self.source, self.calibration))
        return path


def off_grid(work: Path) -> Path:
    """SmolLM2 with channels that are multiplied and divided by factors around 1; the same function."""
    if (path := work / "smollm2-off-grid").exists():
        return path
    made = shutil.copytree(make_source("smollm2", work), work / "half-made", dirs_exist_ok=True)
    config = json.loads((made / "config.json").read_text())
    weights = {name: weight.float() for name, weight in load_file(made / "model.safetensors").items()}
    drawn = torch.Generator().manual_seed(0)

    def multiply(writer: str, readers: list[str], repeats: int = 1) -> None:
        """What `writer` gives out by random factors; a reader's columns by their inverses, for each repeated head."""
        factors = torch.exp(0.1 * torch.randn(len(weights[writer]), generator=drawn))
        weights[writer] = weights[writer] * factors.view(-1, *[1] * (weights[writer].dim() - 1))
        heads = factors.view(-1, config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
        columns = heads.repeat_interleave(repeats, 0).flatten() if repeats > 1 else factors
        for reader in readers:
            weights[reader] = weights[reader] / columns

    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}."
        attention, mlp = f"{layer}self_attn.", f"{layer}mlp."
        multiply(f"{layer}input_layernorm.weight", [f"{attention}{name}_proj.weight" for name in "qkv"])
        multiply(f"{layer}post_attention_layernorm.weight", [f"{mlp}{name}_proj.weight" for name in ("gate", "up")])
        shared = config["num_attention_heads"] // config["num_key_value_heads"]
        multiply(f"{attention}v_proj.weight", [f"{attention}o_proj.weight"], shared)
        multiply(f"{mlp}up_proj.weight", [f"{mlp}down_proj.weight"])
    save_file({name: weight.bfloat16() for name, weight in weights.items()}, made / "model.safetensors")
    return made.rename(path)


def weights_of(result: Path) -> int:
    """Bytes of all tensors but those of layers for multi-token prediction."""
    checkpoint = Checkpoint.open(result)
    ahead = range(checkpoint.spec.num_layers, checkpoint.spec.num_all_layers)
    return checkpoint.nbytes() - sum(checkpoint.nbytes(f"model.layers.{index}.") for index in ahead)


def variants(tool: str) -> list[str]:
    if tool == "llama.cpp":
        return list(K_QUANTS)
    if tool == "llmc-budget":
        return [f"{bits:g} bits" for bits in BUDGETS] + [f"{bits:g} bits, ends kept" for bits in ENDS_KEPT]
    more = ["int3-g64, ends too", "int4-g64, ends too"] if tool == "llmc" else []
    return [f"int{bits}-g{group}" for bits in BITS[tool] for group in GROUPS] + more


def make(tool: str, model: Model, variant: str, point: Point) -> Path:
    """The checkpoint that the tool makes; SystemExit with its own words where it fails."""
    work, output = model.work, model.work / f"{model.name}-{tool}-{variant.replace(',', '').replace(' ', '-')}"
    shutil.rmtree(output, ignore_errors=True)
    start = time.monotonic()
    if tool == "llama.cpp":
        python = interpreter(work / "venv-llama-cpp", ["llama-cpp-python==0.3.36", "gguf==0.19.0"])
        file = Path(f"{output}.gguf")
        wide = Path(f"{output}.f16")
        _call([sys.executable, HERE / "decoders/checkpoint_to_gguf.py", model.source, wide], output)
        _call([python, HERE / "decoders/to_llama_cpp.py", wide, file, variant, model.importance()], output)
        _call([sys.executable, HERE / "decoders/gguf_weights.py", model.source, file, output], output)
        point.bytes = json.loads(file.with_suffix(".json").read_text())["bytes"]
        file.unlink()
    elif tool == "llmc-budget" or "," in variant:
        shutil.rmtree(f"{output}.work", ignore_errors=True)  # of an earlier run; what it measured lies beside it
        recipe = Path(f"{output}.yaml")
        recipe.write_text(yaml.safe_dump(_recipe(model, variant)))
        _call([sys.executable, "-m", "llmc.cli", "build", recipe, "--output", output], output)
    else:
        bits, group = variant.removeprefix("int").split("-g")
        python = Path(sys.executable)
        if tool in PACKAGES:
            python = interpreter(work / f"venv-{tool}", [TORCH, *PACKAGES[tool]])
        _call([python, HERE / f"quantizers/with_{tool}.py", model.source, model.ids, bits, group, output], output)
    point.seconds = time.monotonic() - start
    return output


def _recipe(model: Model, variant: str) -> dict[str, object]:
    """Of `3 bits`, `3 bits, ends kept`, or `int3-g64, ends too`."""
    what, _, ends = variant.partition(", ")
    spec = Checkpoint.open(model.source).spec
    roles = ["embedding", *(["lm_head"] if not spec.tie_word_embeddings else [])]
    if what.endswith(" bits"):
        kept = roles if ends else []
        budget = {"bits": float(what.split()[0]), "quantize": [{"match": role, "scheme": "as-is"} for role in kept]}
    else:
        every = [*roles, r"re:model\.layers\.\d+\..*"]
        budget = {"quantize": [{"match": match, "scheme": what} for match in every]}
    samples, length = model.calibration.shape
    texts = {
        "calibration": {"samples": samples, "length": length},
        "check": {"tokens": 512, "length": 512},
    }
    return {"model": str(model.source), "targets": [], **texts, **budget}


def _call(command: list[object], output: Path) -> None:
    log = Path(f"{output}.log")
    with log.open("w") as file:
        done = subprocess.run(
            [str(part) for part in command], stdout=file, stderr=file, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}
        )
    if done.returncode:
        signal = f"signal {-done.returncode}: " if done.returncode < 0 else ""
        raise SystemExit(signal + reason(log))


def measured(model: Model, tool: str, known: dict[tuple[str, ...], Point], only: list[str] | None) -> Iterator[Point]:
    for variant in variants(tool):
        if (model.name, tool, variant) in known or (only and variant not in only):
            continue
        point = Point(model.name, tool, variant)
        try:
            result = make(tool, model, variant, point)
            model.measure(point, result)
            shutil.rmtree(result)
        except (SystemExit, InputError, OSError) as error:
            point.failed = str(error)
        yield point


def read(file: Path) -> dict[tuple[str, ...], Point]:
    points = [Point(**each) for each in json.loads(file.read_text())] if file.exists() else []
    return {(point.model, point.tool, point.variant): point for point in points}


def show(points: list[Point]) -> None:
    table = Table("model", "tool", "variant", "MB", "KL", "ppl", "s", title="size against KL divergence")
    for model in MODELS:
        for point in sorted((each for each in points if each.model == model), key=lambda each: each.bytes):
            if point.failed:
                row = ["–", f"failed: {point.failed}", "", ""]
            else:
                row = [f"{point.bytes / 1e6:.1f}", f"{point.kl:.5f}", f"{point.ppl:.3f}", f"{point.seconds:.0f}"]
            table.add_row(model, point.tool, point.variant, *row)
        table.add_section()
    Console(width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS)
    parser.add_argument("--variants", nargs="+", help='some of what each tool makes, such as int4-g64 q4_k_m "3 bits"')
    parser.add_argument("--samples", type=int, default=32, help="calibration windows of 512 tokens")
    parser.add_argument("--again", action="store_true", help="measure what has been measured before, too")
    parser.add_argument("--work", type=Path, default=Path("build/bench/frontier"), help="results, environments")
    parser.add_argument("--draw", type=Path, help="measure nothing; write frontier.png and frontier.svg there")
    args = parser.parse_args()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    file = work / "frontier.json"
    points = read(file)
    if args.draw:
        python = interpreter(work / "venv-picture", ["matplotlib==3.11.0"])
        subprocess.run([python, HERE / "frontier_picture.py", file, args.draw.resolve()], check=True)
        return show(list(points.values()))
    if args.again:
        points = {key: each for key, each in points.items() if key[0] not in args.models or key[1] not in args.tools}
    for name in args.models:
        model = Model(name, work, args.samples)
        for tool in args.tools:
            for point in measured(model, tool, points, args.variants):
                points[point.model, point.tool, point.variant] = point
                file.write_text(json.dumps([asdict(each) for each in points.values()], indent=1))
                Console(stderr=True).print(*vars(point).values(), highlight=False)
    show(list(points.values()))


if __name__ == "__main__":
    main()
