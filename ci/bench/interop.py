#!/usr/bin/env python3
"""Which programs load what llmc writes, and whether they say the same: family x scheme x layout x reader.

    python ci/bench/interop.py                                  # everything; llama.cpp is built from source on the way
    python ci/bench/interop.py --readers transformers lm-eval   # some readers; what others have said before is kept
    python ci/bench/interop.py --models llama --schemes int4

Small random models with the shapes that published ones have, quantized by rounding to nearest. Logits of a text in
float32 are compared with llmc's torch blocks: the largest difference, relative to the largest logit. Results go to
docs/interop.json, of which `python ci/docs/interop.py` makes docs/interop.md. A program that cannot be installed here
has a row with the reason. Exit code 1 where a reader says something else.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import interpreter
from rich.console import Console

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "tests"))

from support.artifact_in_transformers import as_transformers_decodes, loaded_by_transformers  # noqa: E402
from support.byte_tokenizer import byte_tokenizer  # noqa: E402
from support.graph_session import GraphSession  # noqa: E402
from support.random_checkpoint import DEEPSEEK_V3, LLAMA, QWEN2, random_checkpoint  # noqa: E402

from llmc.convert.checkpoint import Checkpoint  # noqa: E402
from llmc.convert.formats import layouts  # noqa: E402
from llmc.convert.model import CausalLM  # noqa: E402
from llmc.convert.targets import target  # noqa: E402
from llmc.errors import LlmcError  # noqa: E402
from llmc.quant.assign import Rule  # noqa: E402
from llmc.quant.layerwise import QuantizeOptions, quantize  # noqa: E402

RESULTS = REPOSITORY / "docs" / "interop.json"
LLAMA_CPP = ["llama-cpp-python==0.3.36", "gguf==0.19.0"]
_DENSE = LLAMA | {"vocab_size": 260, "hidden_size": 128, "intermediate_size": 256}
_EXPERTS = {"moe_intermediate_size": 128, "num_experts_per_tok": 2, "eos_token_id": 1}
MODELS: dict[str, dict[str, Any]] = {
    "llama": _DENSE,
    "llama-tied": _DENSE | {"tie_word_embeddings": True},
    "qwen2": QWEN2 | {"vocab_size": 260, "hidden_size": 128, "intermediate_size": 256, "eos_token_id": 1},
    "qwen3": _DENSE | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32, "eos_token_id": 1},
    "mixtral": _DENSE
    | {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4}
    | {"num_experts_per_tok": 2, "sliding_window": None, "eos_token_id": 1},
    "qwen3_moe": _DENSE
    | {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "head_dim": 32, "num_experts": 4}
    | {"norm_topk_prob": True}
    | _EXPERTS,
    "deepseek_v3": DEEPSEEK_V3
    | {"vocab_size": 260, "hidden_size": 128, "intermediate_size": 256, "moe_intermediate_size": 128}
    | {"q_lora_rank": 128, "kv_lora_rank": 128, "qk_nope_head_dim": 32, "v_head_dim": 32, "qk_rope_head_dim": 32},
}
_MLPS = ("dense_mlp", "experts", "shared_experts")
# By name: role → scheme.
SCHEMES: dict[str, dict[str, str]] = {
    "floats": {},
    "int4": dict.fromkeys(("attention", *_MLPS), "int4-g32"),
    "int4 experts and MLPs": dict.fromkeys(_MLPS, "int4-g32"),
    "int4 attention alone": {"attention": "int4-g32"},
    "int8": dict.fromkeys(("attention", *_MLPS), "int8-g32"),
    "int4, act-order": dict.fromkeys(("attention", *_MLPS), "int4-g32-actorder"),
    "fp8-channel": dict.fromkeys(("attention", *_MLPS), "fp8-channel"),
    "fp8-block": dict.fromkeys(("attention", *_MLPS), "fp8-block"),
    "mxfp4": dict.fromkeys(_MLPS, "mxfp4"),
    "nvfp4": dict.fromkeys(("attention", *_MLPS), "nvfp4"),
}
LIMIT = 1e-4  # of the largest logit, where a program computes in float32
# llama.cpp rounds the inputs of quantized matrices to 8 bits.
LIMITS = {"llama.cpp": 0.05}
CANNOT = {
    "vLLM": "0.33.0 wants torch 2.14.0, transformers below 5.21 and compressed-tensors 0.17.0 exactly, beside which "
    "llmc is not installed; the module of its wheel that reads `config_groups` imports its kernels",
    "SGLang": "0.5.23 wants torch 2.14.1, transformers 5.19.0 and compressed-tensors 0.18.0 exactly",
}


@dataclass(frozen=True)
class Row:
    """One reader on one checkpoint: the difference, or why there is none."""

    model: str
    scheme: str
    layout: str
    reader: str
    difference: float | None
    said: str = ""

    @property
    def wrong(self) -> bool:
        return self.difference is not None and not self.difference < LIMITS.get(self.reader, LIMIT)


class Case:
    """A checkpoint in one layout, and what llmc says by it."""

    def __init__(self, model: str, scheme: str, layout: str, work: Path) -> None:
        self.model, self.scheme, self.layout, self.work = model, scheme, layout, work
        self.path = work / f"interop-{model}-{scheme}-{layout}".replace(" ", "-").replace(",", "")
        self.text = torch.randint(3, 250, (2, 24), generator=torch.Generator().manual_seed(1))

    def make(self) -> None:
        """Write it anew; LlmcError for what the layout does not store."""
        shutil.rmtree(self.path, ignore_errors=True)
        source = self.work / f"interop-{self.model}"
        if not source.exists():
            random_checkpoint(source, MODELS[self.model])
        options = QuantizeOptions(layout=self.layout)
        text, scratch = self.text[:, :16], self.path.with_suffix(".work")
        opened = Checkpoint.open(source)
        there = {opened.role(name) for name in opened.names()}
        rules = [Rule(role, scheme, "rtn") for role, scheme in SCHEMES[self.scheme].items() if role in there]
        quantize(opened, rules, None, text, text[:1], self.path, scratch, lambda *_: None, options)
        byte_tokenizer(self.path)
        names = {"bos_token": "<bos>", "eos_token": "<eos>", "tokenizer_class": "PreTrainedTokenizerFast"}
        (self.path / "tokenizer_config.json").write_text(json.dumps(names))
        self.checkpoint = Checkpoint.open(self.path)

    def ours(self, model: CausalLM | None = None) -> torch.Tensor:
        with torch.no_grad():
            model = model or CausalLM.load(self.checkpoint)
            return model.logits(model.hidden(self.text))


def in_transformers(case: Case) -> float:
    model = loaded_by_transformers(case.path)
    with torch.no_grad():
        got = model(case.text).logits
    return difference(got, case.ours(as_transformers_decodes(case.checkpoint)))


def in_lm_eval(case: Case) -> float:
    """The harness's own model for transformers: log-likelihoods of what follows, against ours."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(case.path)
    harness = HFLM(pretrained=loaded_by_transformers(case.path), tokenizer=tokenizer, device="cpu", batch_size=1)
    pair = "The capital of France", " is Paris."
    (found, _), *_ = harness.loglikelihood([Instance("loglikelihood", {}, pair, 0)], disable_tqdm=True)
    before, after = (tokenizer(each, add_special_tokens=False).input_ids for each in pair)
    model, ids = as_transformers_decodes(case.checkpoint), torch.tensor([before + after])
    with torch.no_grad():
        logits = model.logits(model.hidden(ids))[0].log_softmax(-1)
    wanted = sum(logits[len(before) + n - 1, token].item() for n, token in enumerate(after))
    return abs(found - wanted) / abs(wanted)


