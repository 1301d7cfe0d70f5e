"""What can be known of ci/gpu/ without a GPU: what its scripts count, and that they say what they lack."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "ci" / "gpu"
SCRIPTS = ("all", "engine", "gptq", "grouped_query_attention", "latent_attention", "linear", "mixture_of_experts")
SHARED = ("expert_stacks", "this_gpu")


@pytest.fixture(autouse=True)
def _beside_each_other(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    yield
    for name in SHARED:
        sys.modules.pop(name, None)


def script(name: str, run_name: str = "gpu_check") -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / f"{name}.py"), run_name=run_name)


def test_every_script_is_known() -> None:
    assert {file.stem for file in FOLDER.glob("*.py")} == {*SCRIPTS, *SHARED}
    assert {*script("all")["CHECKS"], "all"} == set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_without_a_gpu_there_is_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", [name, *(["artifact"] if name == "engine" else [])])
    with pytest.raises(SystemExit) as ended:
        script(name, "__main__")
    assert ended.value.code == 4
    said = capsys.readouterr()
    assert said.err.splitlines() == [f"ci/gpu/{name}.py needs a CUDA device, and torch finds none here"]
    assert not said.out


def test_what_latent_attention_reads_and_computes() -> None:
    found = script("latent_attention")
    read_bytes, flops, shape = found["read_bytes"], found["flops"], found["LatentShape"]
    r1 = shape(128, 512, 64, "bf16")
    assert read_bytes([1024], r1) == 1_179_648  # 1024 entries of 576 numbers of 2 bytes
    assert read_bytes([1024, 1000], replace(r1, float8=True)) == 1_165_824
    # One token: 128 heads, 1024 entries, 576 multiplications for the score and 512 for the sum.
    assert flops([1024], 1, r1) == 2 * 128 * 1024 * 1088 == 285_212_672
    # Three tokens that end a sequence of five see 3, 4 and 5 entries.
    assert flops([5], 3, r1) == 2 * 128 * 12 * 1088
    assert flops([5, 3], 3, r1) == 2 * 128 * (12 + 6) * 1088
    # As the docstring says.
    assert round(flops([1 << 17], 1, r1) / read_bytes([1 << 17], r1)) == 242


def test_what_expanded_prompts_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that sees one entry has its value."""
    found = script("latent_attention")
    monkeypatch.setitem(found["prompt"].__globals__, "DEVICE", "cpu")
    shape = found["ExpandedShape"](4, 32, 16, 8, 24, "bf16")
    # Three tokens that end a sequence of five see 12 entries together; five are expanded to keys and values.
    assert found["prompt_flops"]([5], 3, shape) == 2 * 4 * (12 * (16 + 8 + 24) + 5 * 32 * (16 + 24))
    given = found["prompt"](1, 1, 1, shape)
    latent = given.absorbed.entries(0)[0, :32]
    values = torch.einsum("r,hrv->hv", latent, given.value_weight.double()).view(1, 1, -1)
    assert found["prompt_difference"](given, values, shape) < 1e-9 < found["prompt_difference"](given, -values, shape)


def test_what_experts_read_and_compute() -> None:
    found = script("mixture_of_experts")
    r1, qwen3 = found["MODELS"].values()
    weights = 3 * 7168 * 2048  # 44,040,192 of an expert
    assert found["expert_bytes"](r1) == 2 * weights == 88_080_384
    int4 = replace(r1, gate_up=found["INT4"], down=found["INT4"])
    assert found["expert_bytes"](int4) == weights // 2 + 2 * weights // 128 == 22_708_224
    fp8 = replace(r1, gate_up=found["FP8"], down=found["FP8"])
    assert found["expert_bytes"](fp8) == weights + 4 * 3 * 56 * 16 == 44_050_944  # blocks of 128 x 128
    assert found["expert_bytes"](replace(qwen3, gate_up=found["INT4"], down=found["INT4"])) == 2_433_024
    assert found["flops"](r1, 1) == 2 * 8 * weights == 704_643_072
    assert found["flops"](qwen3, 4096) == 309_237_645_312


