"""An artifact that was changed on purpose: its manifest lists what is there now."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def list_files(artifact: Path, *names: str) -> None:
    """Writes size and sha256 of these files, or of all, into llmc.json."""
    manifest = json.loads((artifact / "llmc.json").read_text())
    found = (path.relative_to(artifact).as_posix() for path in artifact.rglob("*") if path.is_file())
    for name in names or sorted(set(found) - {"llmc.json"}):
        data = (artifact / name).read_bytes()
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (artifact / "llmc.json").write_text(json.dumps(manifest))
