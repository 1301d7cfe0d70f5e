"""Several GPUs on a machine without one: each rank's engine is its graph, which onnx's reference evaluator runs, and
NCCL is played by sockets. `use` is called in every process: in that of the test, and, by a sitecustomize.py, in those
of other ranks.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import shutil
import signal
import socket
import sys
import threading
import types
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.engines.tensor_parallel import rank_of
from llmc.convert.graph.across_ranks import COLLECTIVE
from llmc.convert.graph.build import graphs
from llmc.convert.graph.write import write
from llmc.runtime.distributed.channel import Channel, Ended
from support import gpu_stand_in

CONTEXT = 160
_SITE = """
import os, sys
if os.environ.get("STAND_IN") and "confined" not in " ".join(sys.orig_argv):
    import tempfile
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import pytest
    from support import ranks_stand_in
    ranks_stand_in.use(pytest.MonkeyPatch(), Path(os.environ["STAND_IN"]))
"""


def add_rank_engines(source: Path, directory: Path, ranks: int) -> Path:
    """A copy of an artifact with "engines" for so many ranks that name the graphs of each."""
    artifact = shutil.copytree(source, directory / "artifact")
    checkpoint, files = Checkpoint.open(artifact), dict[str, str]()
    manifest = json.loads((artifact / "llmc.json").read_text())
    for rank in range(ranks):
        models = graphs(rank_of(checkpoint, rank, ranks), ir.DataType.FLOAT, CONTEXT)
        for model in models.values():
            model.graph.opset_imports["ranks"] = 1
            for node in model.graph:
                node.domain = "ranks" if node.op_type == COLLECTIVE else node.domain
        folder = directory / f"rank{rank}"
        written = write("", models, folder, {role: f"{role}.onnx" for role in models}, lambda *_: None).files
        for role in models:
            onnx_file, stem = folder / written[role], f"{role}-rank{rank}of{ranks}"
            said = gpu_stand_in.describe(role, onnx_file, [86], CONTEXT)
            said |= {"ranks": ranks, "rank": rank, "engine": f"{stem}.engine"}
            files |= gpu_stand_in.add_engine(artifact, manifest, stem, onnx_file, said)
    manifest["targets"]["tensorrt-rtx"] = {"files": files}
    (artifact / "llmc.json").write_text(json.dumps(manifest))
    return artifact


def use(monkeypatch: pytest.MonkeyPatch, folder: Path) -> gpu_stand_in.HostMemory:
    """Two GPUs, both packages and NCCL are there; processes that are started have them, too."""
    memory = gpu_stand_in.gpu_stand_in(monkeypatch, folder)
    memory.cudaGetDeviceCount = lambda: (memory.fine, 2)
    monkeypatch.setattr(gpu_stand_in, "onnxruntime", types.SimpleNamespace(InferenceSession=Session))
    monkeypatch.setattr(gpu_stand_in, "Context", Context)
    core = types.SimpleNamespace(get_unique_id=UniqueId, UniqueId=UniqueId, Communicator=Communicator)
    monkeypatch.setitem(sys.modules, "nccl", types.SimpleNamespace(core=core))
    monkeypatch.setitem(sys.modules, "nccl.core", core)
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "nccl" or known(name))
    site = folder / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(_SITE.format(tests=str(Path(__file__).parents[1])))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("STAND_IN", str(folder))
    return memory


class Session:
    """What of onnxruntime.InferenceSession is used."""

    def __init__(self, path: str) -> None:
        model = onnx.load(path, load_external_data=False)
        self._inputs, self._outputs = (list(map(_io, each)) for each in (model.graph.input, model.graph.output))
        self._evaluator = ReferenceEvaluator(path, new_ops=[DistCollective])
        self.communicator: Communicator | None = None

    def get_inputs(self):
        return self._inputs

    def get_outputs(self):
        return self._outputs

    def run(self, names, feeds):
        assert self.communicator is not None
        DistCollective.communicator = self.communicator
        return self._evaluator.run(names, feeds)


def _io(value: onnx.ValueInfoProto) -> types.SimpleNamespace:
    kind = "int64" if value.type.tensor_type.elem_type == onnx.TensorProto.INT64 else "float"
    shape = [each.dim_value or each.dim_param for each in value.type.tensor_type.shape.dim]
    return types.SimpleNamespace(name=value.name, type=f"tensor({kind})", shape=shape)


class Context(gpu_stand_in.Context):
    def set_communicator(self, capsule: object) -> bool:
        address = ctypes.pythonapi.PyCapsule_GetPointer
        address.restype, address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        self.session.communicator = Communicator.known[address(capsule, None)]
        return True


class DistCollective(OpRun):
    op_domain = "ranks"
    communicator: Communicator

    def _run(self, x, collective_operation, nb_rank, reduce_op, root):
        parts = self.communicator.everybody(x)
        assert len(parts) == nb_rank and root == -1
        return (sum(parts) if reduce_op == "sum" else np.concatenate(parts),)


class UniqueId:
    """The port that rank 0 waits on."""

    servers: ClassVar[dict[int, socket.socket]] = {}

    def __init__(self, port: int | None = None) -> None:
        if port is None:
            server = socket.create_server(("127.0.0.1", 0))
            port = server.getsockname()[1]
            self.servers[port] = server
        self.port, self.as_bytes = port, port.to_bytes(4, "big")

    @classmethod
    def from_bytes(cls, data: bytes) -> UniqueId:
        return cls(int.from_bytes(data, "big"))


class Communicator:
    """Like NCCL's, it waits for ever for a rank that is gone, until it is aborted."""

    known: ClassVar[dict[int, Communicator]] = {}

    def __init__(self, ranks: int, rank: int, found: UniqueId) -> None:
        self.ptr, self.rank, self._aborted = id(self), rank, threading.Event()
        self.known[self.ptr] = self
        self._left = int(os.environ.get(f"RANK_{rank}_ENDS_AFTER", -1))
        if rank:
            self._channels = {0: Channel(socket.create_connection(("127.0.0.1", found.port)))}
            self._channels[0].send({"rank": rank})
            return
        came = [Channel(found.servers[found.port].accept()[0]) for _ in range(1, ranks)]
        self._channels = {channel.receive()[0]["rank"]: channel for channel in came}

    @classmethod
    def init(cls, ranks: int, rank: int, found: UniqueId) -> Communicator:
        return cls(ranks, rank, found)

    def everybody(self, x: np.ndarray) -> list[np.ndarray]:
        """The arrays of all ranks, in their order."""
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1
        try:
            if self.rank:
                self._channels[0].send({}, [x])
                return self._channels[0].receive()[1]
            parts = [x, *(self._channels[rank].receive()[1][0] for rank in sorted(self._channels))]
            for channel in self._channels.values():
                channel.send({}, parts)
            return parts
        except Ended:
            assert self._aborted.wait(60)
            raise RuntimeError("aborted") from None

    def abort(self) -> None:
        self._aborted.set()
        self.destroy()

    def destroy(self) -> None:
        for channel in self._channels.values():
            channel.close()
