"""What becomes of models in a forked process: nothing, and that is said.

The threads of ONNX Runtime, CUDA's context and whoever held a lock stay in the process that loaded the model. A child
that uses it may wait for them for ever, and one that only ends does: destructors join threads that are not there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

from llmc.errors import InputError

FORKED = "this model was loaded before the process was forked; load it in the new process, or start that by 'spawn'"
_WATCHED: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()


class Lost:
    """What a backend turns into: its numbers are there, its methods are not, and nothing of it is freed."""

    def new_cache(self, *_: object) -> NoReturn:
        raise InputError(FORKED)

    forward = copy = rows = trim = new_cache

    def close(self) -> None:
        pass


def watch(thing: Any, in_child: Callable[[Any], None]) -> None:
    """Calls `in_child(thing)` in every process that is forked from this one while the thing lives."""
    _WATCHED[thing] = in_child


def lose(backend: Any) -> None:
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(dict(backend.__dict__)))  # for ever, hence without destructors
    backend.__class__ = Lost
    with contextlib.suppress(AttributeError):  # of glibc: what comes last is called first, with the exit status
        libc = ctypes.CDLL(None)
        libc.on_exit(libc._exit, None)  # before what libraries have left there, which waits for their threads


def _forked() -> None:
    for thing, in_child in list(_WATCHED.items()):
        in_child(thing)


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_forked)
