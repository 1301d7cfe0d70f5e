"""How a model's authors want it sampled: the checkpoint's generation_config.json, which goes along to the artifact.

It is read as transformers does, with two exceptions: what is absent limits nothing (transformers takes the 50 most
likely tokens then), and lengths are the caller's.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from llmc.errors import InputError
from llmc.runtime import arguments
from llmc.runtime.artifact import Artifact
from llmc.runtime.sampling import SamplingParams

FILE = "generation_config.json"
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")


def read(artifact: Artifact) -> SamplingParams:
    """The model's own settings: greedy, unless there is the file and says `do_sample`. InputError for a broken one."""
    try:
        return SamplingParams(**_settings(artifact.read_json(FILE)))
    except InputError as error:
        file = artifact.called(FILE)
        reason = str(error).removeprefix(f"{file}: ")
        raise InputError(f"{file}: {reason}; give SamplingParams of your own") from error


def said(parameters: SamplingParams, without: Collection[str] = ()) -> str:
    """What differs from greedy, for people: `temperature 0.6, top_p 0.95`; empty if nothing does."""
    neutral = SamplingParams()
    names = [*_SAMPLING, "repetition_penalty"] if parameters.temperature else ["repetition_penalty"]
    found = {name: getattr(parameters, name) for name in names if name not in without}
    return ", ".join(f"{name} {value:g}" for name, value in found.items() if value != getattr(neutral, name))


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    found = {"repetition_penalty": config.get("repetition_penalty")}
    sampled = config.get("do_sample")
    if sampled is not None and arguments.flag("do_sample", sampled):
        found |= {name: config.get(name) for name in _SAMPLING}
        if found["temperature"] is None:
            found["temperature"] = 1.0
        if found["top_k"] == -1:  # vLLM's way to write no limit
            found["top_k"] = 0
    return found
