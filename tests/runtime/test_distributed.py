"""A model that two processes hold together, with stand-ins for GPUs, engines and NCCL; and how they find each other."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from support import ranks_stand_in
from support.ranks_stand_in import add_rank_engines

from llmc.errors import InputError, MachineError
from llmc.runtime import Model, SamplingParams, distributed, load
from llmc.runtime.distributed import channel as channels
from llmc.runtime.distributed import followers
from llmc.runtime.distributed.channel import Channel, Ended
from llmc.runtime.distributed.follower import Orders, follow
from llmc.runtime.distributed.followers import Followers
from llmc.runtime.distributed.leader import Leader
from llmc.runtime.distributed.place import Place
from llmc.runtime.running_batch import RunningBatch

PROMPTS = ["def add(a, b):\n    return", "import os\n" * 8, "class"]


@pytest.fixture(scope="module")
def divided(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        ranks_stand_in.use(patch, folder)
        return add_rank_engines(trained, folder, 2)


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return ranks_stand_in.use(monkeypatch, tmp_path)


def processes_of(model: Model) -> dict[int, subprocess.Popen[bytes]]:
    assert isinstance(model.backend, Leader) and model.backend.processes
    return dict(model.backend.processes.running)


@pytest.mark.slow
def test_two_processes_say_what_one_says(divided, gpus, monkeypatch, tmp_path):
    """Prompts of several steps, refused drafts, batches, sessions; nothing is imported from the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "queue.py").write_text("raise SystemExit(9)")
    with load(divided, backend="onnxruntime") as model:
        alone = [model.generate(prompt, max_new_tokens=24).token_ids for prompt in PROMPTS]
        together = [answer.token_ids for answer in model.generate(PROMPTS[:2], max_new_tokens=8)]
    with load(divided, ranks=2) as model:
        assert model.backend_info == "tensorrt-rtx, 2 ranks" and model.draft_tokens == 1
        (running,) = processes_of(model).values()
        assert running.poll() is None
        assert [model.generate(prompt, max_new_tokens=24).token_ids for prompt in PROMPTS] == alone
        assert [answer.token_ids for answer in model.generate(PROMPTS[:2], max_new_tokens=8)] == together
        batch = RunningBatch(model)
        answers = [batch.answer(prompt, SamplingParams(24)) for prompt in PROMPTS[:2]]
        waiting = list(answers)
        while waiting or batch.busy:
            if waiting and batch.free:
                batch.join([waiting.pop()])
            batch.step()
        assert [answer.tokens for answer in answers] == alone[:2]
        session = model.session(PROMPTS[0])
        fork = session.fork()
        assert fork.generate(PROMPTS[0], max_new_tokens=24).token_ids == alone[0]
        assert session.generate(PROMPTS[0], max_new_tokens=24).token_ids == alone[0]
    assert running.returncode == 0
    with pytest.raises(InputError, match="closed"):
        model.generate("a")


@pytest.mark.slow
def test_a_rank_that_dies_is_told_in_one_line(divided, gpus, monkeypatch):
    monkeypatch.setenv("RANK_1_ENDS_AFTER", "20")
    with load(divided, ranks=2, speculative=False) as model:
        (running,) = processes_of(model).values()
        with pytest.raises(MachineError) as caught:
            model.generate(PROMPTS[0], max_new_tokens=40)
        assert str(caught.value) == "rank 1 of 2 ended; load the model again"
        with pytest.raises(MachineError, match=r"^rank 1 of 2 ended; load the model again$"):  # and from then on
            model.generate(PROMPTS[0], max_new_tokens=40)
    assert running.returncode == -9


def started(rank: int, port: int, artifact: Path, **more: str) -> subprocess.Popen:
    """As by a launcher."""
    told = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "llmc.cli", "run", str(artifact), "--ranks", "2", "-p", "class", "--json"]
    command += ["--max-new-tokens", "12"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env={**os.environ, **told, "MASTER_ADDR": "127.0.0.1", **more}, **pipes)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.slow
