"""What can be seen of ci/gpu/ without a GPU: that it says so, and how it counts."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "ci/gpu"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if path.name != "device.py")


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    for each in ("device", name):
        monkeypatch.delitem(sys.modules, each, raising=False)
    return importlib.import_module(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("name", SCRIPTS)
def test_without_a_gpu_one_line_says_so(name: str) -> None:
    done = subprocess.run([sys.executable, FOLDER / name], capture_output=True, text=True)
    assert done.returncode == 4 and not done.stdout
    assert f"{name} needs a CUDA device" in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_work_of_latent_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = script("latent_attention", monkeypatch)
    # One token behind 9 others; and two tokens, of which the first does not see the second.
    assert attention.work(1, [10]) == (10, 2 * 128 * 10 * (576 + 512))
    assert attention.work(2, [10, 5]) == (15, 2 * 128 * (10 + 9 + 5 + 4) * (576 + 512))


def test_the_work_of_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    experts = script("mixture_of_experts", monkeypatch)
    index = torch.tensor([[0, 1], [1, 2]])  # three experts, four choices
    read, flops = experts.work(experts.R1, "fp8", index)
    assert flops == 2 * 4 * 3 * 7168 * 2048
    assert read == 3 * 3 * (7168 * 2048 + 4 * 56 * 16)
    read, _ = experts.work(experts.R1, "int4", index)
    assert read == 3 * 3 * (7168 * 2048 // 2 + 2 * 7168 * 2048 // 128)
