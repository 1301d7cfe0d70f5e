"""Choosing an engine, and driving one. No machine of CI has a GPU: CUDA is played by host memory, the engine by ONNX
Runtime, and what is tested is everything in between."""

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
import re
import shutil
import sys
import threading
import types

import numpy as np
import pytest
from cuda.bindings import driver as real_driver
from support.gpu_stand_in import PACKAGES, PREFILL, RELEASE, SCRATCH, add_engines, add_kernels
from support.listed_files import list_files
from support.running import run

from llmc.errors import InputError, MachineError
from llmc.runtime import SamplingParams, load
from llmc.runtime.backends import cuda_device, loaded_engine
from llmc.runtime.plugins import tensorrt as plugins
from llmc.runtime.running_batch import RunningBatch

PROMPTS = ["def add(a, b):\n    return", "import os\n" * 20, "class"]


@pytest.mark.skipif(not isinstance(cuda_device.compute_capability(), str), reason="there is a GPU here")
def test_without_a_gpu_the_cpu_runs_it_and_the_reason_is_told(dense, tmp_path):
    artifact = add_engines(dense, tmp_path)
    with pytest.raises(MachineError, match=r"tensorrt-rtx: there is no GPU that CUDA can use \(.+\)$"):
        load(artifact, backend="tensorrt-rtx")
    with load(artifact) as model:
        assert model.backend_info.startswith("onnxruntime (tensorrt-rtx: there is no GPU")