def in_onnxruntime(case: Case) -> float:
    """The portable graph in a plain session."""
    onnx = target("onnx")
    result = onnx.build(case.checkpoint, onnx.Options(), case.path, lambda *_: None)
    logits, _ = GraphSession(case.path / result.files["main"], batch=2).step(case.text, [0, 0])
    return difference(logits, case.ours())


def gguf_of(case: Case) -> Path:
    gguf = target("gguf")
    result = gguf.build(case.checkpoint, gguf.Options(), case.path, lambda *_: None)
    return case.path / result.files["main"]


def in_gguf(case: Case) -> float:
    """llmc's own reader of the file, with the package's decoder: what rounding to llama.cpp's types has cost."""
    model = CausalLM.load(Checkpoint.open(gguf_of(case)))
    return difference(case.ours(model), case.ours())


def in_llama_cpp(case: Case) -> float:
    """Against the weights that are in the file."""
    file = gguf_of(case)
    python = interpreter(case.work / "venv-llama-cpp", LLAMA_CPP)
    ids, said = case.path / "ids.npy", case.path / "said.npy"
    np.save(ids, case.text.numpy())
    script = Path(__file__).parent / "decoders" / "logits_of_llama_cpp.py"
    done = subprocess.run([python, script, file, ids, said], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
    return difference(torch.from_numpy(np.load(said)), case.ours(CausalLM.load(Checkpoint.open(file))))


READERS: dict[str, Callable[[Case], float]] = {
    "transformers": in_transformers,
    "lm-eval": in_lm_eval,
    "ONNX Runtime": in_onnxruntime,
    "gguf": in_gguf,
    "llama.cpp": in_llama_cpp,
}
ANY_LAYOUT = ("transformers", "lm-eval")  # the others read what a target makes, and that of one layout


def difference(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got - want).abs().max() / want.abs().max()).item()


