"""`llmc report`: an artifact's report made anew, of its manifest and its check text."""

from __future__ import annotations

import os
from pathlib import Path

from llmc.contracts.against import AgainstRecord
from llmc.contracts.audit import AuditRecord
from llmc.contracts.manifest import Manifest
from llmc.contracts.part import File, checked
from llmc.contracts.report import Report, SpeedRecord, WorstInText
from llmc.errors import InputError
from llmc.eval_results import EVAL_RESULTS, eval_results
from llmc.files import read_json
from llmc.page import report_page
from llmc.quant.durable import describe, sync, write_json
from llmc.report import report_of, worst_in_text
from llmc.runtime.artifact import MANIFEST, REFERENCE, REPORT, REPORT_PAGE, SIGNATURE, Artifact, digest

AUDIT = "audit.json"
_JSON_BYTES = 1 << 24


def remake(
    path: Path,
    output: Path | None = None,
    bench: Path | None = None,
    audit: Path | None = None,
    against: Path | None = None,
) -> tuple[Report, Path]:
    """Write report.json and report.html, and return the report and where its page is.

    Args:
        path: The artifact. Without an `output` both files become part of it, and its manifest lists them; with an audit
            so do its scores on data sets of the hub.
        output: A folder for them; the artifact is left as it is.
        bench: What `llmc bench --json` printed, for a section about speed.
        audit: The folder that `llmc eval` left, or the audit.json in it, for a section about that.
        against: What `llmc check --against … --json` printed: layers and experts are shown as it found them.

    Raises:
        InputError: for what is no artifact or no such file, and for an audit or a comparison of another artifact
    """
    artifact = Artifact.open(path)
    manifest = artifact.described()
    speed = None if bench is None else checked(SpeedRecord, read_json(bench, _JSON_BYTES), f"{bench}: no `llmc bench`")
    asked = None if audit is None else _audit(audit, path)
    compared = None if against is None else _against(against, path)
    report = report_of(manifest, _worst(artifact, manifest), speed, asked, compared)
    folder = path if output is None else output
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / REPORT, report.to_json())
    write_text(folder / REPORT_PAGE, report_page(report))
    if output is None:
        scores = eval_results(report.audit) if report.audit else ""
        if scores:
            (folder / EVAL_RESULTS).parent.mkdir(exist_ok=True)
            write_text(folder / EVAL_RESULTS, scores)
        _list(artifact, REPORT, REPORT_PAGE, *([EVAL_RESULTS] if scores else []))
    return report, folder / REPORT_PAGE


def _audit(place: Path, path: Path) -> AuditRecord:
    from llmc.audit_models import artifact_place

    file = place / AUDIT if place.is_dir() else place
    found = checked(AuditRecord, read_json(file, _JSON_BYTES), f"{file}: no `llmc eval`")
    if found.artifact.digest != artifact_place(path).digest:
        raise InputError(f"{file}: is about {found.artifact.name}, or about an earlier {path}; run `llmc eval {path}`")
    return found


def _against(file: Path, path: Path) -> AgainstRecord:
    from llmc.audit_models import artifact_place

    found = checked(AgainstRecord, read_json(file, _JSON_BYTES), f"{file}: no `llmc check --against`")
    if found.digest != artifact_place(path).digest:
        raise InputError(
            f"{file}: is about {found.artifact}, or about an earlier {path}; run `llmc check {path} --against …` again"
        )
    return found


def report_of_artifact(path: Path) -> Report:
    """Return the report of an artifact, without text and whether or not it holds one."""
    return report_of(Artifact.open(path).described())


def _worst(artifact: Artifact, manifest: Manifest) -> list[WorstInText]:
    if REFERENCE not in artifact.files or not manifest.checks:
        return []
    from llmc.runtime.reference import read_reference
    from llmc.runtime.tokenizer import Tokenizer

    tokenizer = Tokenizer(artifact, artifact.vocab_size, artifact.add_bos)
    return worst_in_text(manifest.checks, read_reference(artifact)["input_ids"], tokenizer.decode)


def _list(artifact: Artifact, *names: str) -> None:
    """Names files in the manifest, whatever else that says; a signature over the former one vouches no more."""
    document = dict(artifact.document)
    listed = {name: describe(artifact.path / name, File).to_json() for name in names}
    document["files"] = dict(sorted((document["files"] | listed).items()))
    if "digest" in document:
        document["digest"] = digest(document)
    (artifact.path / SIGNATURE).unlink(missing_ok=True)
    write_json(artifact.path / MANIFEST, document)


def write_text(path: Path, text: str) -> None:
    """Under its name only when it is complete."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is no file; move it away")
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)