def test_why_engines_cannot_run(dense, tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_device, "compute_capability", lambda device=None: 90)

    def reason(artifact):
        with pytest.raises(MachineError) as caught:
            load(artifact, backend="tensorrt-rtx")
        return str(caught.value)

    assert "the artifact has no engines; add `tensorrt-rtx`" in reason(dense)
    assert "engines are for SM 80, 86, this GPU is SM 90" in reason(add_engines(dense, tmp_path / "a"))
    monkeypatch.setattr(cuda_device, "compute_capability", lambda device=None: 86)
    other = add_engines(dense, tmp_path / "b", release="1.2.3")
    assert f"need release 1.2.3, {RELEASE} is installed; pip install tensorrt-rtx-cu13==1.2.3" in reason(other)
    assert "engines are for 2 GPUs together" in reason(add_engines(dense, tmp_path / "d", ranks=2))
    broken = add_engines(dense, tmp_path / "c")
    (broken / "main.json").write_text((broken / "main.json").read_text().replace('"batch"', '"Batch"'))
    list_files(broken, "main.json")
    with pytest.raises(InputError, match=r"main\.json: broken"):
        load(broken)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorrt_rtx" else found(name))
    assert re.search(r"pip install .*\[rtx\]'$", reason(other))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "other.engine"}, r"main\.json: refers to 'other\.engine', which llmc\.json does not list"),
        ({"engine": "../main.engine"}, r"main\.json: broken \(engine: .*\)"),
        ({"plugins": ["llmc.LatentAttention"], "kernels": "other.kernels"}, r"refers to 'other\.kernels'"),
        ({"plugins": ["llmc.LatentAttention"]}, r"main\.json: broken \(plugins without kernels\)"),
        ({"sm": "86"}, r"main\.json: broken \(sm: "),
        ({"ranks": 2, "rank": 2}, r"main\.json: broken \(rank 2 of 2\)"),
        ({"batch": 0}, r"main\.json: broken \(batch: "),
        ({"profiles": []}, r"main\.json: broken \(profiles: "),
        ({"inputs": []}, r"main\.json: broken \(no input "),
        ({"inputs": [{"name": "past.0.key", "dtype": "bf16", "shape": [1]}]}, "caches have four axes"),
    ],
)
def test_descriptions_that_describe_no_engine_of_the_artifact(dense, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        load(add_engines(dense, tmp_path, **changes), backend="tensorrt-rtx")


def test_engines_whose_kernels_are_for_another_architecture(dense, tmp_path, monkeypatch):
    """SM 103 and 121 load none that were compiled for 100 and 120."""
    monkeypatch.setattr(cuda_device, "compute_capability", lambda device=None: 121)
    artifact = add_engines(dense, tmp_path, sm=[120, 121])
    add_kernels(artifact, 120)
    with pytest.raises(MachineError, match=r"AppendFloat8: its kernels are for SM 120, this GPU is SM 121; build agai"):
        load(artifact, backend="tensorrt-rtx")
    with load(artifact) as model:
        assert model.backend_info.startswith("onnxruntime (tensorrt-rtx: AppendFloat8: its kernels are for SM 120")


def test_kernels_that_the_driver_does_not_load_are_told_when_the_engine_is(dense, tmp_path, gpu, monkeypatch):
    artifact = add_engines(dense, tmp_path)
    add_kernels(artifact, 86)
    driver = types.SimpleNamespace(
        CUresult=real_driver.CUresult,
        cuModuleLoadData=lambda cubin: (real_driver.CUresult.CUDA_ERROR_NO_BINARY_FOR_GPU, None),
    )
    monkeypatch.setitem(sys.modules, "cuda.bindings", types.SimpleNamespace(runtime=gpu, driver=driver))
    monkeypatch.setitem(plugins._creators, "tensorrt_rtx", [])
    monkeypatch.setattr(sys.modules["tensorrt_rtx"], "__name__", "tensorrt_rtx", raising=False)
    with pytest.raises(MachineError, match=r"_append, a kernel for SM 86: cuModuleLoadData says CUDA_ERROR_NO_BINARY"):
        load(artifact, backend="tensorrt-rtx")


@pytest.mark.parametrize("target", PACKAGES)
def test_an_engine_is_driven_like_any_backend(trained, tmp_path, gpu, target):
    """Prefill in pieces, decode, drafts that are refused, batches: the same tokens as from ONNX Runtime itself."""
    gpu.module = PACKAGES[target]
    artifact = add_engines(trained, tmp_path, target)
    with load(artifact, backend="onnxruntime") as model:
        alone = [model.generate(prompt, max_new_tokens=40) for prompt in PROMPTS]
        together = model.generate(PROMPTS[:2], max_new_tokens=12)
    with load(artifact) as model:
        assert model.backend_info == target and model.backend.max_prefill_tokens == PREFILL and model.backend.batch == 2
        assert len(model.tokenizer.encode(PROMPTS[1]).ids) > PREFILL
        assert [model.generate(prompt, max_new_tokens=40) for prompt in PROMPTS] == alone
        assert sum(answer.accepted for answer in alone) > 10
        assert [answer.token_ids for answer in model.generate(PROMPTS[:2], max_new_tokens=12)] == [
            a.token_ids for a in together
        ]
        with pytest.raises(InputError, match="do not fit the context of 160"):
            model.generate("a", max_new_tokens=200)
        assert len(gpu.graphs) <= 2 * loaded_engine._MOST_GRAPHS
    gc.collect()
    assert not gpu.blocks and not gpu.graphs  # caches and buffers are given back
    assert (gpu.launches > 30) == (target == "tensorrt")  # TensorRT-RTX captures what it runs by itself


def test_the_shortest_window_that_suffices_is_taken(trained, tmp_path, gpu):
    gpu.windows = 2
    profiles = [{"tokens": tokens, "window": n} for tokens in ([1, 1], [2, 2], [3, PREFILL]) for n in (20, 160)]
    with load(add_engines(trained, tmp_path, profiles=profiles), speculative=False) as model:
        model.generate("import os\n", max_new_tokens=8)
        assert gpu.profiles == {0, 4}
        model.generate("import os\n", max_new_tokens=40)
        assert gpu.profiles == {0, 1, 4}


def test_an_engine_that_was_changed_is_not_read(trained, tmp_path, gpu):
    artifact = add_engines(trained, tmp_path, sha256="0" * 64)
    with pytest.raises(InputError, match=r"\.engine: not the engine that was built; download it again"):
        load(artifact, backend="tensorrt-rtx")


def test_kernels_that_the_gpu_compiled_are_kept_for_the_next_time(trained, tmp_path, gpu):
    artifact = add_engines(trained, tmp_path)
    for read in ([], [b"kernels", b"kernels"]):  # of the main and the MTP engine
        gpu.kernels.clear()
        with load(artifact) as model:
            assert gpu.kernels == read
            model.generate("a", max_new_tokens=8)
    assert len(list((tmp_path / "cache/llmc/kernels").iterdir())) == 2
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("no folder")
    with load(artifact) as model:
        assert model.generate("a", max_new_tokens=2).token_ids  # and closing is no error either


def test_sessions_of_an_engine(trained, tmp_path, gpu):
    with load(add_engines(trained, tmp_path)) as model:
        session = model.session(PROMPTS[0])
        other, longer = session.fork(), PROMPTS[0] + " a + b\n"
        answers = [each.generate(longer, max_new_tokens=10) for each in (model, session, other)]
        assert answers[0].token_ids == answers[1].token_ids == answers[2].token_ids and answers[1].cached_tokens > 5
        together = session.generate([longer, PROMPTS[0]], max_new_tokens=5)
        assert [a.token_ids for a in together] == [
            a.token_ids for a in model.generate([longer, PROMPTS[0]], max_new_tokens=5)
        ]


def test_a_running_batch_of_an_engine(trained, tmp_path, gpu):
    """Rows are places in one buffer: who joins is read beside the others, who ends makes room for the last one."""
    with load(add_engines(trained, tmp_path)) as model:
        batch, lengths = RunningBatch(model), [20, 3, 9, 1, 12]
        prompts = [PROMPTS[place % 3] for place in range(5)]
        alone = [model.generate(p, max_new_tokens=n).token_ids for p, n in zip(prompts, lengths, strict=True)]
        answers = [batch.answer(p, SamplingParams(n)) for p, n in zip(prompts, lengths, strict=True)]
        run(batch, list(answers))
        assert batch.rows == 2 and [answer.tokens for answer in answers] == alone
        del batch, answers
    gc.collect()
    assert not gpu.blocks


def test_no_memory_on_the_gpu(trained, tmp_path, gpu):
    gpu.limit = 100_000
    with (
        load(add_engines(trained, tmp_path)) as model,
        pytest.raises(MachineError, match="bytes left on the GPU; build with a smaller `context`"),
    ):
        model.generate("a", max_new_tokens=2)


def test_images_with_an_engine(seeing, tmp_path, gpu):
    """The engine takes features, or none, and ONNX Runtime makes them: the same tokens as without an engine."""
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    asked = [("What?", [image]), ("What?", [])]
    with load(seeing) as model:
        expected = [model.generate(text, images=shown, max_new_tokens=6).token_ids for text, shown in asked]
    with load(add_engines(seeing, tmp_path), backend="tensorrt-rtx") as model:
        assert model.backend.has_vision
        found = [model.generate(text, images=shown, max_new_tokens=6).token_ids for text, shown in asked]
    assert found == expected and found[0] != found[1]
    with pytest.raises(InputError, match="closed"):
        model.backend.image_features(image)


def test_a_gpu_that_is_not_the_first(trained, tmp_path, gpu):
    """Everything is done there, in threads too, which CUDA starts with the first; the caller's current one stays."""
    gpu.count = 2
    artifact = add_engines(trained, tmp_path)

    def ask(model):
        model.session(PROMPTS[0]).fork().generate(PROMPTS[0] + " a", max_new_tokens=4)

    with load(artifact, backend="tensorrt-rtx", device=1) as model:
        ask(model)
        worker = threading.Thread(target=ask, args=(model,))
        worker.start()
        worker.join()
    assert gpu.asked == gpu.worked == {1} and gpu.cudaGetDevice() == (gpu.fine, 0)
    with pytest.raises(MachineError, match="tensorrt-rtx: there is no GPU 2: CUDA counts 2, from 0 on"):
        load(artifact, backend="tensorrt-rtx", device=2)
    with pytest.raises(InputError, match="device is -1; it has to be at least 0"):
        load(artifact, device=-1)


def test_the_current_gpu_is_the_default(trained, tmp_path, gpu):
    gpu.count = 2
    gpu.cudaSetDevice(1)
    with load(add_engines(trained, tmp_path), backend="tensorrt-rtx", speculative=False) as model:
        worker = threading.Thread(target=lambda: model.generate("a", max_new_tokens=4))
        worker.start()
        worker.join()
        gpu.cudaSetDevice(0)
        model.generate("a", max_new_tokens=4)
    assert gpu.asked == gpu.worked == {1} and gpu.cudaGetDevice() == (gpu.fine, 0)


@pytest.mark.parametrize("target", PACKAGES)
def test_what_can_be_captured_is_told(trained, tmp_path, gpu, target):
    """All contexts share the memory that a step needs besides; a library that asked for it could not be captured."""
    gpu.module = PACKAGES[target]
    with load(add_engines(trained, tmp_path, target)) as model:
        assert sum(len(block) == SCRATCH for block in gpu.blocks.values()) == 1
        model.generate(PROMPTS[0], max_new_tokens=8)
        told = model.backend.capturable()
        assert {name.partition(",")[0] for name in told} == {"main", "mtp"}
        narrow = {"2 to 2 tokens": True, "3 to 48 tokens": target == "tensorrt"}
        assert {f"main, {name}, 160 entries": found for name, found in narrow.items()}.items() <= told.items()
        assert sum(len(block) == SCRATCH for block in gpu.blocks.values()) == 1
    assert SCRATCH not in map(len, gpu.blocks.values())


def test_prompts_have_few_lengths(dense, tmp_path, gpu):
    """TensorRT-RTX compiles kernels for each, and what is computed for nothing is behind what counts."""
    text = "a quick brown fox jumps over the lazy dog " * 5
    prompts = [text[:length] for length in (5, 9, 16, 17, 20, 31, 47, 48, 60, 148)]
    with load(dense, backend="onnxruntime") as model:
        expected = [model.generate(prompt, max_new_tokens=5).token_ids for prompt in prompts]
        scores = [[each.logprob for each in row] for row in model.score(prompts)]
    profiles = [{"tokens": tokens, "window": 155} for tokens in ([1, 1], [2, 2], [3, PREFILL])]
    with load(add_engines(dense, tmp_path, context=155, profiles=profiles), backend="tensorrt-rtx") as model:
        assert [model.generate(prompt, max_new_tokens=5).token_ids for prompt in prompts] == expected
        for row, want in zip(model.score(prompts), scores, strict=True):
            np.testing.assert_allclose([each.logprob for each in row], want, atol=1e-4)
    assert {length for length in gpu.lengths if length > 2} == {16, 32, 48, 11}  # there is no room for more at the end
    assert [loaded_engine.usual_length(n) for n in (3, 64, 65, 100, 128, 129, 511, 513)] == [
        16,
        64,
        80,
        112,
        128,
        160,
        512,
        640,
    ]


def test_a_context_is_told_what_it_does_not_know(dense, tmp_path, gpu):
    def step(rows, cache):
        gpu.told = 0
        zeros = np.zeros(rows, np.int64)
        logits, _ = model.backend.forward("main", cache, zeros[:, None] + 5, zeros, zeros[:, None])
        return gpu.told, logits

    with load(add_engines(dense, tmp_path), backend="tensorrt-rtx") as model:
        caches = [model.backend.new_cache(rows) for rows in (1, 2, 1)]
        tensors = 2 * (len(caches[0].buffers) + 4) + len(caches[0].buffers) + 1  # with shapes; outputs
        first = step(1, caches[0])
        again = step(1, caches[0])
        assert (first[0], again[0]) == (tensors, 0) and np.array_equal(first[1], again[1])
        other = step(1, caches[2])
        assert other[0] == 3 * len(caches[0].buffers) and np.array_equal(first[1], other[1])
        two = step(2, caches[1])
        assert two[0] > 0 and np.allclose(two[1], first[1], atol=1e-5)
        assert np.array_equal(step(1, caches[0])[1], first[1])


@pytest.mark.parametrize("how", ["forgotten", "failed"])
def test_memory_is_given_back_without_being_asked_for(dense, tmp_path, gpu, how):
    artifact = add_engines(dense, tmp_path)
    if how == "failed":
        gpu.limit = SCRATCH - 1
        with pytest.raises(MachineError, match="bytes left on the GPU; build with a smaller `context` or `prefill`"):
            load(artifact, backend="tensorrt-rtx")
    else:
        model = load(artifact, backend="tensorrt-rtx")
        model.generate("a", max_new_tokens=3)
        assert gpu.blocks
        del model
    gc.collect()
    assert not gpu.blocks
