"""Writes the model of a GGUF file as a Hugging Face checkpoint in float32, for tools that read nothing else.

llmc reads GGUF by itself; this is for whom it is measured against. Quantized weights are decoded, so that no more is
lost than the file has lost already.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import save_file

from llmc.convert.checkpoint import Checkpoint


def convert(source: Path, output: Path) -> None:
    """Writes config.json, model.safetensors, the tokenizer's files and generation_config.json into `output`."""
    made = Checkpoint.open(source)
    output.mkdir(parents=True, exist_ok=True)
    for path in made.path.iterdir():
        if path.name != source.name:
            shutil.copyfile(path, output / path.name)
    config = made.config | {"dtype": "float32"}
    (output / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    names = {name: made.stored_names.stored(name) for name in made.names()}
    save_file({stored: made.tensor(name) for name, stored in names.items()}, output / "model.safetensors")
