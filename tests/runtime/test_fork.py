"""Processes that are forked after a model was loaded: they are told that it cannot be used there, and they end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

# `child()` runs in a forked process; how that ended is printed. A child that hangs is killed.
SCRIPT = """
import multiprocessing, os, signal, sys, threading, time
from llmc.errors import InputError
from llmc.runtime import load

def told(call):
    try:
        call()
    except InputError as error:
        print(str(error).partition(";")[0], flush=True)
    else:
        print("worked", flush=True)

model = load({artifact!r}, threads=2)
expected = model.generate("def ", max_new_tokens=4).text
session, stream = model.session("def "), model.stream("def ", max_new_tokens=40)
next(stream)
{child}
sys.stdout.flush()
pid = os.fork()
if pid == 0:
    child()
    sys.exit(7)
deadline = time.monotonic() + 60
while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
    if time.monotonic() > deadline:
        os.kill(pid, signal.SIGKILL)
        print("hangs")
        sys.exit(1)
    time.sleep(0.02)
print(os.waitstatus_to_exitcode(ended[1]))
assert model.generate("def ", max_new_tokens=4).text == expected  # in the parent all goes on
"".join(stream)
"""
FORKED = "this model was loaded before the process was forked"


def outcome(artifact: Path, child: str) -> list[str]:
    """What a child prints, and its exit code."""
    script = SCRIPT.format(artifact=str(artifact), child=child)
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=180)
    assert found.returncode == 0, found.stdout + found.stderr[-2000:]
    return found.stdout.splitlines()


def test_a_forked_child_ends_with_its_own_exit_code(trained: Path) -> None:
    assert outcome(trained, "def child(): pass") == ["7"]


def test_a_forked_child_may_close_and_drop_the_model(trained: Path) -> None:
    child = "def child():\n    global model, session, stream\n    model.close()\n    del model, session, stream"
    assert outcome(trained, child) == ["7"]


def test_every_use_in_a_forked_child_is_refused(trained: Path) -> None:
    child = """
def child():
    told(lambda: model.generate("x"))
    told(lambda: next(stream))
    told(lambda: model.score(["import os"]))
    told(lambda: model.check())
    told(lambda: session.generate("x"))
    told(lambda: session.fork())
    assert model.encode("x") and model.context == 1024
"""
    assert outcome(trained, child) == [FORKED] * 6 + ["7"]


def test_a_lock_that_a_thread_of_the_parent_holds_does_not_stop_the_child(trained: Path) -> None:
    child = """
held, done = threading.Event(), threading.Event()
def hold():
    with session._lock:
        held.set()
        done.wait()
threading.Thread(target=hold, daemon=True).start()
held.wait()
def child():
    print(len(session.tokens) > 0, flush=True)
"""
    assert outcome(trained, child) == ["True", "7"]


def test_a_child_may_load_a_model_of_its_own(trained: Path) -> None:
    child = f"""
def child():
    with load({str(trained)!r}, threads=2) as own:
        print(own.generate("def ", max_new_tokens=4).text == expected, flush=True)
"""
    assert outcome(trained, child) == ["True", "7"]


def test_processes_of_multiprocessing(trained: Path) -> None:
    child = """
def child():
    worker = multiprocessing.get_context("fork").Process(target=told, args=(lambda: model.generate("x"),))
    worker.start()
    worker.join(60)
    print(worker.exitcode, flush=True)
"""
    assert outcome(trained, child) == [FORKED, "0", "7"]
