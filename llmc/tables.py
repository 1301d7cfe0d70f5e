"""Tables about a plan, a checkpoint, an artifact, an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from llmc.files import read_json
from llmc.progress import size
from llmc.runtime.artifact import MANIFEST, Artifact
from llmc.visible import visible_line

if TYPE_CHECKING:
    from llmc.contracts.engine import EngineDescription
    from llmc.planning import Plan
    from llmc.runtime.where import WorstToken, WorstWindow

_DESCRIPTION_BYTES = 1 << 24


def worst_table(worst: Sequence[WorstToken], texts: Sequence[tuple[str, str]]) -> Table:
    """The tokens that suffered most, each with the text in front of it and its own."""
    made = table("furthest from the original", "KL", "its p", "text", "next token", numbers=False)
    for place, text in zip(worst, texts, strict=True):
        change = f"{place.p_original:.3f} → {place.p:.3f}"
        made.add_row(f"{place.kl:.2f}", change, *(Text(visible_line(each)) for each in text))
    return made


def windows_table(worst: Sequence[WorstWindow], texts: Sequence[str]) -> Table:
    """The windows that suffered most, with how each begins."""
    made = table("windows furthest from the original", "KL", "number", "begins with", numbers=False)
    for place, text in zip(worst, texts, strict=True):
        made.add_row(f"{place.kl_mean:.4f}", str(place.window), Text(visible_line(text)))
    return made


@dataclass(frozen=True)
class Report:
    """The same as JSON and as tables."""

    data: dict[str, Any]
    tables: list[Table]


def inspect(path: Path) -> Report:
    """InputError for what is neither checkpoint, artifact, engine nor kernels."""
    if path.name.endswith(".kernels.safetensors"):
        return _kernels(path)
    if path.suffix == ".engine" or (path.suffix == ".json" and path.with_suffix(".engine").exists()):
        return _engine(path.with_suffix(".json"))
    if (path / MANIFEST).is_file():
        return _artifact(path)
    return _checkpoint(path)


def plan_tables(plan: Plan) -> list[Table]:
    mtp = f" + {plan.mtp_layers} MTP" if plan.mtp_layers else ""
    experts = f", {plan.experts[0]} → {plan.experts[1]} experts per layer" if plan.experts else ""
    roles = table(
        f"{plan.name}: {plan.family}, {plan.layers}{mtp} layers{experts}",
        "role", "parameters", "bytes", "→ parameters", "→ bytes", "scheme",
    )  # fmt: skip
    for role, change in [*plan.roles.items(), ("total", plan.total)]:
        before, after = change.before, change.after
        schemes = ", ".join(plan.schemes.get(role, ()))
        numbers = f"{before.parameters:,}", size(before.bytes), f"{after.parameters:,}", size(after.bytes)
        roles.add_row(role, *numbers, schemes, style="bold" if role == "total" else None)
    needs = table("this machine", "resource", "needed", "free", "verdict")
    needs.add_row("memory (estimate)", size(plan.memory), size(plan.memory_available), _fits(plan.fits_memory))
    if plan.gpu_memory is not None:
        available = size(plan.gpu_memory_available)
        needs.add_row("GPU memory (estimate)", size(plan.gpu_memory), available, _fits(plan.fits_gpu))
    disk = size(plan.work_disk + plan.output_disk)
    needs.add_row("peak disk", disk, size(plan.disk_free), _fits(plan.fits_disk))
    needs.add_row("artifact on disk", size(plan.output_disk), "", "")
    for name, count in plan.target_bytes.items():
        needs.add_row(f"  target {name} (estimate)", size(count), "", "")
    cache = table("KV cache", "form", "per token", "32,768 tokens")
    cache.add_row("as stored", size(plan.cache_bytes), size(plan.cache_bytes * 32768))
    if plan.cache_bytes_expanded != plan.cache_bytes:
        expanded = plan.cache_bytes_expanded
        cache.add_row("expanded to heads", size(expanded), size(expanded * 32768))
    return [roles, needs, cache]


def table(title: str, *columns: str, numbers: bool = True) -> Table:
    """A table whose first column is words; the others are numbers, aligned right, or words too."""
    made = Table(title=title, title_justify="left", show_header=any(columns))
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if numbers and index else "left", no_wrap=not index, overflow="fold")
    return made


def rows_table(title: str, lines: Sequence[tuple[str, str]]) -> Table:
    """What was found, and how it came out."""
    made = table(title, "what", "how it came out", numbers=False)
    for line in lines:
        made.add_row(*line)
    return made


def _joined(value: object, between: str = ", ") -> str:
    return between.join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _fits(fits: bool) -> str:
    return "fits" if fits else "DOES NOT FIT"


def _artifact(path: Path) -> Report:
    from llmc.report import report_of
    from llmc.summary import rows

    artifact = Artifact.open(path)
    manifest = artifact.described()
    overview = table(str(path), "what", "how it came out", numbers=False)
    for row in rows(report_of(manifest)):
        overview.add_row(*row)
    files = table("files", "file", "bytes")
    for name, entry in manifest.files.items():
        files.add_row(name, f"{entry.bytes:,}")
    return Report(artifact.document, [overview, files])


def _checkpoint(path: Path) -> Report:
    from llmc.convert.checkpoint import Checkpoint
    from llmc.sizes import sizes_by_role

    checkpoint = Checkpoint.open(path, headers_only=True)
    spec, roles = checkpoint.spec, sizes_by_role(checkpoint)
    mtp = f" + {spec.num_mtp_layers} MTP" if spec.num_mtp_layers else ""
    title = f"{path}: {spec.family}, {spec.num_layers}{mtp} layers, context {spec.max_position_embeddings:,}"
    made = table(title, "role", "parameters", "bytes")
    for role, found in roles.items():
        made.add_row(role, f"{found.parameters:,}", size(found.bytes))
    made.add_row("total", f"{sum(r.parameters for r in roles.values()):,}", size(checkpoint.nbytes()), style="bold")
    data = {
        "path": str(path),
        "family": spec.family,
        "num_layers": spec.num_layers,
        "num_mtp_layers": spec.num_mtp_layers,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "max_position_embeddings": spec.max_position_embeddings,
        "shards": [shard.name for shard in checkpoint.shards],
        "bytes": checkpoint.nbytes(),
        "roles": {role: vars(found) for role, found in roles.items()},
    }
    return Report(data, [made])


def _engine(path: Path) -> Report:
    from llmc.contracts.engine import EngineDescription
    from llmc.contracts.part import checked

    data = read_json(path, _DESCRIPTION_BYTES)
    engine = checked(EngineDescription, data, f"{path}: describes no engine")
    overview = table(engine.engine, "property", "value", numbers=False)
    for key in ("graph", "package", "release", "sm", "context", "batch", "plugins", "kernels"):
        overview.add_row(key, _joined(getattr(engine, key)))
    if engine.ranks > 1:
        overview.add_row("rank", f"{engine.rank} of {engine.ranks} GPUs that hold the model together")
    overview.add_row("size", f"{size(engine.bytes)}, of which {size(engine.text_bytes)} program text")
    for kind, count in engine.weight_bytes.items():
        overview.add_row(f"weights, {kind}", size(count))
    io = table("inputs and outputs", "direction", "name", "dtype", "shape", numbers=False)
    for direction, values in (("input", engine.inputs), ("output", engine.outputs)):
        for value in values:
            io.add_row(direction, value.name, value.dtype, _joined(value.shape, " × "))
    profiles = table("profiles", "number", "tokens per row", "cache entries")
    for number, profile in enumerate(engine.profiles):
        profiles.add_row(str(number), _joined(profile.tokens, " to "), f"{profile.window:,}")
    return Report(data, [overview, io, profiles, *_programs(engine)])


def _programs(engine: EngineDescription) -> list[Table]:
    """What the program of each profile does with codes; none of what was written before that was read."""
    readers = ("multiplied_bytes", "plugin_bytes", "gathered_bytes", "decoded_bytes")
    found = [[getattr(program, reader) for reader in readers] for program in engine.programs]
    if not any(map(any, found)):
        return []
    made = table("codes", "profile", "products read", "plugins read", "of chosen experts", "decoded in every step")
    for number, reads in enumerate(found):
        made.add_row(
            str(number), *("\n".join(f"{kind} {size(count)}" for kind, count in read.items()) for read in reads)
        )
    decoded = table("weights that are decoded in every step", "profile", "weight", numbers=False)
    for number, program in enumerate(engine.programs):
        for weight in program.decoded:
            decoded.add_row(str(number), weight)
    return [made, decoded] if decoded.rows else [made]


def _kernels(path: Path) -> Report:
    from llmc.runtime.plugins.kernel_set import read

    sets = read(path)
    shown = table(
        path.name, "operation", "SM", "kernel", "registers", "spilled bytes", "shared memory", "threads",
    )  # fmt: skip
    for each in sets.values():
        for sm, compiled in each.told["sm"].items():
            for name, said in compiled["kernels"].items():
                numbers = (said[number] for number in ("registers", "stack_bytes", "shared_bytes", "threads"))
                shown.add_row(each.operation, sm, name, *map(str, numbers))
    return Report({key: each.told for key, each in sets.items()}, [shown])
