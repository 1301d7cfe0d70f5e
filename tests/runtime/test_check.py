import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from support.listed_files import list_files
from typer.testing import CliRunner

from llmc.cli import app
from llmc.contracts.part import LimitRecord
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import CausalLM
from llmc.errors import InputError
from llmc.runtime import CheckReport, load
from llmc.runtime.check import Answers, compare
from llmc.runtime.divergence import divergence
from llmc.runtime.gates import gates


@pytest.fixture(scope="module")
def report(trained: Path) -> tuple[CheckReport, list[tuple[Any, ...]]]:
    seen = []
    with load(trained, threads=1) as model:
        return model.check(lambda _, done, total: seen.append((done, total))), seen


@pytest.fixture(scope="module")
def torch_logprobs(trained: Path) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """What the quantized torch model says about the check text, float64 [N, P, V], and the reference."""
    reference = load_file(trained / "reference.safetensors")
    model = CausalLM.load(Checkpoint.open(trained))
    ids = torch.from_numpy(reference["input_ids"]).long()
    return model.logits(model.hidden(ids))[:, :-1].double().log_softmax(-1).numpy(), reference


def test_statistics_are_those_of_the_plain_formulas(
    report: tuple[CheckReport, list[tuple[Any, ...]]], torch_logprobs: tuple[NDArray[Any], dict[str, NDArray[Any]]]
) -> None:
    measured, seen = report
    logprobs, reference = torch_logprobs
    ids, top_ids = reference["input_ids"].astype(int), reference["top_ids"].astype(int)
    true = np.array([[logprobs[n, i, ids[n, i + 1]] for i in range(ids.shape[1] - 1)] for n in range(len(ids))])
    windows = np.exp(-true.mean())
    assert measured.ppl == pytest.approx(windows, rel=1e-5)
    assert measured.ppl_original == pytest.approx(np.exp(-reference["true_logprobs"].astype(float).mean()), rel=1e-6)
    assert measured.ppl_stderr == pytest.approx(windows * true.mean(1).std(ddof=1) / 2, rel=1e-4)  # 4 windows
    change = (true - reference["true_logprobs"].astype(float)).mean(1)  # of a window, which both read
    paired = measured.ppl / measured.ppl_original * change.std(ddof=1) / 2
    assert measured.ppl_increase_stderr == pytest.approx(paired, rel=1e-3)
    assert measured.ppl_increase_stderr < measured.ppl_stderr / measured.ppl / 3  # much of the spread is the text's
    kl = []
    for n in range(len(ids)):
        for i in range(ids.shape[1] - 1):
            p, q = reference["top_logprobs"][n, i].astype(float), logprobs[n, i, top_ids[n, i]]
            drawn, q_drawn = reference["tail_logprobs"][n, i].astype(float), logprobs[n, i, reference["tail_ids"][n, i]]
            tail = [d - 1 + math.exp(-d) for d in drawn - q_drawn]
            kept = (np.exp(p) * (p - q) - np.exp(p) + np.exp(q)).sum()
            kl.append(kept + reference["tail_mass"][n, i] * sum(tail) / len(tail))
    assert measured.kl_mean == pytest.approx(np.mean(kl), rel=1e-3)
    by_window = np.reshape(kl, (len(ids), -1)).mean(1)
    assert measured.kl_mean_stderr == pytest.approx(by_window.std(ddof=1) / 2, rel=1e-2)
    assert measured.kl_max == pytest.approx(np.max(kl), rel=1e-2)
    assert measured.kl_p99 == pytest.approx(np.quantile(kl, 0.99), rel=1e-2)
    assert measured.top1 == pytest.approx((logprobs.argmax(-1) == top_ids[..., 0]).mean(), abs=2 / len(kl))
    agreed = (logprobs[:, :, :].argmax(-1) == top_ids[..., 0]).mean(1)
    assert measured.top1_stderr == pytest.approx(agreed.std(ddof=1) / 2, rel=0.2)
    p_change = np.exp(true) - np.exp(reference["true_logprobs"])
    assert measured.p_change == pytest.approx(p_change.mean(), abs=1e-6)
    assert measured.p_change_stderr == pytest.approx(p_change.mean(1).std(ddof=1) / 2, rel=1e-2)
    assert measured.p_change_rms == pytest.approx(np.sqrt((p_change**2).mean()), rel=1e-3)
    over = np.reshape(kl, (len(ids), -1)) > 0.1
    assert measured.kl_above_0_1 == pytest.approx(over.mean(), abs=2 / len(kl))
    assert measured.kl_above_0_1_stderr == pytest.approx(over.mean(1).std(ddof=1) / 2, rel=0.2)
    assert measured.kl_mean < measured.ends["kl_mean"]["90"] < measured.ends["kl_mean"]["99"]
    assert measured.ends["top1"]["95"] < measured.top1
    assert measured.ppl / measured.ppl_original - 1 < measured.ends["ppl_increase"]["95"] < 0.05
    assert sum(each.tokens for each in measured.kl_by_kind) == len(kl)
    named = {each.kind: each.tokens for each in measured.kl_by_kind}
    assert named.keys() >= {"word start", "word part", "punctuation", "space"}
    assert measured.worst[0].kl == measured.kl_max and len(measured.worst) == 10
    assert measured.tokens == len(kl) and seen[-1] == (len(kl), len(kl))


