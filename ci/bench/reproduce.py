"""Do two strangers who build the same recipe get the same bytes?

    python ci/bench/reproduce.py                        # the quickstart, without engines
    python ci/bench/reproduce.py mine.yaml --engines    # with them, which differ in a few bytes: see docs/verify.md
    python ci/bench/reproduce.py --folder /data/twice   # keep both artifacts

Builds it twice, at once and each in a process of its own, with other copies of llmc's sources, other folders for
recipe, output, home and caches, other user names, time zones, locales, umasks and hash seeds; then compares every file.
Ends with exit code 1 and the names of the files that differ. What is the same in both: the machine, its packages, and
how many threads compute.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = ("llmc", "convert", "quant", "runtime", "recipes")
ENVIRONMENTS = (
    {
        "USER": "alice", "LOGNAME": "alice", "TZ": "Pacific/Chatham", "LC_ALL": "C.UTF-8", "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "1", "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "60",
    },
    {
        "USER": "bob", "LOGNAME": "bob", "TZ": "America/St_Johns", "LC_ALL": "C", "LANG": "tr_TR.UTF-8",
        "PYTHONHASHSEED": "2", "COLUMNS": "200",
    },
)  # fmt: skip
UMASKS = (0o022, 0o077)
# Files that name an engine's hash or size, and so differ where engines do.
TELL_OF_ENGINES = ("llmc.json", "report.json", "report.html", "README.md", "provenance.json", "bom.cdx.json")


def start(folder: Path, recipe: dict[str, object], number: int) -> subprocess.Popen[bytes]:
    """Begins a build of the recipe in an environment of its own, below `folder`."""
    sources = folder / "sources of llmc"
    for name in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, sources / name, symlinks=True, ignore=ignored)
    for name in ("home", "cache", "tmp"):
        (folder / name).mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    places = {
        "HOME": folder / "home", "XDG_CACHE_HOME": folder / "cache", "HF_HOME": folder / "cache" / "hub",
        "TMPDIR": folder / "tmp", "PYTHONPATH": sources,
    }  # fmt: skip
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LLMC_", "PYTHON"))}
    environment = inherited | ENVIRONMENTS[number] | {key: str(place) for key, place in places.items()}
    command = [
        sys.executable,
        "-P",
        "-m",
        "llmc.cli",
        "build",
        "recipe.yaml",
        "-o",
        str(folder / f"out {number}" / "made"),
    ]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, umask=UMASKS[number], start_new_session=True
        )


def hashes(artifact: Path) -> dict[str, str]:
    """Name of every file → its SHA-256."""
    found = {}
    for path in sorted(artifact.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                found[path.relative_to(artifact).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def differences(one: Path, other: Path) -> list[str]:
    """Names of files that are not the same in both."""
    first, second = hashes(one), hashes(other)
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def of_engines(name: str, built: dict[str, str]) -> bool:
    """Whether a file may differ since engines do."""
    return name.startswith("engines/") or (name in TELL_OF_ENGINES and any(each.endswith(".engine") for each in built))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", type=Path, default=REPOSITORY / "recipes" / "quickstart.yaml")
    parser.add_argument("--engines", action="store_true", help="build the TensorRT targets, too")
    parser.add_argument("--folder", type=Path, help="where both are built, and kept; a new one")
    given = parser.parse_args()
    recipe = yaml.safe_load(given.recipe.read_text(encoding="utf-8"))
    recipe.setdefault("name", given.recipe.stem)
    if not given.engines and recipe.get("targets"):
        recipe["targets"] = [each for each in recipe["targets"] if not any(key.startswith("tensorrt") for key in each)]
    with contextlib.ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        places = [folder / "first", folder / "elsewhere" / "the second"]
        for place in places:
            place.mkdir(parents=True)
        builds = [start(place, recipe, number) for number, place in enumerate(places)]
        try:
            codes = [build.wait() for build in builds]
        finally:
            for build in builds:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(build.pid, signal.SIGKILL)  # it, and what it started
        for place, code in zip(places, codes, strict=True):
            if code:
                sys.exit(f"{place}: the build ended with exit code {code}\n{(place / 'log').read_text()}")
        made = [place / f"out {number}" / "made" for number, place in enumerate(places)]
        built, found = hashes(made[0]), differences(*made)
        excused = [name for name in found if of_engines(name, built)]
        wrong = [name for name in found if name not in excused]
        print(json.dumps({"files": len(built), "differ": wrong, "differ as engines do": excused}, indent=2))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
