"""An artifact directory: what its manifest says and where its files are."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.errors import InputError

FORMAT_VERSION = 1
MANIFEST = "llmc.json"
REFERENCE = "reference.safetensors"


@dataclass(frozen=True)
class Artifact:
    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Artifact:
        """Reads and checks the manifest; InputError when this is no artifact, an incomplete or a newer one."""
        path = Path(path)
        file = path / MANIFEST
        if not file.is_file():
            raise InputError(f"{path}: no {MANIFEST} here; give the directory that `llmc build` made")
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
            version, files = manifest["format_version"], manifest["files"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}: broken manifest ({error}); build or download the artifact again") from error
        if version > FORMAT_VERSION:
            raise InputError(f"{file}: format {version} is newer than this llmc knows ({FORMAT_VERSION}); upgrade llmc")
        for name, entry in files.items():
            there = path / name
            if not there.is_file() or there.stat().st_size != entry["bytes"]:
                raise InputError(f"{there}: missing or not {entry['bytes']:,} bytes long; download it again")
        return cls(path, manifest)

    def verify(self) -> None:
        """InputError when a file's sha256 is not the manifest's."""
        for name, entry in self.manifest["files"].items():
            with (self.path / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != entry["sha256"]:
                raise InputError(f"{self.path / name}: not the file that was built (sha256 {found}); download it again")

    @property
    def model(self) -> dict[str, Any]:
        """vocab_size, max_position_embeddings, eos_token_ids, …"""
        return self.manifest["model"]

    @property
    def gates(self) -> dict[str, float]:
        """Limits by name: ppl_increase and kl_mean from above, top1 from below."""
        return (self.manifest["recipe"].get("check") or {}).get("gates") or {}

    def target(self, name: str) -> dict[str, Any] | None:
        """What was compiled for a target; None when the recipe did not ask for it or it was skipped."""
        found = self.manifest["targets"].get(name)
        return found if found and found.get("files") else None

    def target_file(self, target: str, role: str) -> Path | None:
        """A file of a target by its role (`main`, `mtp`, …)."""
        found = self.target(target)
        name = found["files"].get(role) if found else None
        return self.path / name if name else None