def test_onnx_runtime_says_what_the_quantized_torch_model_says(
    trained: Path, torch_logprobs: tuple[NDArray[Any], dict[str, NDArray[Any]]]
) -> None:
    """Per-token KL divergence between the two below 1e-4 at accuracy level 1, over the whole vocabulary."""
    logprobs, reference = torch_logprobs
    with load(trained, threads=1) as model:
        for row, ids in enumerate(reference["input_ids"].astype(np.int64)[:, :-1]):
            every = np.arange(len(ids))[None]
            logits, _ = model.backend.forward("main", model.backend.new_cache(1), ids[None], np.array([0]), every)
            said = torch.from_numpy(logits[0]).double().log_softmax(-1).numpy()
            kl = (np.exp(logprobs[row]) * (logprobs[row] - said)).sum(-1)
            assert kl.max() < 1e-4


def compared(reference: dict[str, NDArray[Any]], said: Answers) -> CheckReport:
    return compare(reference, said, divergence(reference, said.top, said.tail, 1000))


def test_a_reference_without_a_sample_gives_a_lower_bound_that_is_called_one(
    trained: Path, tmp_path: Path, report: tuple[CheckReport, list[tuple[Any, ...]]]
) -> None:
    copy = shutil.copytree(trained, tmp_path / "copy")
    file = copy / "reference.safetensors"
    save_file({name: each for name, each in load_file(file).items() if not name.startswith("tail")}, file)
    list_files(copy, file.name)
    done = CliRunner().invoke(app, ["check", str(copy)])
    assert done.exit_code == 0, done.output
    assert "furthest from the original" in done.stdout and "KL by position" in done.stdout
    assert "word start" in done.stdout
    assert "KL, a lower bound" in done.stdout and "KL divergence" not in done.stdout
    with load(copy, threads=1) as model:
        found = model.check()
    assert found.kl_kind == "lower bound" and found.kl_sampling_stderr is None
    assert 0.3 * report[0].kl_mean < found.kl_mean < report[0].kl_mean
    assert (found.ppl, found.top1, found.p_change) == (report[0].ppl, report[0].top1, report[0].p_change)


