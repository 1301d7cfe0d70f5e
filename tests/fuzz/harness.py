"""Damaged inputs by the thousand: whatever they are, llmc answers with a result or with an error of its own.

    python tests/fuzz/harness.py reader --cases 100000

A target, a module `target_<name>.py` beside this one, makes inputs and gives them to a part of llmc. A finding is any
exception but llmc's own ones, more than 5 seconds of processor time, or more than 1 GiB of memory. Findings are grouped
by where they come from; the smallest input of each group is shown, and kept in the folder `--keep`. The same seed
makes the same inputs. Exit code 1: there were findings.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from llmc.errors import LlmcError  # noqa: E402

SECONDS, MEMORY = 5.0, 1 << 30
HANG = 120  # seconds after which a case that uses no processor time counts as hanging
BATCH = 2000  # cases that hypothesis remembers at a time

Case = dict[str, bytes]  # file name → content


@dataclass(frozen=True)
class Target:
    """cases: what is tried; run: gets a folder that holds the files of one case."""

    cases: SearchStrategy[Case]
    run: Callable[[Path], None]


@dataclass
class Finding:
    what: str
    trace: str
    case: Case
    count: int = 1


@dataclass
class Findings:
    """Of one run, by where they come from; cases: how many were tried."""

    groups: dict[str, Finding] = field(default_factory=dict)
    cases: int = 0

    def add(self, error: BaseException, case: Case) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames if "llmc" in frame.filename]
        group = f"{type(error).__name__} at {places[-1] if places else frames[-1].filename}"
        trace = "".join(traceback.format_exception(error)[-12:])
        if group not in self.groups:
            print(f"\n{group}: {str(error)[:200]!r}", file=sys.stderr, flush=True)
        found = self.groups.setdefault(group, Finding(f"{type(error).__name__}: {error}"[:300], trace, case, 0))
        found.count += 1
        if sum(map(len, case.values())) < sum(map(len, found.case.values())):
            found.case = case


class TooSlow(BaseException):
    """Raised in the middle of a case; no `except Exception` swallows it."""


def load_target(name: str) -> Target:
    target: Target = importlib.import_module(f"target_{name}").target()
    return target


def fuzz(target: Target, cases: int, first_seed: int, folder: Path, progress: Callable[[Findings], None]) -> Findings:
    """Runs so many cases, or until Ctrl-C. The process may take MEMORY more than it has now."""
    findings = Findings()
    signal.signal(signal.SIGPROF, _too_slow)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell turns off for what runs behind it
    _limit_memory()

    def try_one(case: Case) -> None:
        findings.cases += 1
        faulthandler.dump_traceback_later(HANG, exit=True)
        try:
            _write(folder / "input", case)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            target.run(folder / "input")
        except LlmcError:
            pass
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            findings.add(error, case)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.cancel_dump_traceback_later()
        if findings.cases % 500 == 0:
            progress(findings)

    with suppress(KeyboardInterrupt):
        for batch in range(0, cases, BATCH):
            run: Any = given(target.cases)(try_one)
            run = seed(first_seed + batch)(run)
            settings(
                max_examples=min(BATCH, cases - batch),
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )(run)()
    return findings


def _too_slow(_: int, frame: FrameType | None) -> None:
    raise TooSlow(f"more than {SECONDS:g} s of processor time")


def _limit_memory() -> None:
    """Room for MEMORY beside what is mapped already."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _write(folder: Path, case: Case) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in case.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def main() -> int:
    names = sorted(path.stem.removeprefix("target_") for path in HERE.glob("target_*.py"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=names)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the inputs of findings")
    arguments = parser.parse_args()
    start = time.monotonic()

    def progress(so_far: Findings) -> None:
        left = (time.monotonic() - start) / so_far.cases * (arguments.cases - so_far.cases)
        done = f"{so_far.cases:,} of {arguments.cases:,} cases, {len(so_far.groups)} findings, {left / 60:.0f} min left"
        print(f"\r{done} ", end="", file=sys.stderr, flush=True)

    in_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=in_memory) as folder:
        findings = fuzz(load_target(arguments.target), arguments.cases, arguments.seed, Path(folder), progress)
    for number, (group, found) in enumerate(sorted(findings.groups.items())):
        print(f"\n{group} ({found.count} times)\n{found.trace}")
        if arguments.keep:
            _write(arguments.keep / f"{arguments.target}-{number}", found.case)
    took = time.monotonic() - start
    print(f"{arguments.target}: {findings.cases:,} cases, {len(findings.groups)} findings, {took:.0f} s")
    return 1 if findings.groups else 0


if __name__ == "__main__":
    sys.exit(main())
