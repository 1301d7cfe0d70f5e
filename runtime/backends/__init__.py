"""What can run an artifact. Every module here that defines `BACKENDS` adds some; adding one is adding a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from llmc.errors import InputError, MachineError
from llmc.registry import Registry
from llmc.runtime.artifact import Artifact
from llmc.runtime.fork import lose, watch

Graph = Literal["main", "mtp"]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float32]
CLOSED = "this model is closed; load it again"
ImageFeatures = tuple[FloatArray, IntArray]  # [N, H], and for each row and offset within a step [N, 2]
Hidden = NDArray[Any]  # in a type of the backend's choice: it is only cut and given back


class Backend(Protocol):
    """Runs the graphs of one artifact on caches that the backend owns and the caller passes around."""

    context: int  # the most tokens of a row that a cache can hold
    original_context: int | None  # tokens from whose number on a text is rotated otherwise (LongRoPE), and whole
    batch: int  # the most rows of a step
    max_prefill_tokens: int  # the most tokens per row of a step
    # The most tokens of a step, over all rows, times the cache entries they look at: what bounds its memory.
    max_attention_scores: int
    has_mtp: bool
    has_vision: bool
    cache_bytes: int  # per token and row, of both graphs

    def new_cache(self, batch: int) -> Any:
        """An empty cache for `batch` sequences, for both graphs."""

    def forward(
        self,
        graph: Graph,
        cache: Any,
        input_ids: IntArray,
        cache_position: IntArray,
        logits_index: IntArray,
        hidden: Hidden | None = None,
        long: BoolArray | None = None,
        images: ImageFeatures | None = None,
    ) -> tuple[FloatArray, Hidden | None]:
        """One step of S tokens a row, written to the cache in place.

        input_ids      [B, S]; for "mtp" the tokens i + 1
        cache_position [B], where each row's first token is written; entries at and behind it are overwritten, which
                       is how tokens are taken back
        logits_index   [B, L], positions within S whose logits are wanted
        hidden         [B, S, H], for "mtp": the main graph's of the tokens i, or its own when it drafts further
        long           [B], whether a row's text is longer than `original_context`, however much of it this step reads
        images         features, for "main" with `has_vision`, and the tokens whose embeddings' places they take
        Returns logits [B, L, V] and hidden [B, S, H] (None for a model without MTP).
        """

    def image_features(self, pixels: FloatArray) -> FloatArray:
        """Of tiles [N, 3, side, side], one below the other [N * tokens of a tile, H]; with `has_vision` alone."""

    def copy(self, source: Any, rows: Sequence[int], length: int, target: Any) -> None:
        """Row i of the cache `target` gets the first `length` entries of row rows[i] of `source`, of both graphs."""

    def rows(self, cache: Any, first: int, count: int) -> Any:
        """So many rows of a cache from `first` on, as a cache: what is written to one is in both."""

    def trim(self, cache: Any, length: int) -> None:
        """Nothing behind the first `length` entries of any row is needed: their memory may be given back, where that
        makes steps cheaper. Not for `rows` of a cache, which go along.
        """

    def close(self) -> None: ...


class BackendFactory(ABC):
    """Starts one kind of backend.

    Attributes:
        name: As `--backend` and the target of the recipe call it.
        preference: The highest that is available is picked.
    """

    name: str
    preference: int

    @abstractmethod
    def unavailable(self, artifact: Artifact, provider: str | None = None, device: int | None = None) -> str | None:
        """Return why it cannot run this artifact here; None: it can.

        Args:
            artifact: What is to be run.
            provider: What the user wrote behind a colon, as in `onnxruntime:cuda`.
            device: The GPU's number; None: the backend's own choice.
        """

    @abstractmethod
    def start(
        self, artifact: Artifact, threads: int | None, provider: str | None = None, device: int | None = None
    ) -> Backend:
        """Load the artifact's graphs; `threads` None: as many as it likes."""


def step_width(backend: Backend, rows: int, position: int) -> int:
    """Tokens per row that a step from `position` on should have at most."""
    width = backend.max_prefill_tokens
    while width > 1 and rows * width * (position + width) > backend.max_attention_scores:
        width //= 2
    return width


def longer(backend: Backend, lengths: Sequence[int] | IntArray) -> BoolArray | None:
    """Which texts of these lengths are rotated by the frequencies of long ones; None: that is not asked."""
    return None if backend.original_context is None else np.asarray(lengths) > backend.original_context


def require_room(cache_position: IntArray, input_ids: IntArray, context: int) -> None:
    """InputError for a step that would end behind an engine's context."""
    if (end := int(cache_position.max()) + input_ids.shape[1]) > context:
        raise InputError(f"{end} tokens do not fit the engine's context of {context}; shorten the prompt")


def step_inputs(
    input_ids: IntArray,
    cache_position: IntArray,
    logits_index: IntArray,
    hidden: Hidden | None,
    long: BoolArray | None = None,
    original_context: int | None = None,
) -> dict[str, NDArray[Any]]:
    """The inputs of a graph that are not caches, by name, for a step of `forward`.

    A graph of a model with LongRoPE takes a row for long if its largest position says so. Scores depend on differences
    of positions alone, so all of a long row are moved behind the border, also those of its first part; and what pads a
    short one stays in front of it.
    """
    position_ids = cache_position[:, None] + np.arange(input_ids.shape[1])
    if original_context is not None and long is not None:
        short = np.minimum(position_ids, original_context - 1)
        position_ids = np.where(long[:, None], position_ids + original_context, short)
    inputs: dict[str, NDArray[Any]] = {
        "input_ids": input_ids,
        "position_ids": position_ids,
        "cache_position": cache_position,
        "logits_index": logits_index,
    }
    return inputs if hidden is None else inputs | {"previous_hidden": hidden}


def image_inputs(images: ImageFeatures | None, width: int) -> dict[str, NDArray[Any]]:
    """The inputs of a main graph that takes images, for a step that may have none. width: that of features."""
    features, positions = images or (np.empty((0, width), np.float32), np.empty((0, 2), np.int64))
    return {"image_features": features, "image_positions": positions}


backends: Registry[BackendFactory] = Registry("backend", __name__, "BACKENDS")


def start(
    artifact: Artifact, name: str | None = None, threads: int | None = None, device: int | None = None
) -> tuple[Backend, str]:
    """The backend named, `name` or `name:provider`, or else the fastest that is available; and why it and no other.
    MachineError when the one named, or every one, cannot run here, or not on GPU number `device`.
    """
    name, _, provider = (name or "").partition(":")
    reasons: list[str] = []
    known = sorted(backends.all.values(), key=lambda factory: -factory.preference)
    built = [factory for factory in known if factory.name in artifact.manifest.targets]
    for candidate in [backends.get(name)] if name else built or known:
        reason = candidate.unavailable(artifact, provider or None, device)
        if reason is None:
            chosen = candidate.name + (f":{provider}" if provider else "")
            why = f" ({'; '.join(reasons)})" if reasons else ""
            backend = candidate.start(artifact, threads, provider or None, device)
            watch(backend, lose)
            return backend, chosen + why
        reasons.append(f"{candidate.name}: {reason}")
    raise MachineError(f"{artifact.path}: no backend can run it here; {'; '.join(reasons)}")