def test_a_model_against_itself_and_gates(report: tuple[CheckReport, list[tuple[Any, ...]]]) -> None:
    rng = np.random.default_rng(0)
    logprobs = np.log(rng.dirichlet(np.ones(100), size=(3, 10)))
    order = np.argsort(-logprobs, axis=-1)[..., :64]
    reference = {
        "top_ids": order,
        "top_logprobs": np.take_along_axis(logprobs, order, -1),
        "true_logprobs": logprobs[..., 0],
    }
    top, true, ids = reference["top_logprobs"], reference["true_logprobs"], logprobs.argmax(-1)
    same = compared(reference, Answers(top, None, true, ids))
    assert same.kl_max == pytest.approx(0, abs=1e-9) and same.top1 == 1 and same.ppl == same.ppl_original
    worse = compared(reference, Answers(top - 0.1, None, true - 0.1, logprobs.argmin(-1)))
    assert worse.ppl == pytest.approx(same.ppl * math.exp(0.1)) and worse.top1 == 0 and worse.kl_mean > 0
    held = {gate.name: gate for gate in gates(worse, {"ppl_increase": 0.05, "kl_mean": 10.0, "top1": 0.9})}
    assert not held["ppl_increase"].passed and held["ppl_increase"].value == pytest.approx(math.exp(0.1) - 1)
    assert held["kl_mean"].passed and not held["top1"].passed
    end = worse.ends["kl_mean"]["95"]
    for limit in (end * 1.0001, end * 0.9999):
        (gate,) = gates(worse, {"kl_mean": LimitRecord(limit=limit, confidence=95)})
        assert gate.passed == (limit > end) and gate.end == end > gate.value == worse.kl_mean
    low = LimitRecord(limit=worse.top1, confidence=99)
    assert gates(same, {"top1": low})[0].passed and gates(worse, {"top1": worse.top1})[0].passed
    with pytest.raises(InputError, match=r"gate 'kl_mean': a confidence of 97 % is not known here, only 90, 95, 99"):
        gates(worse, {"kl_mean": LimitRecord(limit=1.0, confidence=97)})
    with pytest.raises(InputError, match=r"gate 'top5' is not known to this llmc, only ppl_increase, kl_mean, top1"):
        gates(worse, {"top5": 0.9})
    measured, _ = report
    assert [gate.name for gate in measured.gates] == ["ppl_increase", "kl_mean", "top1", "runtime_kl"]
    assert measured.passed
    assert measured.to_json()["gates"][0]["limit"] == 0.05


def test_one_window_has_the_standard_error_of_its_tokens() -> None:
    logprobs = np.log(np.random.default_rng(0).dirichlet(np.ones(20), size=(1, 500)))
    reference = {
        "top_ids": np.argsort(-logprobs)[..., :4],
        "top_logprobs": -np.sort(-logprobs)[..., :4],
        "true_logprobs": logprobs[..., 0],
    }
    said = Answers(reference["top_logprobs"], None, reference["true_logprobs"], logprobs.argmax(-1))
    report = compared(reference, said)
    expected = report.ppl * logprobs[0, :, 0].std(ddof=1) / math.sqrt(500)
    assert report.ppl_stderr == report.ppl_original_stderr == pytest.approx(expected)


def test_without_a_reference_there_is_nothing_to_check(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    (copy / "reference.safetensors").unlink()
    manifest = json.loads((copy / "llmc.json").read_text())
    del manifest["files"]["reference.safetensors"]
    (copy / "llmc.json").write_text(json.dumps(manifest))
    with load(copy, threads=1) as model, pytest.raises(InputError, match=r"reference\.safetensors: missing"):
        model.check()


def test_logits_that_are_not_finite_fail_the_check(trained: Path) -> None:
    with load(trained, threads=1) as model:
        forward = model.backend.forward

        def broken(*arguments: Any) -> tuple[NDArray[Any], NDArray[Any] | None]:
            logits, hidden = forward(*arguments)
            logits[0, 0, 0] = np.nan
            return logits, hidden

        model.backend.forward = broken  # type: ignore[assignment]
        with pytest.raises(InputError, match="NaN or infinity in window 0"):
            model.check()
