"""Packages that llmc can do without: which of its extras brings one, and what to type to get it.

Told from what is installed: the extras are those of the installed distribution, whatever it is called, and a clone is
installed as a clone. A leaf module: every room may import it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
from pathlib import Path

import llmc
from llmc.errors import MachineError

# Modules → distributions, where the two have other names.
DISTRIBUTIONS = {
    "OpenSSL": "pyopenssl",
    "PIL": "pillow",
    "cuda": "cuda-bindings",
    "cyclonedx": "cyclonedx-python-lib",
    "google": "protobuf",
    "nccl": "nccl4py",
    "packageurl": "packageurl-python",
    "tensorrt": "tensorrt-cu13",
    "tensorrt_rtx": "tensorrt-rtx-cu13",
}


def install(module: str) -> str:
    """`pip install 'llmc-toolchain[build]'`: how the package of a module that can be imported gets here."""
    distribution = _distribution()
    extra = _extra(distribution, module)
    if extra is None:
        return f"pip install {DISTRIBUTIONS.get(module, module)}"
    clone = Path(llmc.__file__).resolve().parents[1]
    if (clone / "pyproject.toml").is_file() and (clone / "convert").is_dir():
        place = "." if Path(os.curdir).resolve() == clone else str(clone)
        return f"pip install -e {shlex.quote(f'{place}[{extra}]')}"
    assert distribution is not None
    what = f"{distribution.metadata['Name']}[{extra}]"
    if origin := _origin(distribution):  # not the package index, where another one of this name may lie
        what += f" @ {origin}"
    return f"pip install {shlex.quote(what)}"


def missing(error: ImportError) -> MachineError | None:
    """What to tell when an optional package cannot be imported; None when it was another module."""
    module = (error.name or "").partition(".")[0]
    if not module or _extra(_distribution(), module) is None:
        return None
    if importlib.util.find_spec(module) is None:
        return MachineError(f"this needs {module}, which is not installed; {install(module)}")
    return MachineError(f"the installed {module} cannot be used ({error}); install it again: {install(module)}")


def _distribution() -> importlib.metadata.Distribution | None:
    """The one whose command is `llmc`; None where nothing was installed, as with PYTHONPATH alone."""
    commands = importlib.metadata.entry_points(group="console_scripts", name="llmc")
    return next((command.dist for command in commands if command.value.startswith("llmc.")), None)


def _extra(distribution: importlib.metadata.Distribution | None, module: str) -> str | None:
    """The first extra that has the package of a module."""
    wanted = _normal(DISTRIBUTIONS.get(module, module))
    for requirement in (distribution.requires or ()) if distribution else ():
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"""\bextra *== *["']([\w.-]+)["']""", requirement)
        if name and extra and _normal(name[0]) == wanted:
            return extra[1]
    return None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _origin(distribution: importlib.metadata.Distribution) -> str | None:
    """Where it was installed from, if not from an index: pip's direct_url.json."""
    try:
        told = json.loads(distribution.read_text("direct_url.json") or "{}")
        vcs = told.get("vcs_info", {})
        origin = f"{vcs['vcs']}+{told['url']}@{vcs['commit_id']}" if vcs else str(told["url"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return origin
