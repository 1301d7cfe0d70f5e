"""A GPU is given kernels that its driver loads: from SM 90 on, those of its own architecture."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llmc.contracts.kernels import CompiledFor, KernelSetDescription
from llmc.convert.engines.grouped_topk import routing_shape
from llmc.convert.kernels import kernel_sets as module
from llmc.convert.kernels.kernel_sets import CUBINS, KernelRequest, cubin_sm, kernel_sets
from llmc.convert.spec import RouterSpec
from llmc.errors import InputError, MachineError
from llmc.runtime.plugins.append_float8 import EntryShape
from llmc.runtime.plugins.grouped_query_attention import GroupedQueryShape
from llmc.runtime.plugins.kernel_set import KernelSet
from llmc.runtime.plugins.latent_attention import LatentShape
from llmc.runtime.plugins.linear import LinearShape
from llmc.runtime.plugins.mixture_of_experts import ExpertsShape, ExpertWeights

pytest.importorskip("triton", reason="Triton, which comes with torch for NVIDIA GPUs, is not installed")


@pytest.mark.parametrize("sm", CUBINS)
def test_a_cubin_is_for_the_gpu_that_was_asked_for(sm: int, tmp_path: Path) -> None:
    from triton import knobs

    from llmc.convert.kernels.ahead_of_time import compile_kernel
    from llmc.convert.kernels.append_float8 import sources

    file = tmp_path / "append.cubin"
    made = compile_kernel(sources(EntryShape(576, "bf16"), cubin_sm(sm))["append"], cubin_sm(sm))
    file.write_bytes(made.cubin)
    told = subprocess.run([knobs.nvidia.cuobjdump.path, "-elf", file], capture_output=True, text=True, check=True)
    assert re.findall(r"elf: .* sm=(\w+),", told.stdout, re.IGNORECASE) == [f"{sm}a" if sm >= 90 else str(sm)]


INT4, FP8, PLAIN = (
    ExpertWeights("int4", 128, 1, "bf16"), ExpertWeights("fp8", 128, 128, "fp32"), ExpertWeights("plain"),
)  # fmt: skip
SHAPES: dict[str, list[Any]] = {
    "AppendFloat8": [EntryShape(576, "bf16")],
    "GroupedQueryAttention": [GroupedQueryShape(32, 8, channels, channels, "bf16") for channels in (64, 128, 256)],
    "GroupedTopK": [routing_shape(RouterSpec(256, 8, 8, 4, "sigmoid", True, True, 2.5), "bf16")],
    "LatentAttention": [
        LatentShape(heads, 512, 64, "bf16", float8) for heads in (16, 20, 128) for float8 in (False, True)
    ],
    "Linear": [LinearShape(7168, 1536, "bf16", weight) for weight in (INT4, FP8)],
    "MixtureOfExperts": [
        ExpertsShape(256, 8, 7168, 2048, "bf16", "bf16", weight, weight) for weight in (INT4, FP8, PLAIN)
    ],
}


@pytest.mark.parametrize("operation", SHAPES)
@pytest.mark.parametrize(("sm", "like"), [(103, 100), (121, 120)])
def test_two_gpus_take_the_kernels_of_another(operation: str, sm: int, like: int) -> None:
    """They differ in no instruction that the kernels have: what compiles for one without spills does so for both."""
    for shape in SHAPES[operation]:
        kernels = KernelRequest(operation, shape).module()
        assert kernels.sources(shape, sm) == kernels.sources(shape, like)
        assert kernels.layout_for(shape, sm) == kernels.layout_for(shape, like)


def kernels(*sms: int) -> KernelSet:
    compiled = {str(sm): CompiledFor(layout={}, kernels={}) for sm in sms}
    described = KernelSetDescription(operation="AppendFloat8", shape={}, sm=compiled)
    return KernelSet(described.to_json(), lambda _: b"")


@pytest.mark.parametrize(
    ("compiled", "gpu", "fitting"),
    [
        ((80, 86), 86, 86), ((80,), 86, 80), ((80, 86), 87, 86), ((80, 86), 89, 86), ((86,), 80, None),
        ((80,), 75, None), ((90,), 90, 90), ((89,), 90, None), ((100,), 103, None), ((100, 103), 103, 103),
        ((103,), 100, None), ((120,), 121, None), ((120, 121), 121, 121), ((121,), 120, None), ((100,), 110, None),
    ],
)  # fmt: skip
def test_a_gpu_runs_its_own_kernels_or_before_sm_90_earlier_ones(
    compiled: tuple[int, ...], gpu: int, fitting: int | None
) -> None:
    if fitting is None:
        with pytest.raises(MachineError, match=rf"kernels are for SM [\d, ]+, this GPU is SM {gpu}; build again"):
            kernels(*compiled).fitting(gpu)
    else:
        assert kernels(*compiled).fitting(gpu) == fitting


@pytest.mark.parametrize("sm", [75, 101, 110])
def test_a_gpu_that_there_are_no_kernels_for(sm: int) -> None:
    assert (cubin_sm(87), cubin_sm(90), cubin_sm(121)) == (86, 90, 121)
    with pytest.raises(InputError, match=rf"have kernels for SM 80, .*, not for SM {sm}; say `plugins: false`"):
        cubin_sm(sm)


@pytest.mark.slow
def test_processes_of_their_own_compile_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a build has it; other tests compile where they run."""
    wanted, told = KernelRequest("AppendFloat8", EntryShape(64, "bf16")), []
    (here,) = kernel_sets([wanted], [80, 87], lambda _: None)
    monkeypatch.setattr(module, "ProcessPoolExecutor", ProcessPoolExecutor)
    (there,) = kernel_sets([wanted], [80, 87], told.append)
    assert there.told == here.told and list(there.layouts) == [80, 86] and told == [0.5, 1.0]
