"""What of a loss is the runtime's: its answers against torch's, of the same weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from support.ladder import SmallModel
from support.listed_files import list_files
from support.model_lines import LINES
from support.runnable_artifact import lower
from typer.testing import CliRunner

from llmc.cli import app
from llmc.quant.tail_sample import tail_sample
from llmc.runtime import load
from llmc.runtime.floor import floor

Array = NDArray[Any]
POSITIONS, VOCABULARY, KEPT, DRAWN, WINDOWS = 40, 1500, 16, 16, 2


def test_it_is_the_divergence_of_the_runtime_from_torch() -> None:
    """Of the first windows alone, and without bias, though the tokens were drawn by the original's probabilities."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((WINDOWS + 1, POSITIONS, VOCABULARY))
    quantized = logits + 0.5 * rng.standard_normal(logits.shape)
    said = quantized + 0.05 * rng.standard_normal(logits.shape)
    p, q, r = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (logits, quantized, said))
    exact = (np.exp(q) * (q - r)).sum(-1)[:WINDOWS]
    top_ids = np.argsort(-p, axis=-1)[..., :KEPT]

    def of(logprobs: Array, ids: Array) -> Array:
        return np.take_along_axis(logprobs, ids, -1)

    others = np.exp(p)
    np.put_along_axis(others, top_ids, 0.0, -1)
    found = []
    for _ in range(50):
        rows, tails = (torch.from_numpy(each.reshape(-1, VOCABULARY)) for each in (p, others))
        tail_ids = tail_sample(rows, tails, torch.from_numpy(rng.random(len(rows))), DRAWN).numpy()
        tail_ids = tail_ids.reshape(*p.shape[:2], DRAWN)
        reference = {
            "top_logprobs": of(p, top_ids),
            "tail_ids": tail_ids,
            "tail_logprobs": of(p, tail_ids),
            "tail_mass": others.sum(-1),
            "quantized_best": q.argmax(-1)[:WINDOWS],
            "quantized_top_logprobs": of(q, top_ids)[:WINDOWS],
            "quantized_tail_logprobs": of(q, tail_ids)[:WINDOWS],
        }
        measured = floor(reference, of(r, top_ids), of(r, tail_ids), r.argmax(-1), 8, VOCABULARY)
        assert measured is not None and measured.tokens == WINDOWS * POSITIONS
        found.append(measured.kl_mean)
    assert abs(np.mean(found) - exact.mean()) < 4 * np.std(found) / np.sqrt(len(found))
    assert np.std(found) < 0.1 * exact.mean()
    ours = (np.exp(p) * (p - q)).sum(-1)[:WINDOWS]
    assert measured.weights_kl_mean == pytest.approx(ours.mean(), rel=0.1)
    assert measured.weights_kl_median == pytest.approx(np.median(ours), rel=0.1)
    assert measured.top1 == (q.argmax(-1) == r.argmax(-1))[:WINDOWS].mean()
    assert measured.largest == pytest.approx(np.abs(of(q, top_ids) - of(r, top_ids))[:WINDOWS].max())
    assert floor({}, of(r, top_ids), None, r.argmax(-1), 8, VOCABULARY) is None


def test_a_graph_in_float32_and_one_that_rounds_activations(trained: Path, trained_level_4: Path) -> None:
    """The one says what torch says; the other's rounding costs a part of what 4 bits do."""
    with load(trained, threads=1) as model:
        exact = model.check()
    with load(trained_level_4, threads=1) as model:
        rounded = model.check()
    assert exact.runtime is not None and rounded.runtime is not None
    assert exact.runtime.kl_max < 1e-8 and exact.runtime.top1 == 1 and exact.runtime.largest < 1e-3
    assert 1e-6 < rounded.runtime.kl_median < 0.1 * rounded.kl_median
    assert exact.runtime.tokens == rounded.runtime.tokens == exact.tokens


def test_the_last_tokens_of_a_window_are_read_one_by_one(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(trained, threads=1) as model:
        widths: list[tuple[int, int]] = []
        forward = model.backend.forward

        def seen(graph: Any, cache: Any, ids: Array, position: Array, *rest: Any) -> Any:
            widths.append((int(position[0]), ids.shape[1]))
            return forward(graph, cache, ids, position, *rest)

        monkeypatch.setattr(model.backend, "forward", seen)
        model.check()
    window = [(0, 183), *((place, 1) for place in range(183, 191))]
    assert widths == window * 4


@pytest.mark.slow
def test_layers_with_one_head_in_their_cache_and_with_several(tmp_path: Path) -> None:
    """They are given as much of it: one mask is for all."""
    line = next(line for line in LINES if line.name == "MiMo-V2-Flash")
    folder = lower(SmallModel(line, tmp_path).artifact.path, 1)
    with load(folder, threads=1) as model:
        report = model.check()
    assert report.runtime is not None and report.runtime.kl_max < 1e-8


def test_a_reference_of_an_earlier_llmc_says_nothing_of_it(trained: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trained, tmp_path / "copy")
    file = copy / "reference.safetensors"
    save_file({name: each for name, each in load_file(file).items() if not name.startswith("quantized")}, file)
    list_files(copy, file.name)
    done = CliRunner().invoke(app, ["check", str(copy)], env={"COLUMNS": "200"})
    assert done.exit_code == 0 and "not measured: an earlier llmc built this" in done.stdout
    whole = CliRunner().invoke(app, ["check", str(trained)], env={"COLUMNS": "200"})
    assert "from the same weights in torch" in whole.stdout
