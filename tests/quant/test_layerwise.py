import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.layerwise_pass import Stop, files, random_ids, run_pass
from support.random_checkpoint import LLAMA, random_checkpoint

from llmc.contracts.progress import ProgressFunction
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import CausalLM, load_layer
from llmc.errors import InputError, MachineError
from llmc.quant.activation_file import ActivationFile
from llmc.quant.assign import Rule
from llmc.quant.layerwise import QuantizeOptions
from llmc.quant.mlp_calibration import ExpertTokens
from llmc.quant.result import QuantizeResult

RULES = [Rule("experts", "int4-g32"), Rule("attention", "fp8-block", "rtn")]


def run(
    source: Path,
    directory: Path,
    rules: list[Rule] = RULES,
    keep: float | None = None,
    calibration: torch.Tensor | None = None,
    progress: ProgressFunction = lambda *_: None,
    memory: int = 1 << 32,
    experts: ExpertTokens = "routed",
) -> QuantizeResult:
    calibration = random_ids(48, 32) if calibration is None else calibration
    options = QuantizeOptions(memory, experts)
    return run_pass(
        source, directory, rules, calibration, random_ids(4, 24, 1), keep, progress=progress, options=options
    )


@pytest.fixture(scope="module")
def finished(prunable: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QuantizeResult]:
    directory = tmp_path_factory.mktemp("finished")
    return directory, run(prunable, directory, keep=2 / 3)


def test_the_result_opens_and_every_promised_parameter_is_quantized(
    prunable: Path, finished: tuple[Path, QuantizeResult]
) -> None:
    directory, result = finished
    before, after = Checkpoint.open(prunable), Checkpoint.open(directory / "out")
    assert after.spec.mlps[1].router.num_experts == 8
    experts = 2 * 8 * 3 * 64 * 64
    assert result.roles["experts"].to_json() == {"expected": experts, "quantized": experts}
    assert after.quantized("model.layers.1.mlp.experts.7.down_proj").block == (1, 32)
    assert after.quantized("model.layers.2.self_attn.o_proj").code_type == "float8_e4m3fn"
    assert after.quantized("model.layers.2.self_attn.kv_b_proj") is None
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.up_proj.weight"):
        assert torch.equal(after.stored(name).read(), before.stored(name).read())


def test_the_mtp_layer_is_inside_and_pruned_like_the_rest(
    prunable: Path, finished: tuple[Path, QuantizeResult]
) -> None:
    directory, result = finished
    before, after = Checkpoint.open(prunable), Checkpoint.open(directory / "out")
    assert after.spec.num_mtp_layers == 1
    kept = result.experts["3"].survivors
    assert len(kept) == 8 and all(sum(3 * g <= e < 3 * g + 3 for e in kept) == 2 for g in range(4))
    for new, old in enumerate(kept):
        name = "model.layers.3.mlp.experts.{}.gate_proj.weight"
        assert torch.equal(after.tensor(name.format(new)), before.tensor(name.format(old)))
    for name in ("weight", "e_score_correction_bias"):
        gate = f"model.layers.3.mlp.gate.{name}"
        assert torch.equal(after.tensor(gate), before.tensor(gate)[kept])


