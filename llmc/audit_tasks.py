"""What an audit asks: suites that ship with llmc, task files of the harness with their data beside them, and tasks that
the harness knows by name.

A suite's tasks, and those of a file that has a section `llmc`, are scored by llmc (`audit_scores.py`), whatever the
model said of each choice; all others by the harness's own metrics. Nothing in a file is run.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc import plain_yaml
from llmc.audit_scores import scores
from llmc.errors import InputError, MachineError
from llmc.files import parse_json, read_regular
from llmc.registry import unknown

_MOST_BYTES = 1 << 30  # of a data file
_MOST_TASK = 1 << 20
_SPLIT = "test"  # of what llmc reads itself
_OWN = "llmc"
_KEYS = ("data", "hub", "license", "where", "wordings", "group", "scores")
WORDING, ROW = "wording", "row"  # columns of a data set whose rows are asked in several wordings


class Rows(list[dict[str, Any]]):
    """Documents, with what the harness wants of a data set besides."""

    @property
    def features(self) -> dict[str, None]:
        """The columns."""
        return dict.fromkeys(self[0])


@dataclass(frozen=True)
class AuditTask:
    """A task.

    Attributes:
        asked: What the harness is given: its configuration, or a name of its own.
        data: Where its documents come from, for people.
        scores: How llmc scores it; none: by the harness's metrics.
        group: Columns; documents that have the same there are one group, as those made of one template.
    """

    name: str
    asked: dict[str, Any] | str
    data: str
    suite: str | None = None
    scores: tuple[str, ...] = ()
    group: tuple[str, ...] = ()


def suites() -> dict[str, Path]:
    """Name → file of the suites that ship with llmc."""
    from llmc.recipes import suites as folder

    return {path.stem: path for path in sorted(Path(folder.__file__).parent.glob("*.yaml"))}


def find_tasks(names: Sequence[str], data: Path | None, limit: int | None) -> list[AuditTask]:
    """Return the tasks of suites, tasks of suites (`bias.bbq_ambiguous`), files and names of the harness.

    Args:
        names: As they are given to `--tasks`.
        data: A folder with data sets of suites; what is not in it comes from the hub.
        limit: Documents of a task at most, evenly spread over it; of the harness's tasks it is not for this function.

    Raises:
        InputError: A file that is broken or lacks its data, a name that can be neither of them.
        MachineError: Data that has to come from the hub, and cannot.
    """
    known, found = suites(), list[AuditTask]()
    for name in names:
        suite, _, one = name.partition(".")
        if suite in known and not name.endswith((".yaml", ".yml")):
            tasks = _read_tasks(known[suite])
            if one and one not in tasks:
                raise InputError(unknown(f"task of {suite}", one, tasks))
            for each in [one] if one else tasks:
                found.append(_task(f"{suite}.{each}", tasks[each], known[suite], data, limit, suite))
        elif name.endswith((".yaml", ".yml")):
            path = Path(name).expanduser()
            config = _read_tasks(path)
            found.append(_task(str(config.get("task", path.stem)), config, path, path.parent, limit))
        else:
            found.append(AuditTask(name, name, "as the harness says"))
    twice = [each.name for each in found if [other.name for other in found].count(each.name) > 1]
    if twice:
        raise InputError(f"--tasks: {twice[0]} is there twice; leave one out, or give its file another `task`")
    return found


def _read_tasks(path: Path) -> dict[str, Any]:
    try:
        config, _ = plain_yaml.read(read_regular(path, _MOST_TASK).decode("utf-8"), prose=True)
    except plain_yaml.Problem as error:
        raise InputError(
            f"{path}: line {error.line}: {error}; a task with Python in it is one of the harness: give the folder as "
            "--include and its name as --tasks"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error})") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: must hold keys and values, as the harness's task files do")
    return config


def _task(
    name: str, config: Mapping[str, Any], path: Path, data: Path | None, limit: int | None, suite: str | None = None
) -> AuditTask:
    asked = {"output_type": "multiple_choice", **{key: value for key, value in config.items() if key != _OWN}}
    own = config.get(_OWN, {})
    place = f"{path}: {name}"
    if not isinstance(own, dict) or own.keys() - set(_KEYS):
        raise InputError(f"{place}: {_OWN}: has the keys {', '.join(_KEYS)}")
    chosen = tuple(own.get("scores", ()))
    if wrong := set(chosen) - scores.keys():
        raise InputError(f"{place}: {_OWN}.scores: {unknown('score', min(wrong), scores)}")
    group = own.get("group", [])
    if not isinstance(group, list) or not all(isinstance(each, str) for each in group):
        raise InputError(f"{place}: {_OWN}.group: a list of columns, as in [category, question_index]")
    if group and not chosen:
        raise InputError(f"{place}: {_OWN}.group: needs {_OWN}.scores; the harness's own metrics know no groups")
    if not own and asked.get("dataset_path") != "json":  # the harness knows where that is
        return AuditTask(name, asked | {"task": name}, str(asked.get("dataset_path")), suite)
    rows, source = _documents(place, asked, own, data, path.parent)
    rows = _asked_of(rows, own, limit)
    if not rows:
        raise InputError(f"{place}: {source} has no documents" + " like these" * bool(own.get("where")))
    if missing := {column for row in rows for column in group if column not in row}:
        raise InputError(f"{place}: {source}: some document has no column {min(missing)!r}, which {_OWN}.group names")
    for key in ("dataset_path", "dataset_name", "dataset_kwargs", "validation_split", "training_split"):
        asked.pop(key, None)
    asked |= {"task": name, "test_split": _SPLIT, "custom_dataset": lambda **_: {_SPLIT: rows}}
    asked.setdefault("num_fewshot", 0)
    asked.setdefault("metric_list", [{"metric": "acc" if asked["output_type"] == "multiple_choice" else "bypass"}])
    return AuditTask(name, asked, source, suite, chosen, tuple(group))


def _asked_of(rows: list[dict[str, Any]], own: Mapping[str, Any], limit: int | None) -> Rows:
    """Those that meet the conditions, so many of them, each in every wording."""
    where = own.get("where", {})
    wanted = {key: value if isinstance(value, list) else [value] for key, value in where.items()}
    rows = [row for row in rows if all(row.get(key) in values for key, values in wanted.items())]
    if limit is not None and limit < len(rows):
        rows = [rows[place * len(rows) // limit] for place in range(limit)]
    if wordings := own.get("wordings"):
        return Rows({**row, ROW: place, WORDING: each} for place, row in enumerate(rows) for each in range(wordings))
    return Rows(rows)


def _documents(
    place: str, config: Mapping[str, Any], own: Mapping[str, Any], data: Path | None, folder: Path
) -> tuple[list[dict[str, Any]], str]:
    """Documents, and where they were found."""
    if "data" in own:
        for file in [data / f"{own['data']}.{end}" for end in ("jsonl", "json", "csv")] if data else []:
            if file.exists():
                return read_documents(file), file.name
        if "hub" in own:
            return _from_hub(place, own["hub"], f"{own['data']}.jsonl")
        raise InputError(f"{place}: no {own['data']}.jsonl in {data or 'a folder that --data names'}; put it there")
    files = dict(config.get("dataset_kwargs") or {}).get("data_files")
    if isinstance(files, dict):
        split = config.get("test_split") or config.get("validation_split") or _SPLIT
        files = files.get(split)
    if not isinstance(files, str):
        raise InputError(f"{place}: dataset_kwargs.data_files must name a file of JSON lines for its test_split")
    return read_documents(folder / files), files


def read_documents(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines, of a JSON list, or of a CSV file with a head line; InputError for
    anything else.
    """
    text = read_regular(path, _MOST_BYTES)
    try:
        if path.suffix == ".csv":
            return [dict(row) for row in csv.DictReader(io.StringIO(text.decode("utf-8-sig")))]
        if path.suffix == ".json":
            rows = parse_json(text)
        else:
            rows = [parse_json(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise InputError(f"{path}: not what it should be ({error}); one JSON object a line is read") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: holds something else than JSON objects; one a line is read")
    return rows


def _from_hub(place: str, hub: Mapping[str, Any], file: str) -> tuple[list[dict[str, Any]], str]:
    import datasets  # comes with lm-eval

    source, rows = f"{hub['path']} on the hub", list[dict[str, Any]]()
    names = hub.get("names", [hub.get("name")])
    try:
        for name in names:
            rows += [dict(row) for row in datasets.load_dataset(hub["path"], name, split=hub["split"])]
    except Exception as error:  # of the library, of the network, of what it unpacks
        reason = " ".join(str(error).split())[:200]
        raise MachineError(
            f"{place}: {source} could not be loaded ({reason}); give --data FOLDER with {file}"
        ) from error
    return rows, source
