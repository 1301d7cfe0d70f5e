"""MkDocs calls this: pages that are generated, or taken from elsewhere in the repository, join those of docs/."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import api_reference
import cli_reference
import gpu_results
import recipe_reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).parents[2]
GENERATED = {
    "recipe.md": recipe_reference.page,
    "cli.md": cli_reference.page,
    "api.md": api_reference.page,
    "gpu.md": gpu_results.page,
}
TAKEN = {"benchmarks.md": "ci/bench/README.md", "security.md": "SECURITY.md", "contributing.md": "CONTRIBUTING.md"}
_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that docs/ does not hold."""
    for name, page in GENERATED.items():
        files.append(File.generated(config, name, content=page()))
    for name, source in TAKEN.items():
        text = (REPOSITORY / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=with_links_of_the_site(text, source)))
    return files


def with_links_of_the_site(text: str, source: str) -> str:
    """Return a file's text with links to other files that are pages leading there, and others as plain names."""
    pages = {path: name for name, path in TAKEN.items()}

    def link(match: re.Match[str]) -> str:
        words, path, anchor = match[1], match[2], match[3] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if path in pages or path.startswith("docs/"):
            return f"[{words}]({pages.get(path, path.removeprefix('docs/'))}{anchor})"
        return words if "`" in words else f"`{path}`"

    return _LINK.sub(link, text)