def test_reported_perplexities_are_those_of_the_two_models(
    prunable: Path, finished: tuple[Path, QuantizeResult]
) -> None:
    directory, result = finished
    text = random_ids(4, 24, 1)
    for path, reported in ((prunable, result.ppl_original), (directory / "out", result.ppl)):
        model = CausalLM.load(Checkpoint.open(path))
        logits = model.logits(model.hidden(text))[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
        assert reported == pytest.approx(loss.exp().item(), rel=1e-4)


def test_the_reference_is_what_the_original_says(prunable: Path, finished: tuple[Path, QuantizeResult]) -> None:
    directory, _ = finished
    reference = load_file(directory / "out" / "reference.safetensors")
    model = CausalLM.load(Checkpoint.open(prunable))
    said = model.logits(model.hidden(reference["input_ids"].long()))[:, :-1].log_softmax(-1)
    assert reference["top_ids"].shape == reference["tail_ids"].shape == (4, 23, 64)
    rest = said.exp().scatter(-1, reference["top_ids"].long(), 0.0).sum(-1)
    torch.testing.assert_close(reference["tail_mass"], rest, atol=1e-5, rtol=1e-4)
    drawn = said.gather(-1, reference["tail_ids"].long())
    torch.testing.assert_close(reference["tail_logprobs"], drawn, atol=1e-4, rtol=1e-4)
    assert (reference["top_ids"][..., None] != reference["tail_ids"][..., None, :]).all()
    torch.testing.assert_close(reference["top_logprobs"], said.topk(64).values, atol=1e-4, rtol=1e-4)
    true = said.gather(-1, reference["input_ids"][:, 1:, None].long())[..., 0]
    torch.testing.assert_close(reference["true_logprobs"], true, atol=1e-4, rtol=1e-4)


def test_stacked_experts_lie_one_behind_the_other(finished: tuple[Path, QuantizeResult]) -> None:
    after = Checkpoint.open(finished[0] / "out")
    for part in ("weight_packed", "weight_scale"):
        stored = [after.stored(f"model.layers.1.mlp.experts.{e}.down_proj.{part}") for e in range(8)]
        assert all(a.offset + a.nbytes == b.offset for a, b in itertools.pairwise(stored))


def test_gptq_beats_rounding_where_it_counts(prunable: Path, tmp_path: Path) -> None:
    errors = {}
    for method in ("gptaq", "gptq", "rtn"):
        rules = [Rule(role, "int4-g32", method) for role in ("experts", "shared_experts", "dense_mlp")]
        result = run(prunable, tmp_path / method, rules, calibration=random_ids(96, 32))
        errors[method] = result.layer_errors[-1]
    assert errors["gptaq"] < errors["gptq"] < 0.95 * errors["rtn"]


def test_experts_in_portions_give_the_same_bytes(
    prunable: Path, finished: tuple[Path, QuantizeResult], tmp_path: Path
) -> None:
    portions = []

    def progress(phase: str, done: int, total: int, layer: int, layers: int) -> None:
        if (phase, done) == ("gate and up", total):
            portions.append(layer)

    run(prunable, tmp_path, keep=2 / 3, memory=1 << 17, progress=progress)
    assert portions.count(1) > 1
    assert files(tmp_path) == files(finished[0])


def test_experts_with_too_few_tokens_have_others_blended_in_and_say_so(prunable: Path, tmp_path: Path) -> None:
    result = run(prunable, tmp_path, calibration=random_ids(2, 16))
    experts = {name: report for name, report in result.modules.items() if ".experts." in name}
    few = [report for report in experts.values() if (report.tokens or 0) < 2 * 64 / 3]
    assert few and all((report.fallback or "").startswith("all-token Hessian blended in") for report in few)


def test_experts_calibrated_on_all_tokens_see_all_tokens(prunable: Path, tmp_path: Path) -> None:
    tokens = {}
    for mode in ("routed", "shared", "all"):
        result = run(prunable, tmp_path / mode, [Rule("experts", "int4-g32")], experts=mode)
        for end in ("gate_proj", "down_proj"):
            tokens[mode, end] = {r.tokens for name, r in result.modules.items() if name.endswith(end)}
    every = {48 * 32}
    assert tokens["all", "gate_proj"] == tokens["all", "down_proj"] == tokens["shared", "gate_proj"] == every
    assert not (tokens["shared", "down_proj"] | tokens["routed", "down_proj"]) & every
    assert sum(tokens["routed", "gate_proj"]) < 48 * 32 * 12


def test_what_the_mtp_layer_reads_is_the_quantized_model(prunable: Path, tmp_path: Path) -> None:
    """Its calibration goes through embedding, norms and eh_proj: with those, GPTAQ beats rounding."""
    errors = {}
    for method in ("gptaq", "rtn"):
        rules = [Rule(r"re:model\.layers\.3\.(eh_proj|mlp\..*)", "int3-g32", method)]
        run(prunable, tmp_path / method, rules)
        models = [CausalLM.load(Checkpoint.open(path)) for path in (prunable, tmp_path / method / "out")]
        text = random_ids(16, 24, 1)
        original, quantized = (m.mtp(text[:, 1:], m.hidden(text)[:, :-1]) for m in models)
        errors[method] = (quantized - original).norm() / original.norm()
    assert errors["gptaq"] < 0.96 * errors["rtn"]


def test_a_family_without_experts(tmp_path: Path) -> None:
    source = random_checkpoint(tmp_path / "llama", LLAMA | {"intermediate_size": 128})
    result = run(source, tmp_path, [Rule("dense_mlp", "int4-g64"), Rule("attention", "fp8-channel", "rtn")])
    assert result.roles["dense_mlp"].quantized == 2 * 3 * 64 * 128
    with pytest.raises(InputError, match="no experts to prune"):
        run(source, tmp_path / "pruned", [Rule("dense_mlp", "int4-g64")], keep=0.5)


def test_weights_that_are_stored_in_the_scheme_already_are_not_rounded_again(
    finished: tuple[Path, QuantizeResult], tmp_path: Path
) -> None:
    result = run(finished[0] / "out", tmp_path)
    assert {report.method for report in result.modules.values()} == {"kept as stored"}
    before, after = Checkpoint.open(finished[0] / "out"), Checkpoint.open(tmp_path / "out")
    for name in before.names():
        assert torch.equal(before.tensor(name), after.tensor(name))


def test_mtp_layers_are_quantized_when_named(prunable: Path, tmp_path: Path) -> None:
    result = run(prunable, tmp_path, [Rule("re:model.layers.3.mlp.experts.*", "int4-g32")])
    assert result.roles["mtp"].quantized == 12 * 3 * 64 * 64
    original, quantized = (load_layer(Checkpoint.open(path), 3) for path in (prunable, tmp_path / "out"))
    assert not torch.equal(original.mlp.experts[0].up_proj.weight, quantized.mlp.experts[0].up_proj.weight)


@pytest.mark.parametrize("moment", [1, 4, 9, 12, 15])
def test_an_interrupted_pass_goes_on_and_ends_in_the_same_bytes(
    prunable: Path, finished: tuple[Path, QuantizeResult], tmp_path: Path, moment: int
) -> None:
    steps = iter(range(1000))

    def stop(*_: Any) -> None:
        if next(steps) == moment:
            raise Stop

    with pytest.raises(Stop):
        run(prunable, tmp_path, keep=2 / 3, progress=stop)
    layers = set()
    run(prunable, tmp_path, keep=2 / 3, progress=lambda phase, done, total, layer, _: layers.add(layer))
    assert files(tmp_path) == files(finished[0])
    if moment >= 9:
        assert 0 not in layers  # the first layer was not done again


def test_killed_and_resumed(prunable: Path, finished: tuple[Path, QuantizeResult], tmp_path: Path) -> None:
    """kill -9 in the middle, for real; the marker of the first layer tells when."""
    code = (
        "import sys, time; sys.path[:0] = sys.argv[3:5]\n"
        "from pathlib import Path\n"
        "import test_layerwise as t\n"
        "t.run(Path(sys.argv[1]), Path(sys.argv[2]), keep=2 / 3, progress=lambda *_: time.sleep(0.2))\n"
    )
    here = Path(__file__).parent
    child = subprocess.Popen([sys.executable, "-c", code, str(prunable), str(tmp_path), str(here), str(here.parent)])
    marker = tmp_path / "work" / "layer-00000.json"
    deadline = time.monotonic() + 120
    while not marker.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert marker.exists() and not (tmp_path / "out" / "config.json").exists()
    run(prunable, tmp_path, keep=2 / 3)
    assert files(tmp_path) == files(finished[0])


def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(MachineError, match="no space left on the disk"):
        ActivationFile(tmp_path, "check", 0, (2, 4, 8)).create()


def test_config_names_exactly_the_quantized_modules(finished: tuple[Path, QuantizeResult]) -> None:
    import re

    config = json.loads((finished[0] / "out" / "config.json").read_text())["quantization_config"]
    assert config["format"] == "mixed-precision"
    checkpoint = Checkpoint.open(finished[0] / "out")
    modules = {name.removesuffix(".weight") for name in checkpoint.names() if name.endswith("_proj.weight")}
    for group in config["config_groups"].values():
        matched = {m for m in modules for t in group["targets"] if re.match(t.removeprefix("re:"), m)}
        stored = {
            m
            for m in modules
            if (w := checkpoint.quantized(m)) and (w.code_type == "int4") == (group["format"] == "pack-quantized")
        }
        assert matched == stored
    ignored = {m for m in modules for t in config["ignore"] if re.match(t.removeprefix("re:"), m)}
    assert ignored == {m for m in modules if checkpoint.quantized(m) is None}
