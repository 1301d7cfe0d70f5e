"""The repository's Python files, and what they import."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
ROOMS = ("llmc", "convert", "quant", "runtime")
EVERYWHERE = (*ROOMS, "recipes", "tests", "ci")


def sources(*folders: str) -> Iterator[Path]:
    """All files below these folders of the repository; there are some."""
    for folder in folders:
        found = sorted((REPOSITORY / folder).rglob("*.py"))
        assert found, folder
        yield from found


def imported_modules(path: Path) -> list[tuple[str, list[str]]]:
    """Every import, in functions too: the module, and the names that are taken from it."""
    found: list[tuple[str, list[str]]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append((str(node.module), [alias.name for alias in node.names]))
    return found
