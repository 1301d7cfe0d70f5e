"""Files beside weights and config.json on their way into an artifact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path


def copy_sidecar(folder: Path, name: str, directory: Path) -> None:
    """Byte for byte; but tokenizer_config.json loses `auto_map`, which names Python files of the checkpoint, and the
    name of a class that is in them.

    They are not copied: artifacts hold no code. tokenizer.json is the whole tokenizer, and without these
    transformers takes that.
    """
    file, target = folder / name, directory / name
    target.parent.mkdir(exist_ok=True)
    if name == "tokenizer_config.json":
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            settings = None
        if isinstance(settings, dict) and (code := settings.pop("auto_map", None)) is not None:
            if f'.{settings.get("tokenizer_class")}"' in json.dumps(code):
                settings["tokenizer_class"] = "PreTrainedTokenizerFast"
            target.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            return
    shutil.copyfile(file, target)
