"""Decodes the weights of a GGUF file that checkpoint_to_gguf.py and llama.cpp made, so that one reader and one model
can measure it: a checkpoint in float32, beside the original's config and tokenizer.

Arguments: original checkpoint, GGUF file, output folder.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from llmc.convert.checkpoint import Checkpoint


def decode(source: Path, file: Path, output: Path) -> None:
    """Writes what `file` holds of the checkpoint `source`, without MTP layers."""
    config: dict[str, Any] = json.loads((source / "config.json").read_text())
    made = Checkpoint.open(file)
    output.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.suffix == ".json" and "index" not in path.name:
            shutil.copyfile(path, output / path.name)
    if "num_nextn_predict_layers" in config:
        config["num_nextn_predict_layers"] = 0
    (output / "config.json").write_text(json.dumps(config))
    names = {name: made.stored_names.stored(name) for name in made.names()}
    save_file({stored: made.tensor(name) for name, stored in names.items()}, output / "model.safetensors")


if __name__ == "__main__":
    decode(*map(Path, sys.argv[1:4]))
