"""Checkpoints of real size without their weights: files whose content is a hole."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmc.convert.families import family_of
from llmc.convert.layer_modules import weight_shapes


def headers_only(directory: Path, config: dict[str, Any], tokenizer: Path) -> Path:
    """Writes config.json, tokenizer.json and the header of all weights in bfloat16, as far as a plan reads them."""
    directory.mkdir(parents=True)
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    (directory / "config.json").write_text(json.dumps(plain))
    (directory / "tokenizer.json").write_bytes((tokenizer / "tokenizer.json").read_bytes())
    family = family_of(plain)
    shapes, names = weight_shapes(family.spec(plain)), family.stored_names
    return write_header(directory, {names.stored(name): ("BF16", shape) for name, shape in shapes.items()})


def write_header(directory: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> Path:
    """A file of tensors of these types, BF16 or U8, and shapes, all of it a hole."""
    entries, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * {"BF16": 2, "U8": 1}[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    return directory
