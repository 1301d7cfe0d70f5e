"""Where an interrupted pass goes on: behind the last layer whose record, shard and following inputs are all whole.

Each layer leaves a record, which vouches for the layer's shard and for what enters the next layer. The inputs of the
last finished layer stay until one more is finished, so that whatever a power cut or a failing disk does to the newest
files costs one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from llmc.contracts.layer_record import LayerRecord, ScratchFile
from llmc.quant.durable import damage, seal, whole_records, write_record


def record_path(work_dir: Path, index: int) -> Path:
    return work_dir / f"layer-{index:05d}.json"


def finish_layer(
    work_dir: Path, index: int, record: LayerRecord, shard: Path, following: Iterable[Path]
) -> LayerRecord:
    """Writes the record of a layer, when its shard and what enters the next layer are on the disk for good.

    Returns:
        The record as it was written, which vouches for both.
    """
    sealed = {
        "shard": seal(shard.parent, [shard.name], ScratchFile),
        "following": seal(work_dir, [path.name for path in following], ScratchFile),
    }
    record = record.model_copy(update=sealed)
    write_record(record_path(work_dir, index), record.to_json())
    return record


def finished_layers(
    work_dir: Path, output_dir: Path, layers: int, last: int, tell: Callable[[str], None]
) -> list[LayerRecord]:
    """Records of the layers that need not be done again, first to last; those of others are removed.

    Args:
        last: the layer before whose inputs the reference is made of; MTP layers follow it
        tell: is told what is damaged, and what is done again for that
    """
    paths = (record_path(work_dir, index) for index in range(layers))
    records, found = whole_records(paths, LayerRecord, lambda record: damage(output_dir, record.shard))
    while records:
        needed = records[-1].following
        if len(records) > last:
            needed = records[last - 1].following | needed
        missing = damage(work_dir, needed)
        if missing is None:
            break
        found = found or missing
        records.pop()
    for path in work_dir.glob("layer-*.json"):
        if path.name not in {record_path(work_dir, index).name for index in range(len(records))}:
            path.unlink()
    if found:
        again = f"layer {len(records) + 1} and what is behind it are" if records else "all layers are"
        tell(f"  {found}: {again} quantized again")
    return records
