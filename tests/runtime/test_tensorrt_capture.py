"""Steps that are captured as CUDA graphs: what other threads and the garbage collector must not do meanwhile."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
from support.gpu_stand_in import add_engines

from llmc.errors import MachineError
from llmc.runtime import load


@pytest.fixture
def capturing(trained, tmp_path, gpu):
    """An engine whose steps are captured here, and not by its library."""
    gpu.module = "tensorrt"
    return add_engines(trained, tmp_path, "tensorrt")


def generated(capturing, prompt, tokens):
    """By a backend of its own: later caches of the same one may lie where graphs were captured for earlier ones."""
    with load(capturing, speculative=False) as model:
        return model.generate(prompt, max_new_tokens=tokens).token_ids


def test_other_threads_wait_while_a_step_is_captured(capturing, gpu):
    """They would put what they do into the graph: undone now, and done again at every later step."""
    others, done = list[threading.Thread](), list[bool]()

    def runs():
        if gpu.captured is not None and not others:

            def work():
                cache = model.backend.new_cache(1)
                model.backend.copy(cache, [0], 8, model.backend.new_cache(1))
                done.append(gpu.captured is None)

            others.append(threading.Thread(target=work))
            others[0].start()
            others[0].join(0.2)  # it must not have come through
            assert not done
        return True

    expected = generated(capturing, "import os\n", 12)
    gpu.runs = runs
    with load(capturing, speculative=False) as model:
        assert model.generate("import os\n", max_new_tokens=12).token_ids == expected
        others[0].join(10)
        assert done == [True]


def test_a_cache_that_is_collected_while_a_step_is_captured_is_freed_later(capturing, gpu):
    """The collector may come in any thread; in the one that captures, waiting for the lock would be forever."""
    dropped = list[set[int]]()

    def runs():
        if gpu.captured is not None and caches:
            dropped.append(set(caches[-1].buffers.values()))
            caches.pop()
            gc.collect()
            assert dropped[-1] <= gpu.blocks.keys()
        return True

    with load(capturing, speculative=False) as model:
        caches = [model.backend.new_cache(1), model.backend.new_cache(2)]
        gpu.runs = runs
        model.generate("import os\n", max_new_tokens=12)
        assert dropped[0] and not dropped[0] & gpu.blocks.keys()
        cache = model.backend.new_cache(1)
        addresses = set(cache.buffers.values())
        del cache
        assert addresses and not addresses & gpu.blocks.keys()  # at once, as nobody has the device


def test_a_step_that_cannot_be_captured_is_run_as_it_is(capturing, gpu):
    expected = generated(capturing, "import os\n", 12)
    launches, captures = gpu.launches, []
    gpu.runs = lambda: gpu.captured is None or captures.append(1)
    with load(capturing, speculative=False) as model:
        assert model.generate("import os\n", max_new_tokens=12).token_ids == expected
        assert captures == [1] and gpu.launches == launches and gpu.captured is None


@pytest.mark.parametrize("error", [MachineError, KeyboardInterrupt])
def test_a_step_that_fails_while_captured_ends_the_capture(capturing, gpu, error):
    failing = list[int]()

    def runs():
        if error is MachineError:
            return not failing and (gpu.captured is None or failing.append(1))
        if gpu.captured is not None:
            raise KeyboardInterrupt
        return True

    expected = generated(capturing, "a", 4)
    gpu.runs = runs
    with load(capturing, speculative=False) as model:
        with pytest.raises(error, match="the engine failed; its reason" if error is MachineError else None):
            model.generate("import os\n", max_new_tokens=12)
        assert gpu.captured is None
        gpu.runs = lambda: True
        assert model.generate("a", max_new_tokens=4).token_ids == expected


def test_a_step_is_enqueued_once_after_each_change_of_shapes_before_it_is_captured(capturing, gpu):
    """Also when its shapes were seen before: a context has state that depends on them, and a graph holds it."""
    done = []
    gpu.runs = lambda: done.append("enqueued" if gpu.captured is None else "captured") or True

    def step(rows):
        launches = gpu.launches
        zeros = np.zeros(rows, np.int64)
        model.backend.forward("main", caches[rows], zeros[:, None] + 5, zeros, zeros[:, None])
        made = done.copy()
        done.clear()
        return [*made, *["launched"] * (gpu.launches - launches)]

    with load(capturing, speculative=False) as model:
        caches = {rows: model.backend.new_cache(rows) for rows in (1, 2)}
        assert [step(1) for _ in range(3)] == [["enqueued"], ["captured", "launched"], ["launched"]]
        assert step(2) == ["enqueued"]
        assert [step(1) for _ in range(3)] == [["enqueued"], ["captured", "launched"], ["launched"]]
        assert len(gpu.graphs) == 1  # the old ones are gone
        caches[1] = model.backend.new_cache(1)  # other addresses need no other state
        assert [step(1) for _ in range(3)] == [["enqueued"], ["captured", "launched"], ["launched"]]
        assert len(gpu.graphs) == 2
