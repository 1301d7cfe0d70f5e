"""A model that several GPUs hold together: one process for each, of which the first answers and the others follow.

Every process runs the engine of its rank. What rank 0 is asked it tells the others, so that all take the same steps;
the engines themselves sum what they found, through the communicator that they are given. Sampling is rank 0's alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
from typing import NoReturn

from llmc.errors import InputError, LlmcError, MachineError
from llmc.runtime.artifact import Artifact
from llmc.runtime.backends import Backend
from llmc.runtime.backends.built_engines import built_engines
from llmc.runtime.backends.tensorrt import EngineFactory
from llmc.runtime.distributed import nccl
from llmc.runtime.distributed.channel import gather, join, listen
from llmc.runtime.distributed.follower import Orders, follow
from llmc.runtime.distributed.followers import Followers
from llmc.runtime.distributed.leader import Leader
from llmc.runtime.distributed.place import Place, visible_gpus
from llmc.runtime.distributed.processes import Processes
from llmc.runtime.fork import lose, watch
from llmc.tensorrt_package import TENSORRT, TENSORRT_RTX

PACKAGES = {package.name: package for package in (TENSORRT, TENSORRT_RTX)}
_COMING = 120.0  # seconds that the other processes may take to start


def start(artifact: Artifact, name: str | None, ranks: int) -> tuple[Backend, str]:
    """What `backends.start` returns, for the engines of so many ranks.

    In a process that a launcher such as torchrun started as another rank than the first it does not return: it follows
    the first until that is done, and ends the process. Where there is no such launcher the other processes are started
    here. MachineError if a rank is missing.
    """
    place = Place.told()
    if place is not None and place.ranks != ranks:
        raise InputError(f"the environment says WORLD_SIZE={place.ranks}, and {ranks} ranks are wanted; leave out one")
    chosen = _chosen(artifact, name, ranks)
    nccl.require()
    if place is not None and place.rank:
        _follow(artifact, chosen, place)
    leader = _lead(artifact, chosen, place, ranks)
    watch(leader, lose)
    return leader, f"{chosen}, {ranks} ranks"


def _chosen(artifact: Artifact, name: str | None, ranks: int) -> str:
    """The backend named, or the one that has engines for so many ranks."""
    if name is not None and name not in PACKAGES:
        raise InputError(f"{name} runs on one device; leave out `ranks`, or the backend")
    counts = {
        each: {built.description.ranks for built in built_engines(package, artifact, None)}
        for each, package in PACKAGES.items()
        if name in (None, each)
    }
    for each, found in counts.items():
        if ranks in found:
            return each
    there = ", ".join(map(str, sorted(set().union(*counts.values())))) or "no engines at all"
    raise InputError(
        f"{artifact.path}: has no engines for {ranks} ranks, but for {there}; set `tensor_parallel: {ranks}` of its "
        "target"
    )


def _lead(artifact: Artifact, name: str, place: Place | None, ranks: int) -> Leader:
    factory = EngineFactory(PACKAGES[name], 0, 0, ranks)
    device = 0 if place is None else place.local_rank
    if reason := factory.unavailable(artifact, None, device):
        raise MachineError(f"{artifact.path}: no backend can run it here; {name}: {reason}")
    if place is None and visible_gpus() < ranks:
        raise MachineError(f"{ranks} ranks need as many GPUs, and CUDA sees {visible_gpus()}")
    with contextlib.ExitStack() as undo:
        if place is None:
            server = listen("127.0.0.1")
            key = secrets.token_hex(32).encode()
            place = Place(0, ranks, 0, "127.0.0.1", server.getsockname()[1], key)
            processes = Processes(place, artifact.path, name)
            undo.callback(processes.close)
        else:
            server, processes = listen(place.address, place.port), None
        channels = gather(server, place, _COMING, processes.require if processes else lambda: None)
        followers = Followers(channels)
        undo.callback(followers.close)
        with followers.working():
            backend, communicator = _begin(artifact, factory, followers, device)
        undo.pop_all()
    return Leader(backend, followers, communicator, processes)


def _begin(
    artifact: Artifact, factory: EngineFactory, followers: Followers, device: int
) -> tuple[Backend, nccl.Communicator]:
    """Rank 0's part, once all others have theirs."""
    identifier = nccl.identifier()
    followers.tell({"do": "begin", "identifier": identifier.hex(), "artifact": _engines(artifact, factory.name)})
    followers.replies()  # each has the same artifact, and is about to make its part of the communicator
    communicator = nccl.Communicator(0, followers.ranks, identifier, device)
    followers.on_failure.append(communicator.abort)
    try:
        backend = factory.start(artifact, None, None, device)
    except LlmcError as error:
        followers.fail(str(error))
        raise
    backend.give_to_contexts(communicator.give_to)
    followers.replies()  # each has loaded its engines
    return backend, communicator


def _follow(artifact: Artifact, name: str, place: Place) -> NoReturn:
    """Be one of the other ranks."""
    factory = EngineFactory(PACKAGES[name], 0, place.rank, place.ranks)
    orders = Orders(join(place, _COMING), f"rank {place.rank} of {place.ranks}")
    try:
        begin, _ = orders.next()
        reason = factory.unavailable(artifact, None, place.local_rank)
        if begin["artifact"] != _engines(artifact, name):
            reason = f"{artifact.path} is another artifact than that of rank 0"
        if reason:
            orders.refuse(reason)
        orders.answer(done="begin")
        communicator = nccl.Communicator(place.rank, place.ranks, bytes.fromhex(begin["identifier"]), place.local_rank)
        orders.on_failure.append(communicator.abort)
        try:
            backend = factory.start(artifact, None, None, place.local_rank)
        except LlmcError as error:
            orders.refuse(str(error), error)
        backend.give_to_contexts(communicator.give_to)
        orders.answer(done="load")
        follow(backend, orders)
        backend.close()
        communicator.close()
    finally:
        orders.close()
    raise SystemExit(0)


def _engines(artifact: Artifact, name: str) -> str:
    """A hash of all engines of the artifact: those of all ranks have to be of one build."""
    found = sorted(built.description.sha256 for built in built_engines(PACKAGES[name], artifact, None))
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()
