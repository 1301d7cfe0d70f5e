"""Triton reads TRITON_INTERPRET when it is imported: tests of kernels compute in a process of their own.

This file, run as a program, runs a test module with an interpreter that takes less time.
"""

from __future__ import annotations

import dataclasses
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

_TESTS = str(Path(__file__).parents[1])


def results_of(script: str) -> Any:
    """A fixture called `results`: what a test module, run as a program with an interpreter, makes of its cases.

    Args:
        script: The module, which writes a file of torch's under the name that it is given.
    """

    @pytest.fixture(scope="module", name="results")
    def made(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
        file = tmp_path_factory.mktemp("kernel") / "results.pt"
        path = os.pathsep.join(filter(None, [_TESTS, os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
        subprocess.run([sys.executable, "-m", __spec__.name, script, file], env=environment, check=True)
        found: dict[Any, Any] = torch.load(file)
        return found

    return made


def _prepare_once() -> None:
    """Triton 3.7's interpreter looks through all of triton.language whenever a function is called in a kernel, to put
    its own in the place of what is there: 5 ms each time. It stays there, as nothing else runs in this process.
    """
    from triton.runtime import interpreter

    prepare: Callable[[Any], Any] = interpreter._patch_lang
    seen = set()

    def once(function: Any) -> Any:
        if function not in seen:
            prepare(function)
            seen.add(function)
        return interpreter._LangPatchScope()  # of which nothing is to be restored

    interpreter._patch_lang = once


def _leave_out_what_nobody_sees() -> None:
    """Sums of integers are computed again, in 64 bits, for an assertion that is made only in Triton's debug mode. And
    all types are looked at to find that of an array.
    """
    from triton.runtime import interpreter

    options = interpreter.interpreter_builder.options
    assert not options.debug
    interpreter.interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=False)

    find: Callable[[Any], Any] = interpreter._get_np_dtype
    found: dict[str, Any] = {}

    def type_of(kind: Any) -> Any:
        name = kind.scalar.name
        if name not in found:
            found[name] = find(kind)
        return found[name]

    interpreter._get_np_dtype = type_of


def _widen_by_shifting() -> None:
    """A bfloat16 is the upper half of its float32; the interpreter takes it apart and puts it together again."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def converted(x: Any, source: Any, target: Any, *others: Any) -> Any:
        if (source, target) == (tl.bfloat16, tl.float32):
            return np.asarray(x).view(np.uint16).astype(np.uint32) << 16
        return convert(x, source, target, *others)

    interpreter._convert_float = converted


if __name__ == "__main__":
    _prepare_once()
    _leave_out_what_nobody_sees()
    _widen_by_shifting()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