def test_processes_of_a_launcher(divided, gpus):
    """Rank 0 answers, rank 1 says nothing; if rank 0 dies, rank 1 ends with one line."""
    port = free_port()
    both = [started(rank, port, divided) for rank in (0, 1)]
    (answer, _), (silence, errors) = (process.communicate(timeout=300) for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert b'"token_ids"' in answer and silence == errors == b""

    port = free_port()
    dies, left = (started(rank, port, divided, RANK_0_ENDS_AFTER="20") for rank in (0, 1))
    _, errors = left.communicate(timeout=300)
    dies.communicate()
    assert (dies.returncode, left.returncode) == (-9, 4)
    lines = errors.decode().splitlines()
    assert len(lines) == 1 and "rank 1 of 2: rank 0 ended; load the model again" in lines[0]


def test_what_cannot_be_started(divided, dense, gpus, monkeypatch):
    with pytest.raises(MachineError, match=r"engines are for 2 GPUs together; say `--ranks 2`, or load\(…, ranks=2\)"):
        load(divided, backend="tensorrt-rtx")
    with pytest.raises(InputError, match=r"has no engines for 3 ranks, but for 2; set `tensor_parallel: 3`"):
        load(divided, ranks=3)
    with pytest.raises(InputError, match=r"has no engines for 2 ranks, but for no engines at all"):
        load(dense, ranks=2)
    with pytest.raises(InputError, match=r"^onnxruntime runs on one device; leave out `ranks`, or the backend$"):
        load(divided, backend="onnxruntime", ranks=2)
    with pytest.raises(InputError, match=r"^device is 1, and 2 ranks have a GPU each; leave out one of the two$"):
        load(divided, ranks=2, device=1)
    gpus.cudaGetDeviceCount = lambda: (gpus.fine, 1)
    with pytest.raises(MachineError, match=r"^2 ranks need as many GPUs, and CUDA sees 1$"):
        load(divided, ranks=2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(InputError, match=r"WORLD_SIZE=4, and 2 ranks are wanted"):
        load(divided, ranks=2)


def test_a_rank_that_cannot_begin(divided, gpus, tmp_path):
    (tmp_path / "site/sitecustomize.py").write_text("import os\nos._exit(3)\n")
    with pytest.raises(MachineError, match=r"^rank 1 of 2 ended before it began \(exit code 3\)$"):
        load(divided, ranks=2)


@pytest.mark.slow
def test_ranks_of_two_artifacts_part(divided, gpus, monkeypatch):
    """The other process is told of another build."""
    known = distributed._engines
    monkeypatch.setattr(distributed, "_engines", lambda *given: known(*given)[::-1])
    monkeypatch.setattr(followers, "GRACE", 0.1)
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with pytest.raises(MachineError, match=r"^rank 1 of 2: .* is another artifact than that of rank 0$"):
        load(divided, ranks=2)
    time.sleep(0.5)
    assert not ended  # the error has been told


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"RANK": "2"}, r"RANK=2 and WORLD_SIZE=2; ranks are counted from 0"),
        ({"RANK": "x"}, r"several processes, but RANK is 'x'; start them with torchrun"),
        ({"RANK": "1", "MASTER_PORT": None}, r"but MASTER_PORT is missing; start them"),
    ],
)
def test_environments_that_make_no_sense(told, message, monkeypatch):
    for name, value in ({"WORLD_SIZE": "2", "MASTER_PORT": "29500"} | told).items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=message):
        Place.told()


def test_torchruns_own_port_is_left_to_it(monkeypatch):
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert Place.told() == Place(3, 4, 1, "127.0.0.1", 29500, b"")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert Place.told().port == 29501


def place_for(server: socket.socket, rank: int, key: bytes = b"key") -> Place:
    return Place(rank, 2, rank, "127.0.0.1", server.getsockname()[1], key)


def test_a_rank_that_does_not_come_is_named():
    server = channels.listen("127.0.0.1")
    with pytest.raises(MachineError, match=r"^rank 1 of 2 did not come to 127.0.0.1 port \d+ within 0 s; is its"):
        channels.gather(server, place_for(server, 0), 0.2, lambda: None)
    assert server.fileno() == -1


