"""README.md of an artifact: a model card with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

import re
from collections.abc import Sequence

import yaml

from llmc.budget_tables import spent_rows
from llmc.card_front import front_matter, license_keys
from llmc.card_use import limits, not_measured, usage
from llmc.contracts.manifest import Pruned
from llmc.contracts.report import Report
from llmc.progress import size
from llmc.runtime.artifact import REFERENCE
from llmc.summary import rows, target_line
from llmc.text import told
from llmc.visible import visible_line

_MEASURES = {
    "ppl": "perplexity per token of the check text; ± is the standard error over its windows",
    "KL": "Kullback–Leibler divergence from the original's distribution to this model's, in nats per token; ± is the "
    "standard error over the windows of the check text",
    "top-1": "share of positions at which both find the same token most likely",
}


_BAR = "\\|"  # a character, in a table

_CRITERIA = {
    "reap": "the mean of their routing weight times the norm of their output (REAP)",
    "ean": "the sum of the norms of their outputs (EAN)",
    "frequency": "the number of tokens routed to them",
}


def model_card(report: Report) -> str:
    """Markdown; says only what the report says, so that equal builds have equal cards."""
    source, name = report.source, report.name
    made = f"Made from {_plain(source.id)} by llmc {report.llmc_version}"
    parts = [
        f"---\n{yaml.safe_dump(front_matter(report), sort_keys=False, allow_unicode=True)}---\n",
        f"# {_plain(name)}\n",
        f"{made} and compared with it.{_rejected(report)}\n",
        _table(("", ""), rows(report)),
        "## Use\n",
        usage(report),
        *_budget(report),
        "## What was done to the tensors\n",
        _table(("role", "scheme", "method", "modules", "error, median", "error, largest"), _tensor_rows(report)),
        "The error is the relative squared error of a module's output on the calibration text (gptq, gptaq) or of its "
        "weights (rtn). Modules that are not listed keep the original's precision.\n",
        _fallbacks(report.fallbacks),
    ]
    if pruned := report.pruned:
        parts += [
            "## Pruned experts\n",
            f"The experts that contribute least on the calibration text, by {_CRITERIA[pruned.method]}, were "
            "removed: the same number in every router group.\n",
            _table(("layer", "experts that stayed"), _survivors(pruned)),
        ]
    parts += [
        "## Files\n",
        _table(("target", "files", ""), _file_rows(report)),
        "## How it was measured\n",
        f"Texts: {_plain(report.texts.note)}.\n",
        _read(report),
        "\n".join(f"- {key}: {text}" for key, text in _MEASURES.items()) + "\n",
        _repeating(report),
        "## What was not measured\n",
        "\n".join(f"- {each}" for each in not_measured(report)) + "\n",
        "## Limits\n",
        limits(report),
        *_license(report),
    ]
    return "\n".join(part for part in parts if part)


def _license(report: Report) -> list[str]:
    keys = license_keys(report.source, [*report.files])
    if not keys:
        return ["## License\n", "The original does not say which license it has; ask whoever made it.\n"]
    named = report.source.license_name or report.source.license or ""
    link = f", see [{_plain(keys['license_link'])}](<{keys['license_link']}>)" if "license_link" in keys else ""
    return ["## License\n", f"That of the original: {_plain(named)}{link}.\n"]


def _read(report: Report) -> str:
    read = report.texts.read.items()
    return "".join(f"- {purpose}: {_plain(told(each))}\n" for purpose, sources in read for each in sources)


def _budget(report: Report) -> list[str]:
    """What it was spent on, and what other sizes were predicted to cost."""
    if (budget := report.budget) is None:
        return []
    found = report.exact or report.checks
    measured = f" Measured: {found.kl_mean:.4f} ({found.kl_kind})." if found else ""
    curve = [(size(each.bytes), f"{each.bits:.2f}", f"{each.kl:.3g}") for each in budget.curve]
    return [
        "## Bits to a budget\n",
        f"The recipe asks for {_plain(budget.asked)}. Which module gets which scheme was chosen so that the KL "
        f"divergence is least that sensitivities, measured on {budget.tokens:,} calibration tokens, predict. "
        f"Predicted: {budget.predicted_kl:.4f}.{measured}\n",
        _table(("role", "parameters", "bits", "schemes"), spent_rows(budget)),
        "What other sizes would have cost, as predicted:\n",
        _table(("safetensors", "bits", "KL divergence"), curve),
    ]


def _rejected(report: Report) -> str:
    missed = ", ".join(gate.name for gate in report.checks.missed) if report.checks else ""
    return f" **It was rejected: it misses the limit of {missed}.**" if missed else ""


def _repeating(report: Report) -> str:
    if report.published_text:
        return (
            "`llmc check` repeats the measurement on the machine that serves the model. The check text is in "
            f"{REFERENCE} word for word, as tokens: whoever has this artifact can read it.\n"
        )
    return (
        "The check text and what the original said about it are not part of this artifact. Who has them repeats the "
        "measurement on the machine that serves the model, with `llmc check --reference`.\n"
    )


def _table(head: tuple[str, ...], body: Sequence[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(map(_plain, line))} |" for line in (head, *body)]
    return "\n".join([lines[0], f"| {' | '.join(['---'] * len(head))} |", *lines[1:]]) + "\n"


def _plain(text: str) -> str:
    """Text, whoever wrote it, that Markdown shows as it is: no links, HTML or ends of cells."""
    return re.sub(r"[\\`*\[\]<>|~&]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", r"\\\g<0>", visible_line(text))


def _tensor_rows(report: Report) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for each in report.treatments:
        errors = f"{each.error_median:.2e}", f"{each.error_largest:.2e}"
        found.append((each.role, each.scheme, each.method, str(each.modules), *errors))
    return found


def _fallbacks(found: dict[str, str]) -> str:
    if not found:
        return "No module needed a fallback.\n"
    lines = [f"- {_plain(name)}: {_plain(fallback)}" for name, fallback in list(found.items())[:20]]
    more = [f"- … and {len(found) - 20} more, see llmc.json"] if len(found) > 20 else []
    return "\n".join([f"{len(found)} modules saw too few tokens or a singular Hessian:\n", *lines, *more]) + "\n"


def _survivors(pruned: Pruned) -> list[tuple[str, ...]]:
    return [(layer, ", ".join(map(str, kept))) for layer, kept in pruned.survivors.items()]


def _file_rows(report: Report) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [("", "model-*.safetensors", size(report.sizes.artifact))]
    if reference := report.files.get(REFERENCE):
        told = f"{size(reference.bytes)}; the check text, as tokens, and what the original said about it"
        found.append(("", REFERENCE, told))
    for name, target in report.targets.items():
        files = ", ".join(sorted(target.files.values()))
        found.append((name, files, "; ".join([target_line(target), *target.notes])))
    return found
