"""`llmc check --against`: an artifact, or what another tool made, beside the original, layer by layer in torch."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from llmc import machine
from llmc.audit_models import artifact_place
from llmc.calibration_recipe import PYTHON_DOCS, Check, Source
from llmc.contracts.against import AgainstRecord
from llmc.contracts.long_context import RecallRecord
from llmc.contracts.manifest import TextRead
from llmc.contracts.part import LimitRecord
from llmc.contracts.progress import Progress
from llmc.convert.checkpoint import Checkpoint
from llmc.errors import InputError, MachineError
from llmc.files import stamp
from llmc.made_tokenizer import completed, made_tokenizer
from llmc.output_path import output_path
from llmc.peak_memory import BASE_MEMORY, activation_bytes
from llmc.progress import size
from llmc.quant.activation_file import MICRO_BATCH_TOKENS
from llmc.quant.against import compare, require_alike, step_sizes
from llmc.quant.reference import Answers
from llmc.runtime.artifact import MANIFEST, Artifact
from llmc.runtime.long_context import Needles, lengths, needles, recall, with_divergence
from llmc.runtime.reference import read_reference
from llmc.runtime.tokenizer import Tokenizer
from llmc.source import locate
from llmc.stages import code_version, key_of, versions
from llmc.text import read_check
from llmc.text_sources import require_text
from llmc.torch_checks import torch_checks
from llmc.work_folder import WorkFolder

TOKENS = 16384
_SMALL = 1 << 26  # bytes of a file that is worth a hash
_KEPT = 3  # layers whose inputs are on the disk at once
_HEAD_BYTES = 1 << 28  # of logits and what is made of them


@dataclass(frozen=True)
class Asked:
    """What is to be compared, and how.

    Attributes:
        artifact, original: A folder, a model of the hub, or one that ships with llmc.
        texts: Sources of the text; none: what the artifact has on record, or Python's documentation.
        tokens: At most so many; None: all that is on record, 16384 of another text.
        length: Of a window; None: as on record, 1024 of another text.
        reference: Where the text on record lies if it is not in the artifact.
        memory: Bytes; None: what there is.
        output: Beside this folder's name the comparison works.
        fresh: Whether to forget what an interrupted comparison left.
        long: Whether to ask for what stands far back in long windows, too.
        longest: Tokens of the longest of these; None: the context.
    """

    artifact: str
    original: str
    texts: tuple[str, ...] = ()
    tokens: int | None = None
    length: int | None = None
    reference: Path | None = None
    memory: int | None = None
    output: Path | None = None
    fresh: bool = False
    long: bool = False
    longest: int | None = None


@dataclass(frozen=True)
class Found:
    """A comparison, its text [N, L], and how that is read."""

    record: AgainstRecord
    ids: np.ndarray
    decode: Callable[[Sequence[int]], str]


def check_against(asked: Asked, progress: Progress) -> Found:
    """Compare two models, one layer in memory.

    An interrupted comparison goes on where it stopped.

    Raises:
        InputError: For models or texts that do not fit each other.
        MachineError: For a layer that does not fit into the memory.
    """
    models = _Models.open(asked)
    text = _text(asked, models)
    sought = _sought(asked, models, text) if asked.long else {}
    texts = {"check": text.ids} | {name: each.ids for name, each in sought.items()}
    stamps = models.stamps()

    def unchanged() -> None:
        if models.stamps() != stamps:
            raise InputError(
                f"{asked.artifact} or {asked.original} was changed while they were compared; compare again when "
                "nothing writes there any more"
            )

    place = output_path(Path(asked.artifact).resolve().name or "model", asked.output)
    folder = WorkFolder(place.with_name(f"{place.name}.against"), re.compile("[0-9a-f]{16}"))
    code = [code_version("quant"), code_version("convert", without=("graph/", "targets/", "engines/", "kernels/"))]
    ids = {name: hashlib.sha256(f"{each.shape}".encode() + each.tobytes()).hexdigest() for name, each in texts.items()}
    work = folder.path / key_of(stamps, ids, code, versions("torch", "numpy"))[:16]
    experts_within = _room(models, [*texts.values()], asked.memory, folder.path)
    with folder.lock():
        folder.clear(keep=() if asked.fresh else (work,))
        with progress.stage("compare", step_sizes(models.original, models.other)):
            found = compare(
                models.original, models.other, {name: torch.from_numpy(each) for name, each in texts.items()}, work,
                experts_within=experts_within, progress=progress, unchanged=unchanged, tell=progress.line,
            )  # fmt: skip
        shutil.rmtree(work)
    checks = torch_checks(found.answers["check"], text.ids, text.tokenizer.id_to_token, text.read, text.limits)
    record = AgainstRecord(
        artifact=asked.artifact,
        original=asked.original,
        **({"digest": artifact_place(models.artifact.path).digest} if models.artifact else {}),
        layout=str((models.other.config.get("quantization_config") or {}).get("quant_method", "")),
        bytes=models.other.nbytes(),
        bytes_original=models.original.nbytes(),
        windows=len(text.ids),
        length=text.ids.shape[1],
        text=text.read,
        checks=checks,
        layers=found.layers,
        long=[_recall(each, found.answers[name]) for name, each in sought.items()],
        notes=models.notes(asked.original),
    )
    return Found(record, text.ids, text.tokenizer.decode)


@dataclass(frozen=True)
class _Models:
    original: Checkpoint
    other: Checkpoint
    artifact: Artifact | None  # what of the other llmc has written down

    @classmethod
    def open(cls, asked: Asked) -> _Models:
        paths = [locate(each, Path()).path for each in (asked.original, asked.artifact)]
        original, other = map(Checkpoint.open, paths)
        require_alike(original, other)
        return cls(original, other, Artifact.open(paths[1]) if (paths[1] / MANIFEST).is_file() else None)

    def stamps(self) -> list[tuple[str, tuple[int, ...]]]:
        return [(str(file), stamp(file)) for each in (self.original, self.other) for file in each.files()]

    def tokenizer(self) -> Tokenizer:
        """The original's."""
        folder, vocab_size = self.original.path, self.original.spec.vocab_size
        add_bos = self.artifact.add_bos if self.artifact else None
        return Tokenizer(completed(folder, made_tokenizer(folder, vocab_size)), vocab_size, add_bos)

    def notes(self, original: str) -> list[str]:
        """What the numbers do not tell: what speaks against one being made from the other, weights not hashed, and
        layers that do not count for them.
        """
        known = self.artifact.described().source.files if self.artifact else {}
        here = {file.relative_to(self.original.path).as_posix(): file for file in self.original.files()}
        other = [name for name, expected in known.items() if name not in here or _differs(here[name], expected)]
        told = [f"{original} is not what the artifact was made from: {', '.join(other)}"] if other else []
        before, after = (each.spec.num_mtp_layers for each in (self.original, self.other))
        if after < before:
            told.append(
                f"of {before} layers for multi-token prediction {after or 'none'} are left; no measure shows that"
            )
        return told


