"""What tests of all rooms share."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Tests run in parallel; before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from support.byte_tokenizer import byte_tokenizer
from support.random_checkpoint import DEEPSEEK_V3, random_checkpoint
from xdist.scheduler import LoadFileScheduling

REPOSITORY = Path(__file__).parent.parent

# Which take more than twenty seconds. One that is begun last would keep one process busy, and leave the other idle.
LONGEST = re.compile(
    "test_(packaging|fuzz|every_scheme|resume|ladder.*|kernel_.*|target_tensorrt.*|tensor_parallel_engines|generation"
    "|embedded_checkpoint|reuse|quickstart|endurance|damage|distributed|target_onnxruntime|lm_eval|bad_input)"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not LONGEST.fullmatch(item.path.stem))


class ByFile(LoadFileScheduling):
    """Both files of the ladder go to the same process, as they climb with the same models."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return file.replace("test_ladder_graphs.py", "test_ladder.py")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile | None:
    return ByFile(config, log) if config.getvalue("dist") == "loadfile" else None


class InThisProcess:
    """Has what is used of a ProcessPoolExecutor."""

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *_: object) -> None: ...

    map = staticmethod(map)


@pytest.fixture(scope="session", autouse=True)
def kernels_are_compiled_here() -> Iterator[None]:
    """Not in new processes, each of which takes seconds to import Triton: once for each engine that tests compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmc.convert.kernels.kernel_sets.ProcessPoolExecutor", InThisProcess)
        yield


@pytest.fixture(scope="session", autouse=True)
def disks_are_not_waited_for() -> Iterator[None]:
    """A build syncs files sixty times; only a loss of power would show it, and no test has one. What cannot be synced
    still fails.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(scope="session")
def embedded() -> Path:
    """The trained checkpoint that ships with llmc."""
    return REPOSITORY / "recipes" / "checkpoints" / "tiny-deepseek-v3"


@pytest.fixture(scope="session")
def trained(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of the embedded checkpoint: int4 experts, FP8 attention, MTP; accuracy level 1."""
    import torch
    from support.runnable_artifact import make_artifact
    from tokenizers import Tokenizer

    from llmc.quant.assign import Rule

    tokenizer = Tokenizer.from_file(str(embedded / "tokenizer.json"))
    ids = tokenizer.encode((Path(json.__file__)).read_text(encoding="utf-8")).ids
    text = torch.tensor(ids[: 4 * 192]).view(4, 192)
    rules = [Rule("experts", "int4-g64", "rtn"), Rule("attention", "fp8-block", "rtn")]
    return make_artifact(embedded, rules, text, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DeepSeek-V3 of 0.3 M random parameters whose tokens are bytes; inputs are multiples of 32."""
    path = random_checkpoint(
        tmp_path_factory.mktemp("models") / "small",
        DEEPSEEK_V3,
        vocab_size=260,
        intermediate_size=96,
        moe_intermediate_size=32,
        q_lora_rank=32,
        num_hidden_layers=2,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        max_position_embeddings=128,
    )
    byte_tokenizer(path)
    return path


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100,000 characters of words."""
    generator = random.Random(0)
    words = ["".join(generator.choices("etaoinshrdlu", k=generator.randint(2, 9))) for _ in range(500)]
    lines = [" ".join(generator.choices(words, k=10)) for _ in range(1600)]
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("\n".join(lines))
    return path
