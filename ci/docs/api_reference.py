"""The page "Python API": what the packages export, by mkdocstrings' directives."""

from __future__ import annotations

import importlib

PACKAGES = ("llmc", "llmc.runtime", "llmc.convert", "llmc.quant")
INTRODUCTION = """# Python API

What the packages list in `__all__`; everything else may change at any time.
`llmc.runtime` needs numpy, tokenizers, jinja2 and one backend, no torch. [In a program](program.md) shows it in use.
"""


def page() -> str:
    """Return the page, as Markdown with directives for mkdocstrings."""
    parts = [INTRODUCTION]
    for name in PACKAGES:
        if exported := getattr(importlib.import_module(name), "__all__", None):
            parts += [f"## {name}\n", *(f"::: {name}.{member}\n" for member in exported)]
    return "\n".join(parts)
