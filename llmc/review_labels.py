"""Labels of a review sheet, read back: who is preferred, whether that can be chance, and how far reviewers agree."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmc import paired
from llmc.audit_tasks import read_documents
from llmc.contracts.audit import AuditRecord, ReviewRecord
from llmc.contracts.part import checked
from llmc.errors import InputError
from llmc.files import read_json
from llmc.quant.durable import write_json
from llmc.review_sheet import KEY

_MOST_BYTES = 1 << 28
_LABELS = ("left", "right", "both", "neither")
_RECORD = "audit.json"
Labels = dict[str, dict[str, str]]  # reviewer → item → original, artifact, both, neither


def review(folder: Path, files: Sequence[Path]) -> AuditRecord:
    """Read labels of an audit's sheet into its audit.json, in place of those that were read before.

    Raises:
        InputError: There is no audit or no sheet in the folder, or a file is broken or belongs to another sheet.
    """
    record = read_audit(folder)
    if not (folder / KEY).exists():
        raise InputError(f"{folder / KEY}: missing; `llmc eval` writes it where answers differ")
    key = read_json(folder / KEY, _MOST_BYTES)
    found = ReviewRecord(sheet=key["sheet"], **_outcome(_read_labels(files, key)))
    record = record.model_copy(update={"review": found})
    write_json(folder / _RECORD, record.to_json() | {"review": found.to_json()})
    return record


def read_audit(folder: Path) -> AuditRecord:
    """Return the audit of a folder; InputError where there is none."""
    if not (folder / _RECORD).exists():
        raise InputError(f"{folder}: no {_RECORD} here; give the folder that `llmc eval` wrote")
    return checked(AuditRecord, read_json(folder / _RECORD, _MOST_BYTES), f"{folder / _RECORD}: broken")


def _read_labels(files: Sequence[Path], key: dict[str, Any]) -> Labels:
    labels: Labels = defaultdict(dict)
    for file in files:
        for number, line in enumerate(read_documents(file), 1):
            place = f"{file}: label {number}"
            if line.get("sheet") != key["sheet"]:
                raise InputError(f"{place}: is of another sheet than {KEY}; a new audit needs new labels")
            item, label = str(line.get("item")), str(line.get("label"))
            if item not in key["sides"] or label not in _LABELS:
                raise InputError(f"{place}: item {item!r}, label {label!r}; labels are {', '.join(_LABELS)}")
            reviewer = str(line.get("reviewer") or file.stem)
            labels[reviewer][item] = key["sides"][item].get(label, label)
    return labels


def _outcome(labels: Labels) -> dict[str, Any]:
    every = Counter(label for each in labels.values() for label in each.values())
    decided = Counter[str]()
    items = sorted({item for each in labels.values() for item in each})
    for item in items:
        said = Counter(each[item] for each in labels.values() if item in each)
        if said["original"] != said["artifact"]:
            decided["original" if said["original"] > said["artifact"] else "artifact"] += 1
    kappas = []
    for one, other in itertools.combinations(labels.values(), 2):
        shared = sorted(one.keys() & other.keys())
        kappas.append(paired.kappa([one[item] for item in shared], [other[item] for item in shared]))
    known = [kappa for kappa in kappas if kappa is not None]
    return {
        "reviewers": sorted(labels),
        "items": len(items),
        "labels": {name: every[name] for name in ("original", "artifact", "both", "neither")},
        "decided": {name: decided[name] for name in ("original", "artifact")},
        "p": paired.sign_test(decided["original"], decided["artifact"]),
        "kappa": sum(known) / len(known) if known else None,
    }
