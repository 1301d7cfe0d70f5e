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
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Artifact:
    """context: tokens that the model was made for; gates: limits by name, ppl_increase and kl_mean from above, top1
    from below; targets: {name: {role: file}} of what was compiled."""

    path: Path
    manifest: dict[str, Any]
    context: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    gates: dict[str, float]
    targets: dict[str, dict[str, Path]]

    @classmethod
    def open(cls, path: str | Path) -> Artifact:
        """Reads and checks the manifest; InputError when this is no artifact, an incomplete or a newer one."""
        path = Path(path)
        file = path / MANIFEST
        if not file.is_file():
            raise InputError(f"{path}: no {MANIFEST} here; give the directory that `llmc build` made")
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
            if (version := int(manifest["format_version"])) > FORMAT_VERSION:
                known = f"this llmc knows ({FORMAT_VERSION})"
                raise InputError(f"{file}: format {version} is newer than {known}; upgrade llmc")
            sizes = {path / name: int(entry["bytes"]) for name, entry in manifest["files"].items()}
            targets = {
                target: {role: path / name for role, name in found["files"].items()}
                for target, found in manifest["targets"].items()
            }
            if unlisted := {file for files in targets.values() for file in files.values()} - sizes.keys():
                raise ValueError(f"files do not list {min(unlisted)}")
            model, check = manifest["model"], manifest["recipe"].get("check") or {}
            opened = cls(
                path,
                manifest,
                int(model["max_position_embeddings"]),
                int(model["vocab_size"]),
                frozenset(map(int, model["eos_token_ids"])),
                {name: float(limit) for name, limit in (check.get("gates") or {}).items()},
                targets,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file}: broken manifest ({error!r}); build or download the artifact again") from error
        for there, size in sizes.items():
            if not there.is_file() or there.stat().st_size != size:
                raise InputError(f"{there}: missing or not {size:,} bytes long; download it again")
        return opened

    def verify(self) -> None:
        """InputError when a file's sha256 is not the manifest's."""
        for name, entry in self.manifest["files"].items():
            with (self.path / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != entry["sha256"]:
                raise InputError(f"{self.path / name}: not the file that was built (sha256 {found}); download it again")

    def target_file(self, target: str, role: str) -> Path | None:
        """A file of a target by its role (`main`, `mtp`, …); None when it was not asked for or was skipped."""
        return self.targets.get(target, {}).get(role)
