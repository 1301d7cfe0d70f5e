"""reference.safetensors, what the original said about the check text, read and held against what it must be."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from llmc.errors import InputError
from llmc.files import read_regular
from llmc.runtime.artifact import REFERENCE, Artifact

Array = NDArray[Any]
_MOST_BYTES = 1 << 32
_ROUNDING = 1e-4  # of a log-probability that is 0, and of a sum of probabilities that is 1
_SAME = 1e-2  # between two that were written from one number
_LARGEST_SURPRISE = 700.5  # nats per token: what a build accepts, and the perplexity still is a number


def read_reference(artifact: Artifact, file: str | Path | None = None) -> dict[str, Array]:
    """Position i predicts token i + 1: input_ids int64 [N, P + 1], top_ids int64 and top_logprobs float32 [N, P, K],
    true_logprobs float32 [N, P]; unless an earlier llmc wrote it, tail_ids int64 and tail_logprobs float32
    [N, P, S] and tail_mass float32 [N, P], too; and of the first M windows what torch made of the quantized model:
    quantized_top_logprobs float32 [M, P, K], quantized_tail_logprobs float32 [M, P, S] if there is a tail, and
    quantized_best int64 [M, P]. InputError when there is none, or none that can be compared with.

    Args:
        file: where it lies if it is not in the artifact
    """
    path = artifact.called(REFERENCE) if file is None else str(file)
    data = _own(artifact) if file is None else _given(artifact, Path(file))
    try:
        found = load(data)
        _check(found, artifact)
        _check_quantized(found, artifact.vocab_size)
    except Exception as error:  # safetensors' and numpy's share no base class
        said = f"lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise InputError(f"{path}: no reference to compare with ({said}); build or download it again") from error
    names = [name for name in (*_NAMES, *_TAIL, *_QUANTIZED) if name in found]
    return {name: found[name].astype(np.int64 if name.endswith(_WHOLE) else np.float32) for name in names}


def _own(artifact: Artifact) -> bytes:
    if REFERENCE in artifact.files:
        return artifact.read(REFERENCE, _MOST_BYTES)
    path = artifact.called(REFERENCE)
    if artifact.reference is None:
        raise InputError(f"{path}: missing; this artifact was published without it and cannot be checked")
    raise InputError(f"{path}: missing; the artifact was built without it, its builder has it; give --reference FILE")


def _given(artifact: Artifact, path: Path) -> bytes:
    listed = artifact.files.get(REFERENCE, artifact.reference)
    data = read_regular(path, listed.bytes if listed else 0)
    if listed is None or hashlib.sha256(data).hexdigest() != listed.sha256:
        raise InputError(f"{path}: not the reference of {artifact.path}; it lies beside it where it was built")
    return data


_NAMES = ("input_ids", "top_ids", "top_logprobs", "true_logprobs")
_TAIL = ("tail_ids", "tail_logprobs", "tail_mass")
_QUANTIZED = ("quantized_best", "quantized_top_logprobs", "quantized_tail_logprobs")
_WHOLE = ("_ids", "_best")  # what names of whole numbers end with


def _check(found: dict[str, Array], artifact: Artifact) -> None:
    tailed = any(name in found for name in _TAIL)
    found = {name: found[name] for name in (*_NAMES, *(_TAIL if tailed else ()))}
    top_ids, top = found["top_ids"], found["top_logprobs"]
    if top_ids.ndim != 3 or 0 in top_ids.shape or top_ids.shape[1] < 2:
        raise ValueError(f"top_ids is {list(top_ids.shape)}, not windows, positions, tokens")
    windows, positions, _ = top_ids.shape
    tail = (windows, positions, found["tail_ids"].shape[-1] or 1) if tailed and found["tail_ids"].shape else ()
    wanted = (windows, positions + 1), top_ids.shape, top_ids.shape, (windows, positions), tail, tail, tail[:2]
    for name, shape in zip((*_NAMES, *_TAIL)[: len(found)], wanted, strict=False):
        kind = np.integer if name.endswith("_ids") else np.floating
        if found[name].shape != shape or not np.issubdtype(found[name].dtype, kind):
            raise ValueError(f"{name} is {found[name].dtype} {list(found[name].shape)}")
    if positions > artifact.context:
        raise ValueError(f"windows of {positions} positions, but the model's context is {artifact.context}")
    for name in (name for name in found if name.endswith("_ids")):
        if not (found[name].min() >= 0 and found[name].max() < artifact.vocab_size):
            raise ValueError(f"{name} holds tokens that are none of the model's {artifact.vocab_size}")
    for name in (name for name in found if name.endswith("_logprobs")):
        if not np.isfinite(found[name]).all() or found[name].max() > _ROUNDING:
            raise ValueError(f"{name} holds what is no log-probability")
    if np.exp(top.astype(np.float64)).sum(-1).max() > 1 + 100 * _ROUNDING:
        raise ValueError("top_logprobs are of more than one in sum")
    if tailed:
        _check_tail(top, found["tail_logprobs"], found["tail_mass"].astype(np.float64))
    _check_agreement(found["input_ids"][:, 1:, None], top_ids, top, found["true_logprobs"])


def _check_quantized(found: dict[str, Array], vocab_size: int) -> None:
    """ValueError for answers of the quantized model that are none to the text; earlier llmc left none."""
    if not any(name in found for name in _QUANTIZED):
        return
    best, top = found["quantized_best"], found["top_ids"]
    windows = best.shape[0] if best.ndim == 2 else 0
    wanted = {"quantized_best": (windows, top.shape[1]), "quantized_top_logprobs": (windows, *top.shape[1:])}
    if "tail_ids" in found:
        wanted["quantized_tail_logprobs"] = (windows, *found["tail_ids"].shape[1:])
    for name, shape in wanted.items():
        kind = np.integer if name.endswith(_WHOLE) else np.floating
        if not (found[name].shape == shape and np.issubdtype(found[name].dtype, kind) and 0 < windows <= len(top)):
            raise ValueError(f"{name} is {found[name].dtype} {list(found[name].shape)}")
        if kind is np.floating and not (np.isfinite(found[name]).all() and found[name].max() <= _ROUNDING):
            raise ValueError(f"{name} holds what is no log-probability")
    if not (best.min() >= 0 and best.max() < vocab_size):
        raise ValueError(f"quantized_best holds tokens that are none of the model's {vocab_size}")


def _check_tail(top: Array, tail: Array, mass: Array) -> None:
    """ValueError for a sample that is none of what `top` leaves over."""
    if not (np.isfinite(mass).all() and mass.min() >= 0):
        raise ValueError("tail_mass holds what is no probability")
    if np.abs(np.exp(top.astype(np.float64)).sum(-1) + mass - 1).max() > 100 * _ROUNDING:
        raise ValueError("top_logprobs and tail_mass are not of one in sum")
    if (tail.max(-1) > top[..., -1] + _SAME)[mass > 0].any():
        raise ValueError("tail_logprobs are of more likely tokens than top_logprobs")


def _check_agreement(following: Array, top_ids: Array, top: Array, true: Array) -> None:
    """ValueError when the parts contradict one another; following: [N, P, 1], the true tokens."""
    if (np.diff(np.sort(top_ids)) == 0).any():
        raise ValueError("top_ids names a token twice")
    if top.shape[-1] > 1 and np.diff(top.astype(np.float64)).max() > _SAME:
        raise ValueError("top_logprobs are not in order")
    same = top_ids == following
    said = np.where(same, top, 0).sum(-1)
    most = np.where(same.any(-1), said + _SAME, top[..., -1] + _SAME)
    least = np.where(same.any(-1), said - _SAME, -np.inf)
    if not ((least <= true) & (true <= most)).all():
        raise ValueError("true_logprobs are not those of top_logprobs")
    if true.astype(np.float64).mean() < -_LARGEST_SURPRISE:
        raise ValueError("true_logprobs hold the text for impossible")
