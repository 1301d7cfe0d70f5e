"""What is given in place of a checkpoint, told by the names of the files, and what to give instead.

Names are all that is needed, so that a model on a hub is refused before anything of it is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmc.convert.tokenizer_files import require_library, source_file
from llmc.errors import InputError

if TYPE_CHECKING:
    from llmc.convert.families.family import Family

GGUF = ".gguf"  # how the names of llama.cpp's files end
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_SLOW_TOKENIZERS = {
    "vocab.json": "a vocabulary without its rules",
    "vocab.txt": "a vocabulary without its rules",
}


def names_in(folder: Path) -> set[str]:
    """InputError for a folder that cannot be listed."""
    try:
        return {path.name for path in folder.iterdir()}
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from error


def weight_files(names: Collection[str]) -> list[str]:
    """The safetensors that may hold the model: neither an adapter nor the publisher's own format beside it."""
    return sorted(
        name for name in names if name.endswith(".safetensors") and not name.startswith(("consolidated", "adapter"))
    )


def whole_model(where: str, names: Collection[str]) -> list[str]:
    """The files of weights where no index names them: model.safetensors, or all shards, or the only file there is.

    InputError when shards are missing, or when which files to take is anybody's guess.
    """
    found = weight_files(names)
    if "model.safetensors" in found:
        return ["model.safetensors"]
    shards = [match for name in found if (match := _SHARD.fullmatch(name))]
    sets = {(match[1], match[3]) for match in shards}
    if len(sets) == 1 and len(shards) == len(found):
        stem, count = sets.pop()
        there = {match[2] for match in shards}
        missing = [number for number in range(1, int(count) + 1) if f"{number:05}" not in there]
        if missing or len(shards) != int(count):
            first = f"{stem}-{missing[0]:05}-of-{count}.safetensors" if missing else found[0]
            raise InputError(
                f"{where}: {len(missing):,} of {int(count):,} shards are missing, the first of them {first}; "
                "download them"
            )
        return found
    if len(found) == 1:
        return found
    shown = ", ".join(found[:3]) + ", …" * (len(found) > 3)
    raise InputError(
        f"{where}: which of the {len(found)} files make up the model ({shown}), is said by "
        "model.safetensors.index.json, which is missing; download it, too"
    )


def refuse_other_kinds(where: str, names: Collection[str]) -> None:
    """InputError for files that are no checkpoint in safetensors; `where` is the folder or the model they are of."""
    if "config.json" in names and (weight_files(names) or any(name.lower().endswith(GGUF) for name in names)):
        return
    if kind := _kind(set(names)):
        raise InputError(f"{where}: {kind}")


def refuse_other_tasks(config: dict[str, Any], known: Iterable[Family]) -> None:
    """InputError for a config.json of something else than a model that continues text."""
    named = config.get("architectures")
    if not isinstance(named, list) or not named or any(str(name).endswith("ForCausalLM") for name in named):
        return
    if any(name in family.architectures for family in known for name in named):
        return
    kind = f"{', '.join(map(str, named))[:80]!r} (`architectures`) "
    if config.get("is_encoder_decoder"):
        kind += "is an encoder with a decoder"
    elif any(isinstance(config.get(f"{sense}_config"), dict) for sense in ("vision", "audio", "visual")):
        return  # it may be known some day: `family_of` says what is missing
    else:
        kind += "is for another task"
    raise InputError(f"{kind}; llmc builds models that continue text and nothing else (…ForCausalLM)")


def refuse_folder_above(path: Path, names: Collection[str]) -> None:
    """InputError for the folder in which checkpoints lie."""
    if "config.json" in names or weight_files(names):
        return
    inside = sorted(file.parent for file in path.glob("*/config.json"))
    if inside:
        more = f" (and {len(inside) - 1} other folders)" if len(inside) > 1 else ""
        raise InputError(f"{path}: there is no config.json, but in {inside[0].name}{more}; give that: {inside[0]}")


