"""Nothing is left behind: of models that were loaded and closed, and of streams that nobody read to the end."""

import gc
import os
from typing import Any

import psutil
import pytest

from llmc.errors import InputError, MachineError
from llmc.runtime import load

pytestmark = pytest.mark.slow

ALLOWED = 16 << 20  # bytes; a session of this small model holds more than 1 MB, a cache 0.5 MB


def resident() -> Any:
    gc.collect()
    return psutil.Process(os.getpid()).memory_info().rss


def test_a_thousand_loads(dense: Any) -> None:
    def once(row: Any) -> None:
        with load(dense, threads=1) as model:
            if row % 100 == 0:
                model.generate("a", max_new_tokens=2)

    for row in range(100):
        once(row)
    before, files = resident(), psutil.Process().num_fds()
    for row in range(1000):
        once(row)
    assert resident() - before < ALLOWED and psutil.Process().num_fds() <= files


def test_ten_thousand_cancelled_streams(dense: Any) -> None:
    with load(dense, threads=1) as model:
        session = model.session("hello there")

        def once(row: Any) -> None:
            stream = (session if row % 3 == 0 else model).stream("hello there, you", max_new_tokens=50)
            next(stream, "")
            if row % 2:
                stream.cancel()

        for row in range(500):
            once(row)
        before = resident()
        for row in range(10_000):
            once(row)
        assert resident() - before < ALLOWED
        assert model.generate("hello", max_new_tokens=5) == model.generate("hello", max_new_tokens=5)


def test_a_closed_model_says_so(dense: Any) -> None:
    model = load(dense, threads=1)
    stream = model.stream("hello", max_new_tokens=20)
    next(stream)
    model.close()
    for use in (lambda: model.generate("a"), lambda: list(stream), lambda: model.score(["ab"])):
        with pytest.raises(InputError, match="this model is closed; load it again"):
            use()
    model.close()


def test_a_failure_of_the_backend_is_one_line(dense: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(dense, threads=1) as model:
        sessions = vars(model.backend)["_sessions"]
        session = sessions["main"]

        class Failing:
            def __getattr__(self, name: Any) -> Any:
                return getattr(session, name)

            def run_with_iobinding(self, binding: Any) -> None:
                raise RuntimeError("Non-zero status code: Failed to allocate\nmemory for requested buffer of size 42")

        with monkeypatch.context() as patch:
            patch.setitem(sessions, "main", Failing())
            with pytest.raises(MachineError, match=r"ONNX Runtime failed: .*Failed to allocate memory for requested"):
                model.generate("hello")
        assert model.generate("hello", max_new_tokens=3).token_ids
