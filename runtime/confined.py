"""Work that may never end, in a process of its own: one with limits, which is ended when it goes over them.

Chat templates are programs, and a tokenizer.json may hold regular expressions that backtrack for hours. Neither can be
stopped inside of this process: `'a' * 10**10` and a search are one call each into C or Rust, which ends the process
when memory runs out, and lists of what is harmless are never complete. The process is started once, when it is
first needed (0.15 s), and asked again and again (0.5 ms).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmc.errors import MachineError

_MOST_REPLY = 1 << 28  # bytes
_SLOW = 10  # how many times longer than the processor's time a request may take, on a busy machine


class Confined:
    """seconds: of the processor, for a request; memory: bytes, where the system can limit them (not on Windows).

    May be asked from several threads, and after a fork.
    """

    def __init__(self, seconds: float, memory: int) -> None:
        self.seconds, self.memory = seconds, memory
        self._process: subprocess.Popen[bytes] | None = None
        self._lock, self._owner = threading.Lock(), 0

    def ask(self, do: str, seconds: float = 0, **request: Any) -> dict[str, Any]:
        """`result`, or `error`, which says what went wrong. seconds: more than usual, for a large request.

        TypeError for values that are no plain data, which cannot be handed over.
        """
        allowed = self.seconds + seconds
        line = json.dumps({"do": do, "seconds": allowed} | request, default=_plain).encode() + b"\n"
        if self._owner != os.getpid():  # after a fork, pipes and lock are another process's
            self._lock, self._process, self._owner = threading.Lock(), None, os.getpid()
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = self._start()
            reply = self._exchange(self._process, line, allowed)
            if reply is None:
                self._process.kill()
                self._process.wait()
                self._process = None
                return {"error": f"more than {allowed:.0f} s or {self.memory >> 20} MiB would be needed"}
        return reply

    def _start(self) -> subprocess.Popen[bytes]:
        # By path, so that it imports nothing of this package.
        script = Path(__file__).with_name("confined_process.py")
        command = [sys.executable, "-P", str(script), str(self.memory)]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise MachineError(f"{sys.executable}: a process of it cannot be started ({error.strerror})") from error
        weakref.finalize(self, _end, process, os.getpid())
        return process

    @staticmethod
    def _exchange(process: subprocess.Popen[bytes], line: bytes, seconds: float) -> dict[str, Any] | None:
        """None when the process ended or had to be."""
        assert process.stdin and process.stdout
        timer = threading.Timer(_SLOW * seconds, process.kill)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            reply = process.stdout.readline(_MOST_REPLY)
            return json.loads(reply) if reply.endswith(b"\n") else None
        except (OSError, ValueError):
            return None
        except BaseException:  # Ctrl-C: the answer to this request must not become that to the next one
            process.kill()
            process.wait()
            raise
        finally:
            timer.cancel()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return list(value)
    raise TypeError(f"{type(value).__name__} is neither text nor a number, list or mapping")


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if owner == os.getpid():
        with contextlib.suppress(OSError):
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()