def _differs(file: Path, sha256: str) -> bool:
    """Of a small file, that it is another; of weights nobody knows without reading all of them."""
    if file.suffix == ".safetensors" or file.stat().st_size > _SMALL:
        return False
    return hashlib.sha256(file.read_bytes()).hexdigest() != sha256


@dataclass(frozen=True)
class _Text:
    ids: np.ndarray
    read: list[TextRead]
    tokenizer: Tokenizer
    limits: dict[str, float | LimitRecord]  # of what may be lost on it


def _text(asked: Asked, models: _Models) -> _Text:
    tokenizer = models.tokenizer()
    if models.artifact is None or asked.texts:
        texts = asked.texts or (PYTHON_DOCS,)
        for each in texts:
            require_text("--text", each, Path())
        check = Check(text=[Source(text=each) for each in texts], tokens=asked.tokens or TOKENS, length=asked.length)
        return _Text(*read_check(check, models.original, Path(), tokenizer), tokenizer, {})
    if asked.length is not None:
        raise InputError("--length: the text on record has windows of its own; give --text, too")
    ids = read_reference(models.artifact, asked.reference)["input_ids"]
    if asked.tokens is not None:
        return _Text(ids[: max(1, asked.tokens // ids.shape[1])], [], tokenizer, {})
    counts = models.artifact.described().texts.read.get("check", [])
    return _Text(ids, counts if any(each.windows for each in counts) else [], tokenizer, models.artifact.gates)


def _sought(asked: Asked, models: _Models, text: _Text) -> dict[str, Needles]:
    """Windows of every length, by name."""
    context = models.artifact.context if models.artifact else models.other.spec.max_position_embeddings
    found = lengths(context, asked.longest)
    return {f"long-{length}": needles(text.tokenizer, text.ids, length) for length in found}


def _recall(sought: Needles, answers: Answers) -> RecallRecord:
    """What both models say of the answers, and how far apart they are over the windows."""
    following = torch.from_numpy(sought.ids[:, 1:])
    its, mine = (
        [(true[row, -count:].numpy(), right[row, -count:].numpy()) for row, count in enumerate(sought.answers)]
        for true, right in (
            (answers.true, answers.top_ids[..., 0] == following),
            (answers.true_quantized, answers.best_quantized == following),
        )
    )
    made = recall(sought, mine, its)
    return RecallRecord.model_validate(asdict(with_divergence(made, answers.divergence.numpy())))


def _room(models: _Models, texts: Sequence[np.ndarray], memory: int | None, work: Path) -> int:
    """Bytes for a layer of both; MachineError where not even one model's fits, or their activations on the disk."""
    if memory is not None:
        machine.spare_memory()
    available = machine.memory() if memory is None else min(memory, machine.memory())
    spec = models.original.spec
    longest = max(each.shape[1] for each in texts)
    working = activation_bytes(spec) * max(1.0, longest / MICRO_BATCH_TOKENS)
    layers = [f"model.layers.{index}." for index in range(spec.num_layers)]
    largest = max(each.nbytes(name) for each in (models.original, models.other) for name in layers)
    ends = 2 * 4 * spec.vocab_size * spec.hidden_size + _HEAD_BYTES
    needed = BASE_MEMORY + round(max(largest + working, ends))
    if needed > available:
        raise MachineError(
            f"the comparison needs about {size(needed)} of memory, but only {size(available)} are free or allowed; "
            "stop other programs, raise --memory, or use a larger machine"
        )
    scratch = 2 * _KEPT * 4 * spec.hidden_size * sum(each.size for each in texts)
    if scratch > (free := machine.free_disk(work.absolute())):
        raise MachineError(
            f"{work}: the comparison keeps {size(scratch)} of activations on the disk, but only {size(free)} are free; "
            "free some, give --output on another disk, fewer --tokens, or shorter windows with --longest"
        )
    return round(available - BASE_MEMORY - working)