def test_who_does_not_know_the_key_is_not_let_in(monkeypatch):
    monkeypatch.setattr(channels, "_GREETING", 2.0)
    server = channels.listen("127.0.0.1")
    stranger, known = place_for(server, 1, b"other"), place_for(server, 1)
    found = {}
    waiting = threading.Thread(
        target=lambda: found.update(channels.gather(server, place_for(server, 0), 30, lambda: None))
    )
    waiting.start()
    with pytest.raises(MachineError, match=r"rank 1 of 2 did not reach rank 0 .* \(another program, or another key\)"):
        channels.join(stranger, 0.5)
    assert not found
    mine = channels.join(known, 10)
    waiting.join()
    mine.send({"a": [1]}, [np.arange(6, dtype=np.int64).reshape(2, 3), np.zeros((0, 4), np.uint16)])
    message, (numbers, nothing) = found[1].receive()
    assert message == {"a": [1]} and numbers.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert nothing.shape == (0, 4) and nothing.dtype == np.uint16


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff" * 8,
        b"\x02" + bytes(7) + b"{]",
        b"\x02" + bytes(7) + b"{}",
        b"\x2d" + bytes(7) + b'{"message": {}, "arrays": [["|O", [1]], 1234]}'[:45],
        b"\x05" + bytes(7) + b"{",
    ],
)
def test_frames_that_make_no_sense_end_a_connection(frame):
    here, there = socket.socketpair()
    here.sendall(frame)
    here.shutdown(socket.SHUT_WR)
    with here, pytest.raises(Ended):
        _channel(there).receive()


def _channel(end: socket.socket) -> Channel:
    """A pair of sockets is not TCP."""
    made = Channel.__new__(Channel)
    made._connection = end
    return made


class Recorder:
    """A backend that remembers what it is asked, and has memory for two caches."""

    context, original_context, batch, max_prefill_tokens, max_attention_scores = 64, None, 2, 16, 1 << 20
    has_mtp = has_vision = False
    cache_bytes = 8

    def __init__(self, room: int = 2) -> None:
        self.room = room
        self.calls: list[object] = []
        self.caches: list[object] = []

    def new_cache(self, batch):
        if len(self.caches) == self.room:
            raise MachineError("no 8 bytes left on the GPU")
        self.caches.append(object())
        return self.caches[-1]

    def forward(self, graph, cache, input_ids, cache_position, logits_index, hidden=None, long=None, images=None):
        if self.room == 0:
            raise MachineError("broken")
        known = None if images is None else [each.tolist() for each in images]
        self.calls.append((graph, self.caches.index(cache), input_ids.tolist(), cache_position.tolist(), known))
        return np.zeros((*logits_index.shape, 4), np.float32), hidden

    def copy(self, source, rows, length, target):
        self.calls.append((self.caches.index(source), rows, length, self.caches.index(target)))

    def rows(self, cache, first, count):
        self.caches.append((cache, first, count))
        return self.caches[-1]

    def trim(self, cache, length):
        self.calls.append(("trimmed", self.caches.index(cache), length))

    def close(self):
        self.calls.append("closed")


class NoCommunicator:
    ended = False

    def abort(self):
        self.ended = True

    close = abort


@pytest.fixture
def pair():
    """A leader, and the thread of its follower, each with a backend."""
    made = []

    def make(mine: Recorder, theirs: Recorder):
        here, there = socket.socketpair()
        orders, others = Orders(_channel(there), "rank 1 of 2"), Followers({1: _channel(here)})
        ended = []

        def run():
            try:
                follow(theirs, orders)
                ended.append("done")
            except MachineError as error:
                ended.append(str(error))
            finally:
                orders.close()  # or it would end this process, as one that hangs

        thread = threading.Thread(target=run)
        thread.start()
        communicator = NoCommunicator()
        others.on_failure.append(communicator.abort)
        leader = Leader(mine, others, communicator)
        made.append((leader, thread))
        return leader, thread, ended, communicator

    yield make
    for leader, thread in made:
        leader.close()
        thread.join(10)
        assert not thread.is_alive()


STEP = (np.array([[5, 6]]), np.array([3]), np.array([[1]]))


