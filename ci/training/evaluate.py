#!/usr/bin/env python3
"""How good is a small checkpoint? Measured on what ships, through llmc's own blocks.

python ci/training/evaluate.py recipes/checkpoints/tiny-deepseek-v3
python ci/training/evaluate.py CHECKPOINT --text book.txt      # the text it was trained on
"""

import argparse
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from text import file_documents, python_documents
from tokenizers import Tokenizer

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import CausalLM, MixtureOfExperts

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 24, 64, 96


@torch.no_grad()
def on_text(model: CausalLM, stream: torch.Tensor, window: int) -> dict[str, float]:
    """Sums over a token stream, in windows that overlap by half; the second half of each is scored."""
    loads = {
        index: torch.zeros(len(layer.mlp.experts))
        for index, layer in enumerate(model.layers)
        if isinstance(layer.mlp, MixtureOfExperts)
    }
    for index, load in loads.items():

        def count(_: object, __: object, routed: tuple[torch.Tensor, ...], load: torch.Tensor = load) -> None:
            load.add_(torch.bincount(routed[0].flatten(), minlength=len(load)))

        model.layers[index].mlp.gate.register_forward_hook(count)
    half, total = window // 2, dict.fromkeys(("tokens", "nll", "right", "agree", "compared"), 0.0)
    for start in range(0, len(stream) - window - 2, half):
        ids = stream[None, start : start + window + 2]
        hidden = model.hidden(ids[:, :-2])
        logits = model.logits(hidden)[0]  # position i says token i + 1
        draft = model.logits(model.mtp(ids[:, 1:-1], hidden))[0].argmax(-1)  # position i drafts token i + 2
        scored = slice(0 if start == 0 else half, window)
        true, said = ids[0, 1:-1], logits.argmax(-1)
        total["nll"] += F.cross_entropy(logits[scored], true[scored], reduction="sum").item()
        total["tokens"] += len(true[scored])
        total["right"] += (said == true)[scored].sum().item()
        total["agree"] += (draft[:-1] == said[1:])[scored].sum().item()
        total["compared"] += len(said[1:][scored])
    spread = max((load.max() / load.mean()).item() for load in loads.values())
    return total | {"load_max_over_mean": spread}


@torch.no_grad()
def free_running(model: CausalLM, stream: torch.Tensor) -> float:
    """The model writes greedily from held-out prompts; the share of its tokens that the MTP layer had drafted."""
    starts = torch.linspace(0, len(stream) - PROMPT_TOKENS - 1, PROMPTS).long()
    ids = torch.stack([stream[start : start + PROMPT_TOKENS] for start in starts.tolist()])
    for _ in range(NEW_TOKENS):
        ids = torch.cat([ids, model.logits(model.hidden(ids)[:, -1:]).argmax(-1)], dim=1)
    hidden = model.hidden(ids)
    draft = model.logits(model.mtp(ids[:, 1:], hidden[:, :-1])).argmax(-1)
    return (draft[:, PROMPT_TOKENS - 1 : -1] == ids[:, PROMPT_TOKENS + 1 :]).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", type=Path, nargs="+", help="text files it was trained on (default: Python's library)")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    _, documents = file_documents(args.text) if args.text else python_documents()
    tokenizer = Tokenizer.from_file(str(args.checkpoint / "tokenizer.json"))
    stream = torch.tensor([token for text in documents for token in [*tokenizer.encode(text).ids, 1]])
    model = CausalLM.load(Checkpoint.open(args.checkpoint))
    acceptance = free_running(model, stream)
    found = on_text(model, stream, args.window)
    nll = found["nll"] / found["tokens"]
    size = sum(len(text.encode()) for text in documents)
    result = {
        "held-out tokens": int(found["tokens"]),
        "bits per byte": nll / math.log(2) * len(stream) / size,
        "perplexity per token": math.exp(nll),
        "next-token accuracy": found["right"] / found["tokens"],
        "MTP draft is the model's choice, on text": found["agree"] / found["compared"],
        "MTP acceptance, free-running greedy": acceptance,
        "expert load, largest over mean": found["load_max_over_mean"],
    }
    if args.json:
        print(json.dumps(result, indent=2))
        return
    table = Table(title=str(args.checkpoint))
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in result.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.4f}")
    Console().print(table)


if __name__ == "__main__":
    main()