def refuse_file(path: Path) -> None:
    """InputError for a file that is a part of a model, or a model in another format."""
    suffix = path.suffix.lower()
    if path.name.startswith(("adapter_config", "adapter_model")):
        raise InputError(f"{path}: {_ADAPTER}")
    if suffix == ".safetensors" or path.name in ("config.json", "model.safetensors.index.json"):
        folder = path.parent if path.parent != Path() else "."
        raise InputError(f"{path}: is one file of a checkpoint; give the folder with all of them: {folder}")
    if suffix in _PICKLES:
        raise InputError(f"{path}: {_PICKLE}")
    if suffix in (".onnx", ".engine", ".plan"):
        raise InputError(f"{path}: {_COMPILED}")
    if suffix in (".zip", ".tar", ".gz", ".tgz", ".zst"):
        raise InputError(f"{path}: is an archive; unpack it and give the folder with config.json")


def require_tokenizer(where: str, names: Collection[str], on_hub: bool = False) -> None:
    """InputError, with what to do, when there is no tokenizer.json, nor a file that one could be made from.

    MachineError when the library for that is missing.
    """
    if "tokenizer.json" in names:
        return
    if name := source_file(names):
        require_library(where, name)
        return
    known = {name: kind for name, kind in _SLOW_TOKENIZERS.items() if name in names}
    if code := min((name for name in names if re.fullmatch(r"tokenization_\w+\.py", name)), default=None):
        only = f", only {', '.join([*known][:1])} and code that reads it" if known else ", only code"
        raise InputError(
            f"{where}: there is no tokenizer.json{only} ({code}), which llmc does not run; look for a copy of the "
            "model that has a tokenizer.json, and put that beside the weights"
        )
    if not known:
        raise InputError(
            f"{where}: there is no tokenizer.json, and a model without it can be neither calibrated nor run; "
            "download it from where the model comes from"
        )
    name, kind = next(iter(known.items()))
    first = f"download the model (hf download {where} --local-dir DIR), then " if on_hub else ""
    folder = "DIR" if on_hub else where
    raise InputError(
        f"{where}: there is no tokenizer.json, only {name} ({kind}); {first}let transformers write one: "
        f"AutoTokenizer.from_pretrained({folder!r}).save_pretrained({folder!r}), and give that folder"
    )


_GGUF = (
    "is GGUF, quantized for llama.cpp; download that file and give its path, or better the original: the folder with "
    "config.json and safetensors that it was made from"
)
_ADAPTER = (
    "is a LoRA adapter (adapter_config.json), not a whole model; merge it into its base model first, with peft: "
    "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)"
)
_PICKLE = (
    "pickle files can run code and are not read; save the model as safetensors first, with transformers' "
    "from_pretrained(…).save_pretrained(…)"
)
_COMPILED = "is compiled; llmc starts from the original: the folder with config.json and safetensors it was made from"


def _kind(names: set[str]) -> str | None:
    """What the names are of, and what to give instead."""

    def ending(*suffixes: str) -> str | None:
        return min((name for name in names if name.lower().endswith(suffixes)), default=None)

    consolidated = min((name for name in names if re.fullmatch(r"consolidated.*\.safetensors", name)), default=None)
    if "model_index.json" in names:
        return "is a diffusers pipeline (model_index.json), which makes images; llmc builds language models"
    if "adapter_config.json" in names and not weight_files(names):
        return _ADAPTER
    if gguf := ending(".gguf"):
        return f"{gguf} {_GGUF}"
    if consolidated or "params.json" in names:
        return (
            f"holds the publisher's own format ({consolidated or 'params.json'}); llmc reads Hugging Face's: "
            "config.json and model*.safetensors, which most publishers have beside it, or in a repository of its own"
        )
    if weight_files(names):
        return None  # config.json is missing, and that is what will be said
    if {"snapshots", "refs"} <= names:
        return (
            "is a model's place in the hub's cache; give the folder in snapshots/ that is in it, or the hub's org/name"
        )
    if pickle := ending(*_PICKLES, ".bin.index.json"):
        return f"{pickle}: {_PICKLE}"
    if compiled := ending(".onnx", ".engine", "openvino_model.xml"):
        return f"{compiled} {_COMPILED}"
    if other := ending(".h5", ".msgpack", ".nemo", ".npz", ".mlmodel", ".keras"):
        return (
            f"holds {other} and no safetensors; save the model as safetensors first, where transformers reads it with "
            "from_pretrained(…).save_pretrained(…)"
        )
    return None