def test_followers_take_every_step(pair):
    mine, theirs = Recorder(), Recorder()
    leader, thread, ended, communicator = pair(mine, theirs)
    first, second = leader.new_cache(1), leader.new_cache(2)
    leader.forward("main", first, *STEP)
    images = np.ones((1, 3), np.float32), np.array([[0, 1]])
    leader.forward("mtp", second, *STEP, hidden=np.ones((1, 2, 3), np.uint16), images=images)
    leader.copy(first, [0, 0], 4, second)
    part = leader.rows(second, 1, 1)
    leader.forward("main", part, *STEP)
    leader.trim(second, 3)
    assert len(mine.calls) == 5 and mine.calls == theirs.calls
    assert mine.caches[2] == (mine.caches[1], 1, 1) and theirs.caches[2] == (theirs.caches[1], 1, 1)
    with pytest.raises(InputError, match="65 tokens do not fit the engine's context of 64"):  # and all stay together
        leader.forward("main", first, STEP[0], np.array([63]), STEP[2])
    leader.forward("main", first, *STEP)
    leader.close()
    thread.join(10)
    assert ended == ["done"] and communicator.ended
    with pytest.raises(InputError, match="closed"):
        leader.new_cache(1)


@pytest.mark.parametrize("room", [(1, 2), (2, 1)])
def test_a_cache_for_which_one_rank_has_no_room_is_nobodys(pair, room):
    mine, theirs = map(Recorder, room)
    leader, *_ = pair(mine, theirs)
    cache = leader.new_cache(1)
    with pytest.raises(MachineError, match=r"^no 8 bytes left on the GPU$"):
        leader.new_cache(1)
    leader.forward("main", cache, *STEP)
    assert mine.calls == theirs.calls


def test_a_follower_that_fails_says_why(pair):
    mine, theirs = Recorder(), Recorder()
    leader, thread, ended, communicator = pair(mine, theirs)
    cache = leader.new_cache(1)
    theirs.room = 0
    for _ in range(2):  # and from then on
        with pytest.raises(MachineError, match=r"^rank 1 of 2: broken$"):
            leader.forward("main", cache, *STEP)
    thread.join(10)
    assert communicator.ended and ended == ["rank 1 of 2: broken"]


def test_a_leader_that_fails_lets_the_others_go(pair):
    mine, theirs = Recorder(), Recorder()
    leader, thread, ended, communicator = pair(mine, theirs)
    cache = leader.new_cache(1)
    mine.room = 0
    for message in (r"^broken$", r"^rank 0 of 2 failed \(broken\); load the model again$"):
        with pytest.raises(MachineError, match=message):
            leader.forward("main", cache, *STEP)
    thread.join(10)
    assert communicator.ended and ended == ["rank 1 of 2: rank 0 ended; load the model again"]


@pytest.fixture
def interruptible():
    """Processes that a shell starts in the background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupted_step_is_taken_by_all(pair, interruptible):
    """Ctrl-C while rank 0 waits for its engine: the step goes on, and the next one is the next one everywhere."""
    mine, theirs = Recorder(), Recorder()
    leader, *_ = pair(mine, theirs)
    cache, begun, go_on = leader.new_cache(1), threading.Event(), threading.Event()
    step = mine.forward

    def slow(*given):
        begun.set()
        assert go_on.wait(30)
        return step(*given)

    mine.forward = slow
    main = threading.main_thread().ident

    def interrupt():
        begun.wait(30)
        while sys._current_frames()[main].f_code is not threading.Condition.wait.__code__:
            time.sleep(0.01)
        time.sleep(0.5)  # a signal that comes just before the main thread waits is seen when it has waited
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        leader.forward("main", cache, *STEP)
    go_on.set()
    leader.forward("mtp", cache, *STEP)
    assert [call[0] for call in mine.calls] == ["main", "mtp"] and mine.calls == theirs.calls


def test_a_step_that_never_ends_ends_the_process(pair, monkeypatch, capfd):
    """As a GPU may wait for a rank that is gone, whatever the library is told."""
    mine, theirs = Recorder(), Recorder()
    leader, *_ = pair(mine, theirs)
    cache, ended, go_on = leader.new_cache(1), [], threading.Event()
    theirs.room = 0
    monkeypatch.setattr(followers, "GRACE", 0.1)
    monkeypatch.setattr(os, "_exit", lambda code: (ended.append(code), go_on.set()))
    monkeypatch.setattr(mine, "forward", lambda *_: go_on.wait(30))
    with pytest.raises(MachineError, match=r"^rank 1 of 2: broken$"):
        leader.forward("main", cache, *STEP)
    assert ended == [4] and capfd.readouterr().err == "llmc: rank 1 of 2: broken\n"
