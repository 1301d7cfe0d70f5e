"""Draws what frontier.py has measured, one panel per model. Arguments: frontier.json, the folder for the pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TITLES = {
    "embedded": "embedded DeepSeek-V3 (8 M parameters)",
    "smollm2": "SmolLM2-135M-Instruct",
    "smollm2-off-grid": "SmolLM2-135M-Instruct, off the grid of Q4_1",
}
# Okabe and Ito's colors, which can be told apart by everybody; marks for those who print in gray.
STYLES = {
    "llmc-budget": ("llmc, bits to a budget", "#0072B2", "o", 2.5),
    "llmc": ("llmc, one scheme for all", "#56B4E9", "s", 1.5),
    "llama.cpp": ("llama.cpp K-quants, importance matrix", "#D55E00", "^", 1.5),
    "gptqmodel": ("GPTQModel", "#009E73", "D", 1.5),
    "llmcompressor": ("llm-compressor", "#CC79A7", "v", 1.5),
    "autoround": ("auto-round", "#E69F00", "P", 1.5),
}


def frontier(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that no smaller one beats, by size."""
    best, found = float("inf"), []
    for point in sorted(points, key=lambda each: (each["bytes"], each["kl"])):
        if point["kl"] < best:
            best = point["kl"]
            found.append(point)
    return found


def draw(points: list[dict[str, Any]], folder: Path) -> None:
    models = [model for model in TITLES if any(point["model"] == model for point in points)]
    figure, panels = plt.subplots(1, len(models), figsize=(4.7 * len(models), 4.6), sharey=True, squeeze=False)
    for panel, model in zip(panels[0], models, strict=True):
        for tool, (label, color, mark, width) in STYLES.items():
            mine = [each for each in points if each["model"] == model and each["tool"] == tool]
            if not mine:
                continue
            line = frontier(mine)
            panel.plot(
                [each["bytes"] / 1e6 for each in line], [each["kl"] for each in line], color=color, lw=width, zorder=2
            )
            panel.plot(
                [each["bytes"] / 1e6 for each in mine], [each["kl"] for each in mine],
                mark, color=color, ms=5, label=label, zorder=3,
            )  # fmt: skip
        panel.set_yscale("log")
        panel.set_title(TITLES[model], fontsize=11)
        panel.set_xlabel("size of all weights, MB")
        panel.grid(True, which="both", color="#dddddd", lw=0.5)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("KL divergence from the original, nats per token")
    handles = {
        label: each for panel in panels[0] for each, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.legend([*handles.values()], [*handles], loc="lower center", ncols=3, frameon=False, fontsize=9)
    for kind in ("png", "svg"):
        figure.savefig(folder / f"frontier.{kind}", dpi=150, metadata={"Date": None} if kind == "svg" else None)


if __name__ == "__main__":
    measured = json.loads(Path(sys.argv[1]).read_text())
    # What differs from the others of its tool in what it does to embedding and head is for the table.
    draw([each for each in measured if not each["failed"] and "ends" not in each["variant"]], Path(sys.argv[2]))
