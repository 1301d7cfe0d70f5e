"""An artifact directory: what its manifest says, and the one place that decides which of its files are read.

Only files that the manifest lists are, by their name in it, when they are regular files of the listed size inside the
folder. Those that decide what a model is told and does (tokenizer, templates, graphs, descriptions of engines, kernels,
the reference) are held against their sha256 whenever they are read; `verify` does so with all, weights too. What else
lies in the folder is never used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from llmc.errors import InputError
from llmc.files import is_blob_of, json_object, open_regular, parse_json, read_json, read_regular

if TYPE_CHECKING:
    from llmc.contracts.fidelity import BuiltRecord
    from llmc.contracts.manifest import Manifest
    from llmc.contracts.part import File, LimitRecord
    from llmc.contracts.progress import ProgressFunction
    from llmc.contracts.run_manifest import RunManifest

MANIFEST = "llmc.json"
SIGNATURE = "model.sig"  # over the manifest, too, which therefore cannot list it
CARD = "README.md"
REPORT, REPORT_PAGE = "report.json", "report.html"
PROVENANCE, BILL = "provenance.json", "bom.cdx.json"
REFERENCE = "reference.safetensors"
_MANIFEST_BYTES = 1 << 25  # of 70,000 experts' matrices
_SMALL_BYTES = 1 << 28
_GRAPH_BYTES = 1 << 31  # of a protobuf
_CHUNK = 1 << 24
# What git and a hub's client leave in a folder that they fill; nothing here reads it.
_OF_TOOLS = re.compile(r"\.gitattributes|\.gitignore|\.git(hub)?/.*|\.cache/huggingface/.*", re.DOTALL)


@dataclass(frozen=True)
class Artifact:
    """A folder with a manifest.

    Args:
        path: where it lies
        document: llmc.json as it is
        manifest: what of it running depends on
        eos_token_ids: tokens that end an answer
    """

    path: Path
    document: dict[str, Any]
    manifest: RunManifest
    eos_token_ids: frozenset[int]

    @classmethod
    def open(cls, path: str | Path, whole: bool = True) -> Artifact:
        """Reads and checks the manifest; InputError when this is no artifact, a newer one or, unless `whole` is false,
        an incomplete one.
        """
        from llmc.contracts.part import checked
        from llmc.contracts.run_manifest import FORMAT_VERSION, RunManifest

        path = Path(path)
        file = path / MANIFEST
        if not _exists(file):
            raise InputError(f"{path}: no {MANIFEST} here; give the directory that `llmc build` made")
        what = f"{file}: broken manifest"
        try:
            document = read_json(file, _MANIFEST_BYTES)
        except InputError as error:
            raise InputError(f"{what} ({str(error).removeprefix(f'{file}: ')}); download the artifact again") from error
        version = document.get("format_version")
        if type(version) is int and version > FORMAT_VERSION:
            known = f"this llmc knows ({FORMAT_VERSION})"
            raise InputError(f"{file}: format {version} is newer than {known}; upgrade llmc")
        manifest = checked(RunManifest, document, what)
        opened = cls(path, document, manifest, frozenset(manifest.model.eos_token_ids))
        for name in opened.files if whole else ():
            if name not in (CARD, REPORT, REPORT_PAGE):  # which may have been written anew, and nothing here reads
                opened.file(name)
        return opened

    @property
    def context(self) -> int:
        """Tokens that the model was made for."""
        return self.manifest.model.max_position_embeddings

    @property
    def vocab_size(self) -> int:
        return self.manifest.model.vocab_size

    @property
    def add_bos(self) -> bool | None:
        """Whether texts begin with the beginning-of-text token; None: an older llmc did not say."""
        return self.manifest.tokenizer.add_bos if self.manifest.tokenizer else None

    @property
    def gates(self) -> dict[str, float | LimitRecord]:
        """Limits by name: ppl_increase and kl_mean from above, top1 from below."""
        check = self.manifest.recipe.check
        return check.gates or {} if check else {}

    @property
    def check_sources(self) -> list[tuple[str, int]]:
        """Name of each source of the check text, and how many windows it has; empty where an older llmc built it."""
        read = self.manifest.texts.read.get("check", []) if self.manifest.texts else []
        return [(each.text, each.windows) for each in read if each.windows is not None]

    @property
    def default_gates(self) -> bool:
        """Whether limits that hold for every model hold for this one."""
        check = self.manifest.recipe.check
        return check is None or check.default_gates

    @property
    def built(self) -> BuiltRecord:
        """What it did when it was built, nothing where an earlier llmc built it. InputError for a broken record."""
        from llmc.contracts.fidelity import BuiltRecord
        from llmc.contracts.part import checked

        return checked(BuiltRecord, self.document.get("built", {}), f"{self.path / MANIFEST}: broken manifest")

    @property
    def files(self) -> dict[str, File]:
        """All files that were built, by name."""
        return self.manifest.files

    @property
    def reference(self) -> File | None:
        """What reference.safetensors is, where it was left out."""
        return self.manifest.reference

    def described(self) -> Manifest:
        """All of the manifest; InputError where it does not say what it must."""
        from llmc.contracts.manifest import Manifest
        from llmc.contracts.part import checked

        return checked(Manifest, self.document, f"{self.path / MANIFEST}: broken manifest")

    def called(self, name: str) -> str:
        """A file in messages; whatever reads one asks `file`, `read`, `verified` or `graph`."""
        return str(self.path / name)

    def file(self, name: str) -> Path:
        """Where a file lies, that the manifest lists, and that is a regular one of the listed size inside the folder;
        InputError for all others.
        """
        listed, path = self._listed(name), self.path / name
        try:
            inside, status = self._is_inside(path.resolve(strict=True)), path.stat()
        except (OSError, RuntimeError):  # nothing there; a circle of links
            inside, status = True, None
        if not inside:
            raise InputError(f"{path}: is a link that leads out of the artifact; put the file itself in its place")
        if status is None or not stat.S_ISREG(status.st_mode) or status.st_size != listed.bytes:
            raise InputError(f"{path}: missing or not {listed.bytes:,} bytes long; download it again")
        return path

    def read(self, name: str, limit: int = _SMALL_BYTES) -> bytes:
        """The content of a file that the manifest lists, held against its sha256; InputError when it is another, or
        larger than such a file may be.
        """
        path, size = self.file(name), self.files[name].bytes
        if size > limit:
            raise InputError(f"{path}: larger than the {limit:,} bytes that such a file may have")
        data = read_regular(path, size)
        self._compare(name, hashlib.sha256(data).hexdigest())
        return data

    def read_json(self, name: str) -> dict[str, Any]:
        """The same of a JSON object; none where the manifest lists no such file."""
        if name not in self.files:
            return {}
        try:
            value = parse_json(self.read(name))
        except ValueError as error:
            raise InputError(f"{self.path / name}: broken ({error}); download it again") from error
        if not isinstance(value, dict):
            raise InputError(f"{self.path / name}: broken, no JSON object; download it again")
        return value

    def verified(self, name: str, progress: Callable[[int], None] = lambda _: None) -> Path:
        """Where a file lies whose content was held against its sha256 just now; for those that others read."""
        path, digest = self.file(name), hashlib.sha256()
        with open_regular(path) as file:
            while data := file.read(_CHUNK):
                digest.update(data)
                progress(len(data))
        self._compare(name, digest.hexdigest())
        return path

    def graph(self, name: str) -> Path:
        """Where an ONNX graph lies, which is verified; what it takes weights from are files that the manifest lists."""
        from llmc.runtime.external_data import locations

        try:
            found = locations(self.read_graph(name))
        except ValueError as error:
            raise InputError(f"{self.path / name}: no ONNX graph ({error}); download it again") from error
        for location in sorted(found):
            self.beside(name, location)
        return self.path / name

    def read_graph(self, name: str) -> bytes:
        """The content of an ONNX graph, without what its weights are."""
        return self.read(name, _GRAPH_BYTES)

    def manifest_sha256(self) -> str:
        """Of the manifest that was opened; InputError where another lies there by now, or a link that leads out."""
        file = self.path / MANIFEST
        if not self._is_inside(file.resolve()):
            raise InputError(f"{file}: is a link that leads out of the artifact; put the file itself in its place")
        data = read_regular(file, _MANIFEST_BYTES)
        if json_object(file, data) != self.document:
            raise InputError(f"{file}: was changed while the artifact was read; try again")
        return hashlib.sha256(data).hexdigest()

    def signature(self) -> Path | None:
        """Where the signature lies; None: nobody signed. InputError for what is no regular file inside the folder."""
        path = self.path / SIGNATURE
        if not os.path.lexists(path):
            return None
        if not path.is_file() or not self._is_inside(path.resolve()):
            raise InputError(f"{path}: is no file in the artifact; remove it, or download it again")
        return path

    def beside(self, name: str, other: str) -> str:
        """The name of a file in the folder of another one that refers to it; InputError unless it is listed, too."""
        found = (PurePosixPath(name).parent / other).as_posix()
        if found not in self.files or found != os.path.normpath(found).replace(os.sep, "/"):
            raise InputError(f"{self.path / name}: refers to {other!r}, which {MANIFEST} does not list; build it again")
        return found

    def verify(self, progress: ProgressFunction | None = None) -> list[str]:
        """Reads all files; InputError when the sha256 of one is not the manifest's. Returns the names of files that the
        manifest does not list: nothing uses them, and nothing is known about them.
        """
        total, done = sum(listed.bytes for listed in self.files.values()), 0

        def read(count: int) -> None:
            nonlocal done
            done += count
            if progress:
                progress("sha256", done, total)

        for name in self.files:
            self.verified(name, read)
        return self.unlisted()

    def unlisted(self) -> list[str]:
        """Names of what lies in the folder and is not listed, but for the manifest, its signature, and what git and a
        hub's client keep there for themselves.
        """
        return sorted(
            name
            for name in set(self._found()) - self.files.keys() - {MANIFEST, SIGNATURE}
            if not _OF_TOOLS.fullmatch(name)
        )

    def target_file(self, target: str, role: str) -> str | None:
        """A file of a target by its role (`main`, `mtp`, …); None when it was not asked for or was skipped."""
        return self.target_files(target).get(role)

    def target_files(self, target: str) -> dict[str, str]:
        """Role → file of a target; empty where there is none."""
        made = self.manifest.targets.get(target)
        return made.files if made else {}

    def _listed(self, name: str) -> File:
        if name not in self.files:
            raise InputError(f"{self.path / name}: missing from the files that {MANIFEST} lists; no other is used")
        return self.files[name]

    def _compare(self, name: str, sha256: str) -> None:
        if sha256 != self.files[name].sha256:
            path = self.path / name
            raise InputError(f"{path}: not the file that was built (sha256 {sha256}); download it again")

    @cached_property
    def _folder(self) -> Path:
        return self.path.resolve()

    def _is_inside(self, target: Path) -> bool:
        """A hub's cache, whose snapshots hold links, counts as inside."""
        return target.is_relative_to(self._folder) or is_blob_of(self._folder, target)

    def _found(self) -> Iterator[str]:
        """Names of the files that there are, and of links to folders, which are not followed."""
        for folder, folders, names in os.walk(self.path):
            here = Path(folder)
            for name in (*names, *(each for each in folders if (here / each).is_symlink())):
                yield (here / name).relative_to(self.path).as_posix()


def digest(document: dict[str, Any]) -> str:
    """What a manifest says of itself, under `digest`: a bit that flipped in its results is noticed."""
    said = {name: value for name, value in document.items() if name != "digest"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _exists(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # a name that no file can have, a folder that may not be entered
        return False
