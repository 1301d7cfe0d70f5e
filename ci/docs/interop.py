"""The page "Other programs": which of them load what llmc writes, and whether they say the same.

    python ci/docs/interop.py

writes docs/interop.md anew from docs/interop.json, which `python ci/bench/interop.py` measures.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
INTRODUCTION = """# Other programs

Small random models with the shapes that published ones have, quantized by rounding to nearest, loaded by the programs
that people run them with. A number is the largest difference of a logit from llmc's own, relative to the largest logit,
in float32: below {limit:g} it is how sums are rounded. `python ci/bench/interop.py` measures it anew; a row that is not
there has not been measured.

- `transformers` and `lm-eval` (its own model for transformers) read the checkpoint, with compressed-tensors where
  that is the layout.
- `ONNX Runtime` runs the portable graph in a plain session.
- `gguf` is the file of target `gguf`, decoded by llama.cpp's package of that name: what is rounded to its types shows
  here ([llama.cpp](gguf.md) says what is not).
- `llama.cpp` computes with that file, and rounds the inputs of quantized matrices to 8 bits: up to {llama_cpp:g}.
"""


def page(found: dict[str, Any]) -> str:
    """Return the page, as Markdown, of what was measured."""
    lines = [INTRODUCTION.format(limit=found["limit"], llama_cpp=found["limits"]["llama.cpp"])]
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in found["rows"]:
        rows.setdefault((row["model"], row["scheme"], row["layout"]), {})[row["reader"]] = row
    readers = list(dict.fromkeys(row["reader"] for row in found["rows"]))
    notes: dict[str, int] = {}
    table = ["model", "scheme", "layout", *readers]
    lines += [f"| {' | '.join(table)} |", f"|{'---|' * 3}{'---:|' * len(readers)}"]
    for key, cells in rows.items():
        shown = [_cell(cells.get(reader), notes) for reader in readers]
        lines.append(f"| {' | '.join([*key, *shown])} |")
    lines += ["", *(f"{number}. {_plain(said)}" for said, number in notes.items()), ""]
    lines += [f"**{program}**: {why}." for program, why in found["cannot"].items()]
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any] | None, notes: dict[str, int]) -> str:
    if row is None:
        return ""
    if row["difference"] is None:
        return f"no ({notes.setdefault(row['said'], len(notes) + 1)})"
    return f"{row['difference']:.1e}"


def _plain(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*").replace("[", "\\[")


if __name__ == "__main__":
    measured = json.loads((DOCS / "interop.json").read_text(encoding="utf-8"))
    (DOCS / "interop.md").write_text(page(measured), encoding="utf-8")
