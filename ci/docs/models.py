"""Writes docs/models.md: how far each model line climbs, from what a run of the tests has found.

pytest tests/families --ladder docs/models.json  run the tests, which takes minutes, and keep what they find
python ci/docs/models.py                         write the page from that
python ci/docs/models.py --check                 exit with 1 where the page is another
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "tests"))

from support.model_lines import LINES, ModelLine, published_names  # noqa: E402

PAGE = REPOSITORY / "docs" / "models.md"
FOUND = REPOSITORY / "docs" / "models.json"
RUNGS = {
    "spec": "configuration",
    "parity": "parity",
    "artifact": "artifact",
    "graphs": "ONNX",
    "engine": "engine",
    "mtp": "MTP",
}
CHECKPOINT = ("spec", "parity", "artifact")  # what a line has to reach to be built at all
INTRODUCTION = """# Models

<!-- Generated from docs/models.json by ci/docs/models.py; that, by `pytest tests/families --ladder docs/models.json`. -->

A line is a generation of a model that people call by one name: its sizes and re-releases of one architecture. Each one
climbs the same ladder, in `tests/families/`, with its published `config.json` and random weights: every feature and every
kind of layer is there, and the sizes are small. Trained weights of these models have not been run.

| rung | what is tested |
|---|---|
| configuration | from each of its published configurations: as many parameters as transformers' class has, to the last one |
| parity | float32, against transformers' class: a whole text, in pieces through the cache, rows of unequal length; the \
largest difference of log-probabilities, which has to stay below 1e-4 |
| artifact | quantized to int4, int8 and FP8, and with a quarter of its experts pruned where it has any: transformers loads \
it and says the same; the largest difference of log-probabilities, below 1e-4 |
| ONNX | targets `onnxruntime` (at `accuracy_level: 1`) and `onnx`, in ONNX Runtime, against the artifact in torch: the \
largest KL divergence of a token, below 1e-9 |
| engine | target `tensorrt-rtx` compiles it for SM 89; no GPU runs it here |
| MTP | its layers for multi-token prediction compute what transformers makes of them, are kept under the names that they \
had, and draft for the runtime without changing a greedy answer; · where the model has none |
"""


def page(found: dict[str, dict[str, Any]]) -> str:
    """Return the page, as Markdown, of what was found."""
    lines, configurations = found["lines"], found["configurations"]
    names = published_names()
    plain = [line for line in LINES if _reaches(lines[line.name], CHECKPOINT)]
    whole = [line for line in plain if _reaches(lines[line.name], RUNGS)]
    missing = [line for line in LINES if line not in plain]
    accepted = sum("reason" not in configurations[name] for name in names)
    parts = [
        INTRODUCTION,
        f"**{len(whole)} of {len(LINES)} lines have climbed all of it, and {len(plain)} as far as an artifact.** "
        f"`llmc plan` accepts {accepted} of {len(names)} published configurations.\n",
        "## Lines that can be built\n",
        "Sizes are those of the configuration in the second column: parameters, with MTP; GiB in bfloat16, and as the "
        "default recipe makes it. A vision tower, which is kept, is not counted.\n",
        f"| line | tested as | parameters | GiB | built | {' | '.join(RUNGS.values())} |",
        "|---|---|--:|--:|--:|" + "---|" * len(RUNGS),
        *(_row(line, lines[line.name], configurations[line.tested]) for line in plain),
        "",
    ]
    if holes := [text for line in plain for text in _holes(line, lines[line.name])]:
        parts += ["What is missing there:\n", *holes, ""]
    parts += ["## Lines that cannot\n", "| line | tested as | reached | reason |", "|---|---|---|---|"]
    parts += [_missing(line, lines[line.name]) for line in missing]
    refused = [name for name in names if "reason" in configurations[name]]
    parts += ["", "## Configurations that are refused\n", "| configuration | reason |", "|---|---|"]
    parts += [f"| {_called(name)} | {_cell(configurations[name]['reason'])} |" for name in refused]
    return "\n".join(parts) + "\n"


def _reaches(rungs: dict[str, Any], names: Any) -> bool:
    """Whether it has reached all of these; what the model does not have counts as reached."""
    return all(rungs.get(name, {}).get("reached") or rungs.get(name, {}).get("absent") for name in names)


def _row(line: ModelLine, rungs: dict[str, Any], sizes: dict[str, Any]) -> str:
    numbers = (
        [_parameters(sizes["parameters"]), _gib(sizes["bytes"]), _gib(sizes["built_bytes"])]
        if "bytes" in sizes
        else ["", "", ""]
    )
    return (
        "| " + " | ".join([line.name, _called(line.tested), *numbers, *(_mark(rungs[name]) for name in RUNGS)]) + " |"
    )


def _mark(rung: dict[str, Any]) -> str:
    if rung.get("absent"):
        return "·"
    if not rung["reached"]:
        return "—"
    difference = rung.get("difference")
    return "✓" if difference is None else "0" if difference == 0 else f"{max(difference, 0):.0e}"


def _holes(line: ModelLine, rungs: dict[str, Any]) -> Iterator[str]:
    for name, title in RUNGS.items():
        rung = rungs[name]
        if not rung["reached"] and not rung.get("absent"):
            yield f"- {line.name}, {title}: {_cell(rung['reason'])}"


def _missing(line: ModelLine, rungs: dict[str, Any]) -> str:
    reached = [title for name, title in RUNGS.items() if rungs.get(name, {}).get("reached")]
    reason = next(rungs[name]["reason"] for name in RUNGS if "reason" in rungs.get(name, {}))
    return f"| {line.name} | {_called(line.tested)} | {', '.join(reached) or '—'} | {_cell(reason)} |"


def _called(name: str) -> str:
    """A configuration as the hub calls the model."""
    return name.partition("--")[2].removesuffix(".bridge")


def _cell(text: str) -> str:
    """A message as a cell of a table shows it."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def _parameters(count: int) -> str:
    return f"{count / 1e9:.3g} B" if count < 1e12 else f"{count / 1e12:.3g} T"


def _gib(count: int) -> str:
    gib = count / 2**30
    return f"{gib:,.0f}" if gib >= 10 else f"{gib:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the page is another")
    arguments = parser.parse_args()
    text = page(json.loads(FOUND.read_text(encoding="utf-8")))
    if arguments.check:
        raise SystemExit(PAGE.read_text(encoding="utf-8") != text)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
