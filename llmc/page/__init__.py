"""report.html: a report as one page that needs no other file, script or network.

Whatever strangers wrote (names, texts, tokens) is escaped by the templates, and characters that are not seen are
written out. Equal reports make equal bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from llmc.contracts.report import Report
from llmc.page import audited, divergence, inside, origin, overview, speed, spending
from llmc.page.blocks import Section
from llmc.visible import visible

_HERE = Path(__file__).parent


def report_page(report: Report) -> str:
    """Return the page of a report, as HTML."""
    parts = [overview.section(report)]
    for each in (divergence, audited, spending, inside, speed, origin):
        parts += each.sections(report)
    made = f"{report.source.id}, compressed by llmc {report.llmc_version}"
    return page(report.name or "report", made, parts, overview.verdict(report))


def page(title: str, subtitle: str, sections: list[Section], verdict: tuple[str, str] | None = None) -> str:
    """Return a page of sections, as HTML.

    Args:
        verdict: passed, missed or neutral, and a sentence.
    """
    template = _templates().get_template("page.html.jinja")
    style = Markup((_HERE / "style.css").read_text(encoding="utf-8"))
    return template.render(title=title, subtitle=subtitle, sections=sections, verdict=verdict, style=style)


def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(_HERE, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )


def _shown(value: Any) -> Any:
    if isinstance(value, Markup):
        return value
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return visible(value) if isinstance(value, str) else value