def test_what_grouped_heads_read_and_multiply() -> None:
    found = script("grouped_query_attention")
    llama, windowed = found["SHAPES"]["Llama-3.1-8B"], found["SHAPES"]["gpt-oss, window"]
    one, prompt = found["STEPS"]["one sequence"], found["STEPS"]["a prompt"]
    assert found["read_bytes"](llama, one) == 32768 * 4096 and found["read_bytes"](windowed, one) == 128 * 2048
    assert found["flops"](llama, prompt) == 2 * (4096 * 4097 // 2) * 32 * 256
    assert found["flops"](windowed, one) == 2 * 128 * 64 * 128


@pytest.mark.parametrize("name", ["gpt-oss, window", "MiMo-V2-Flash", "Gemma-2-9B"])
def test_what_grouped_heads_are_held_against(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that sees one entry has its value; with a sink, a share of it."""
    found = script("grouped_query_attention")
    monkeypatch.setitem(found["tensors"].__globals__, "DEVICE", "cpu")
    shape = found["SHAPES"][name]
    given = found["tensors"](shape, found["Step"]((2, 9), 2))
    exact = found["exact"](shape, 0.1, given, 0, 0)
    value = given[2][0, :, 0].double().repeat_interleave(shape.heads_per_group, 0)
    share = exact / value
    assert ((share > 0) & (share < 1)).all() if shape.sinks else torch.allclose(exact, value)
    assert not torch.allclose(found["exact"](shape, 0.1, given, 1, 1), value)


def test_what_a_product_reads() -> None:
    found = script("linear")
    of_int4, of_fp8 = (found["shapes"]()["q_a_proj", form] for form in ("int4 g128", "fp8 128x128"))
    assert found["weight_bytes"](of_int4) == 7168 * 1536 // 2 + 2 * 56 * 1536 == 5_677_056
    assert found["weight_bytes"](of_fp8) == 7168 * 1536 + 4 * 56 * 12 == 11_012_736


@pytest.mark.parametrize("kind", ["uniform", "hot", "some empty"])
def test_routings_are_what_they_are_called(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = script("mixture_of_experts")
    monkeypatch.setitem(found["routing"].__globals__, "DEVICE", "cpu")
    for shape in found["CHECKED"].values():
        index = found["routing"](kind, 300, shape, torch.Generator().manual_seed(0))
        chosen = set(index.unique().tolist())
        if kind == "hot":
            assert chosen == {shape.experts - 1}
            continue
        assert chosen == set(range(shape.experts) if kind == "uniform" else range(1, shape.top_k + 2))
        assert all(len(set(row)) == shape.top_k for row in index.tolist())


def test_the_peers_say_what_the_experts_say(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(torch.nn.functional, "grouped_mm"):
        pytest.skip("this torch has no grouped_mm")
    monkeypatch.setattr(__import__("this_gpu"), "DEVICE", "cpu")
    found = script("mixture_of_experts")
    plain = found["PLAIN"]
    shape = replace(found["CHECKED"]["ragged"], hidden=64, inner=32)
    generator = torch.Generator().manual_seed(0)
    gate, up, down = (found["known"](plain, 7, *size, generator) for size in ((32, 64), (32, 64), (64, 32)))
    gate_up = torch.cat([gate.stored[0], up.stored[0]], 1)
    for kind in found["ROUTINGS"]:
        given = found["inputs_of"](kind, 9, shape, generator)
        want = found["exact"](given, gate, up, down)
        for peer in found["PEERS"].values():
            assert found["difference_of_rows"](peer(given, gate_up, down.stored[0]), want) < found["TOLERANCE"]


def test_the_nearest_engine() -> None:
    nearest = script("engine")["nearest"]
    assert nearest(90, {(80, 86), (89, 120)}) == [89, 86]
    assert nearest(100, {(90, 110), (120,)}) == [90, 120]


def test_a_crash_is_reported_and_not_suffered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    attempt = script("engine")["attempt"]
    crash = tmp_path / "crash.py"
    crash.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.setitem(attempt.__globals__, "__file__", str(crash))
    assert attempt(Namespace(artifact="artifact", backend="tensorrt-rtx"), "89") == -9
    assert "ended by SIGKILL" in capfd.readouterr().out


def test_what_all_checks_runs() -> None:
    found = script("all")
    assert list(found["commands"](list(found["CHECKS"]), None)) == [
        "build", "gptq", "latent_attention", "grouped_query_attention", "mixture_of_experts", "linear", "engine"
    ]  # fmt: skip
    given = found["commands"](["engine"], "somewhere")
    assert [command[1:] for command in given.values()] == [[str(FOLDER / "engine.py"), "somewhere"]]
    assert [found["verdict"](code) for code in (0, 5)] == ["passed", "no engine is for this GPU"]
    assert found["verdict"](1).startswith("FAILED") and found["verdict"](-11).startswith("FAILED")


WITHOUT = """
import importlib, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {lacking}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
for name in {scripts}:
    importlib.import_module(name)
from llmc.convert.kernels.kernel_sets import KernelRequest, kernel_set
from llmc.runtime.plugins.append_float8 import EntryShape
assert kernel_set(KernelRequest("AppendFloat8", EntryShape(16, "bf16")), {{}}).key
"""
LACKING = ("pydantic", "pydantic_core", "tensorrt", "tensorrt_rtx", "compressed_tensors", "transformers")


def test_a_bare_machine_can_run_what_needs_no_more_than_torch_and_triton() -> None:
    program = WITHOUT.format(lacking=LACKING, scripts=SCRIPTS)
    environment = os.environ | {"PYTHONPATH": f"{FOLDER}:{FOLDER.parents[1]}"}
    done = subprocess.run([sys.executable, "-P", "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


SHOWS = """
from rich.table import Table
from this_gpu import show
table = Table("tokens", "ms", title="a title")
table.add_row("1", "0.5")
show(table)
"""


def test_a_run_is_kept_under_the_name_of_the_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One check passes, one fails, and one lacks a package."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    properties = Namespace(major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(sys, "argv", ["all.py"])
    monkeypatch.setenv("PYTHONPATH", f"{FOLDER}:{FOLDER.parents[1]}")
    programs = {"gptq": SHOWS, "latent_attention": "1 / 0", "engine": ""}
    main = script("all")["main"]
    monkeypatch.setitem(main.__globals__, "RESULTS", tmp_path)
    monkeypatch.setitem(main.__globals__, "ROOT", tmp_path)
    needs = {name: ("no_such.package" if name == "engine" else "torch",) for name in programs}
    monkeypatch.setitem(main.__globals__, "NEEDS", needs)
    commands = {name: [sys.executable, "-P", "-c", program] for name, program in programs.items()}
    monkeypatch.setitem(main.__globals__, "commands", lambda only, artifact: commands)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    found = json.loads((tmp_path / "nvidia-h100-80gb-hbm3.json").read_text())
    results = {check["check"]: check["result"] for check in found["checks"]}
    assert results == {
        "gptq": "passed",
        "latent_attention": "FAILED, exit code 1",
        "engine": "skipped: no_such.package is not installed",
    }
    kept = {"title": "a title", "caption": "", "columns": ["tokens", "ms"], "rows": [["1", "0.5"]]}
    assert (found["sm"], found["checks"][0]["tables"]) == (90, [kept])
    monkeypatch.syspath_prepend(FOLDER.parent / "docs")
    page = runpy.run_path(str(FOLDER.parent / "docs" / "gpu_results.py"))["page"]
    assert "## NVIDIA H100 80GB HBM3" in page(tmp_path) and "| 1 | 0.5 |" in page(tmp_path)
    assert "No run has been recorded" in page(tmp_path / "none")


def test_a_check_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = script("all")
    run, verdict = found["run"], found["verdict"]
    monkeypatch.setitem(run.__globals__, "LIMIT", 0.1)
    code = run([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "tables")
    assert (code, verdict(code)) == (None, "FAILED, not done after 0.1 s")
