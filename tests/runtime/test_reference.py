"""A reference that is none is refused, before anything is compared with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.listed_files import list_files

from llmc.errors import InputError
from llmc.runtime import load

Tensors = dict[str, Any]


def put(name: str, value: Any, place: Any = (0, 0)) -> Callable[[Tensors], None]:
    def damage(tensors: Tensors) -> None:
        tensors[name][place] = value

    return damage


def replace(name: str, change: Callable[[Any], Any]) -> Callable[[Tensors], None]:
    def damage(tensors: Tensors) -> None:
        tensors[name] = np.ascontiguousarray(change(tensors[name]))

    return damage


def every(change: Callable[[Any], Any]) -> Callable[[Tensors], None]:
    def damage(tensors: Tensors) -> None:
        for name in tensors:
            tensors[name] = np.ascontiguousarray(change(tensors[name]))

    return damage


def impossible(tensors: Tensors) -> None:
    """None of the true tokens is among the likely ones."""
    following = tensors["input_ids"][:, 1:, None]
    tensors["top_ids"] = (following + np.arange(1, 5, dtype=following.dtype)) % 260
    tensors["top_logprobs"] = tensors["top_logprobs"][..., :4].copy()
    tensors["true_logprobs"][...] = -1e4
    for name in ("tail_ids", "tail_logprobs", "tail_mass"):
        del tensors[name]
    for name in [name for name in tensors if name.startswith("quantized_")]:
        del tensors[name]


DAMAGES: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "NaN": (put("top_logprobs", np.nan), "top_logprobs holds what is no log-probability"),
    "NaN of a true token": (put("true_logprobs", np.nan), "true_logprobs holds what is no log-probability"),
    "infinity": (put("true_logprobs", -np.inf), "true_logprobs holds"),
    "more than certain": (put("top_logprobs", 0.5), "top_logprobs holds"),
    "more than certain in sum": (put("top_logprobs", -0.1, (0, 0, slice(0, 9))), "of more than one in sum"),
    "a token that is none": (put("input_ids", 260), "input_ids holds tokens that are none of the model's 260"),
    "a negative token": (put("top_ids", -1), "top_ids holds tokens that are none"),
    "no windows": (every(lambda array: array[:0]), "top_ids is "),
    "one position": (every(lambda array: array[:, :1]), "top_ids is "),
    "windows of unequal number": (replace("true_logprobs", lambda array: array[1:]), "true_logprobs is float32"),
    "no true token for the last": (replace("input_ids", lambda array: array[:, 1:]), "input_ids is int32"),
    "flat": (replace("top_ids", np.ravel), "top_ids is "),
    "tokens as fractions": (replace("input_ids", lambda array: array.astype(np.float32)), "input_ids is float32"),
    "a token twice": (lambda tensors: put("top_ids", tensors["top_ids"][0, 0, 1], (0, 0, 0))(tensors), "a token twice"),
    "out of order": (replace("top_logprobs", lambda array: array[..., ::-1]), "top_logprobs are not in order"),
    "two numbers for a token": (replace("true_logprobs", np.zeros_like), "true_logprobs are not those of top_logprobs"),
    "an impossible text": (impossible, "true_logprobs hold the text for impossible"),
    "a tail without its mass": (lambda tensors: tensors.pop("tail_mass"), "lacks 'tail_mass'"),
    "a tail of another shape": (replace("tail_ids", lambda array: array[..., 1:]), "tail_logprobs is float32"),
    "an empty tail": (
        lambda tensors: [
            replace(name, lambda array: array[..., :0])(tensors) for name in ("tail_ids", "tail_logprobs")
        ],
        "tail_ids is int32",
    ),
    "a flat tail": (replace("tail_ids", np.ravel), "tail_ids is int32"),
    "a tail of nothing": (replace("tail_ids", lambda array: array[0, 0, 0].reshape(())), "tail_ids is int32"),
    "a tail of other tokens": (put("tail_ids", 260), "tail_ids holds tokens that are none"),
    "a tail that is likely": (put("tail_logprobs", -0.1), "tail_logprobs are of more likely tokens"),
    "a tail without end": (put("tail_logprobs", -np.inf), "tail_logprobs holds what is no log-probability"),
    "a negative tail": (put("tail_mass", -0.1), "tail_mass holds what is no probability"),
    "too heavy a tail": (put("tail_mass", 1.1), "top_logprobs and tail_mass are not of one in sum"),
    "a quantized model without its choice": (lambda tensors: tensors.pop("quantized_best"), "lacks 'quantized_best'"),
    "a quantized model's NaN": (put("quantized_top_logprobs", np.nan), "quantized_top_logprobs holds what is no"),
    "a quantized model's tail, flat": (replace("quantized_tail_logprobs", np.ravel), "quantized_tail_logprobs is"),
    "a choice that is none": (put("quantized_best", 260), "quantized_best holds tokens that are none"),
    "choices for nothing": (replace("quantized_best", lambda array: array[:0]), "quantized_best is int32"),
    "a tensor is missing": (lambda tensors: tensors.pop("true_logprobs"), "lacks 'true_logprobs'"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_what_cannot_be_compared_with(dense: Path, tmp_path: Path, kind: str) -> None:
    copy = shutil.copytree(dense, tmp_path / "copy")
    tensors = {name: array.copy() for name, array in load_file(copy / "reference.safetensors").items()}
    damage, message = DAMAGES[kind]
    damage(tensors)
    save_file(tensors, copy / "reference.safetensors")
    list_files(copy, "reference.safetensors")
    with load(copy) as model, pytest.raises(InputError, match="no reference to compare with") as caught:
        model.check()
    assert message in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"\xff" * 100, None])
def test_what_is_no_safetensors_file(dense: Path, tmp_path: Path, data: bytes | None) -> None:
    copy = shutil.copytree(dense, tmp_path / "copy")
    file = copy / "reference.safetensors"
    file.write_bytes(file.read_bytes()[:-5] if data is None else data)
    list_files(copy, file.name)
    with load(copy) as model, pytest.raises(InputError, match=r"reference\.safetensors: no reference"):
        model.check()


def test_windows_longer_than_the_context(dense: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dense, tmp_path / "copy")
    tensors = {
        name: np.tile(a, (1, 20, *[1] * (a.ndim - 2))) for name, a in load_file(copy / "reference.safetensors").items()
    }
    tensors["input_ids"] = tensors["input_ids"][:, : tensors["top_ids"].shape[1] + 1]
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, copy / "reference.safetensors")
    list_files(copy, "reference.safetensors")
    with (
        load(copy) as model,
        pytest.raises(InputError, match="windows of 780 positions, but the model's context is 600"),
    ):
        model.check()