def measure(case: Case, reader: str) -> Row:
    """One row; whatever a program stops with is what it said."""
    try:
        found, said = READERS[reader](case), ""
    except LlmcError as error:
        found, said = None, str(error)
    except Exception as error:  # a reader's own, of any kind
        found, said = None, f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    return Row(case.model, case.scheme, case.layout, reader, found, said.replace(str(case.path), "…")[:200])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=[*SCHEMES])
    parser.add_argument("--layouts", nargs="+", choices=layouts.all, default=[*layouts.all])
    parser.add_argument("--readers", nargs="+", choices=READERS, default=[*READERS])
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    console, rows = Console(width=160), list[Row]()
    for model in arguments.models:
        for scheme in arguments.schemes:
            for layout in arguments.layouts:
                rows += rows_of(Case(model, scheme, layout, work), arguments.readers, console)
                keep(rows)
    wrong = [row for row in rows if row.wrong]
    for row in wrong:
        console.print(f"[red]differs[/]: {row}")
    sys.exit(1 if wrong else 0)


def rows_of(case: Case, readers: list[str], console: Console) -> list[Row]:
    usual = case.layout == "compressed-tensors"
    wanted = [reader for reader in readers if usual or reader in ANY_LAYOUT]
    if not wanted or (not usual and case.scheme == "floats"):
        return []
    try:
        case.make()
    except LlmcError as error:
        console.print(f"{case.model}, {case.scheme}, {case.layout}: {error}", highlight=False, style="dim")
        return []  # the layout does not store it, and says so before any work
    rows = []
    for reader in wanted:
        rows.append(row := measure(case, reader))
        told = row.said if row.difference is None else f"{row.difference:.1e}"
        console.print(f"{case.model}, {case.scheme}, {case.layout}, {reader}: {told}", highlight=False)
    shutil.rmtree(case.path)
    shutil.rmtree(case.path.with_suffix(".work"), ignore_errors=True)
    return rows


def keep(rows: list[Row]) -> None:
    """Write what was found over what was known of the same rows."""
    known = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    found = {(row["model"], row["scheme"], row["layout"], row["reader"]): row for row in known}
    for row in rows:
        made = asdict(row)
        if row.difference is not None:
            made["difference"] = float(f"{row.difference:.2g}")
        found[row.model, row.scheme, row.layout, row.reader] = made
    order = [*MODELS], [*SCHEMES], [*layouts.all], [*READERS]
    ordered = sorted(found.values(), key=lambda row: [
        names.index(row[key]) if row[key] in names else len(names)
        for names, key in zip(order, ("model", "scheme", "layout", "reader"), strict=True)
    ])  # fmt: skip
    content = {"limit": LIMIT, "limits": LIMITS, "cannot": CANNOT, "rows": ordered}
    RESULTS.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
