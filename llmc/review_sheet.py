"""Answers that differ, for people to compare: blind, the sides drawn anew for every question.

BUILD.audit/review.html      the sheet: one file without network, labels are saved from it as JSON lines
BUILD.audit/review.jsonl     the same questions, for other tools
BUILD.audit/review-key.json  whose answer is on which side; not for reviewers
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmc.quant.durable import write_json

PAGE, LINES, KEY = "review.html", "review.jsonl", "review-key.json"
SEED, MOST = 0, 100
_PLACE = "LLMC_ITEMS"


def write_sheet(folder: Path, samples: Iterable[dict[str, Any]], seed: int = SEED, most: int = MOST) -> int:
    """Write what differs, and return how many questions that is; files of an earlier sheet go where nothing does.

    Args:
        samples: Lines of samples.jsonl.
        seed: Draws questions, order and sides.
        most: Questions of a sheet.
    """
    draw = random.Random(seed)
    differing: dict[tuple[str, ...], dict[str, Any]] = {}
    for sample in samples:
        said = sample["original"]["answer"], sample["artifact"]["answer"]
        if said[0] != said[1]:
            differing.setdefault((sample["prompt"], *said), sample)  # one question may be in two tasks
    chosen = list(differing.values())
    draw.shuffle(chosen)
    items, key = [], {}
    for sample in chosen[:most]:
        name = hashlib.sha256(json.dumps([sample["task"], sample["sample"]]).encode()).hexdigest()[:12]
        sides = ["original", "artifact"]
        draw.shuffle(sides)
        key[name] = dict(zip(("left", "right"), sides, strict=True))
        shown = {side: sample[whose]["answer"] for side, whose in key[name].items()}
        items.append(
            {"item": name, "task": sample["task"], "prompt": sample["prompt"], "target": sample["target"], **shown}
        )
    for name in (PAGE, LINES, KEY):
        (folder / name).unlink(missing_ok=True)
    if not items:
        return 0
    sheet = hashlib.sha256(json.dumps(items).encode()).hexdigest()[:16]
    (folder / LINES).write_text("".join(f"{json.dumps({'sheet': sheet, **item})}\n" for item in items))
    (folder / PAGE).write_text(page({"sheet": sheet, "items": items}), encoding="utf-8")
    write_json(folder / KEY, {"sheet": sheet, "seed": seed, "sides": key})
    return len(items)


def page(sheet: dict[str, Any]) -> str:
    """Return the page of a sheet; what models said is data in it, and never markup."""
    template = Path(__file__).with_name("review_sheet.html").read_text("utf-8")
    data = json.dumps(sheet).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return template.replace(_PLACE, data)
