"""What each tensor of a GGUF file is made of: rows of ours in another order, halves of a matrix, stacks of experts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmc.convert.gguf.architectures import Architecture
from llmc.convert.gguf.tensor_names import KEYS, VALUES, stored_name
from llmc.convert.layer_modules import weight_shapes
from llmc.convert.spec import CACHE_SCALES, GroupedQueryAttentionSpec, LatentAttentionSpec, ModelSpec
from llmc.convert.tensor_names import TensorName

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Arranged:
    """One tensor of the file.

    Attributes:
        name: llama.cpp's
        sources: our names: of one tensor, or of all experts' in a stack
        shape: of the whole; where `transposed`, of what then is there
        rows: which rows of its source, in which order; None: as they are
        transposed: whether each head's matrix is turned over, so that codes along its rows have no place
    """

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    rows: Rows | None = None
    transposed: bool = False

    @property
    def plain(self) -> bool:
        """Whether llama.cpp wants it in float32: vectors and routers."""
        return len(self.shape) == 1 or ".ffn_gate_inp." in self.name


def arranged(spec: ModelSpec, architecture: Architecture, mtp: bool) -> list[Arranged]:
    """Return the tensors of a file in their order, with layers for multi-token prediction or without."""
    found: dict[str, list[str]] = {}
    shapes = weight_shapes(spec)
    for name in shapes:
        parsed = TensorName.parse(name)
        if parsed.module.layer is not None and spec.is_mtp(parsed.module.layer) and not mtp:
            continue
        if parsed.part in CACHE_SCALES or parsed.module.projection == "kv_b_proj":
            stored = name
        else:
            stored = stored_name(parsed.module, parsed.part)
        found.setdefault(stored, []).append(name)
    result: list[Arranged] = []
    for stored, sources in found.items():
        module, part = TensorName.parse(sources[0]).module, TensorName.parse(sources[0]).part
        shape = shapes[sources[0]]
        attention = spec.attentions[module.layer] if module.layer is not None else None
        if part in CACHE_SCALES:
            continue
        if module.projection == "kv_b_proj":
            assert isinstance(attention, LatentAttentionSpec)
            result += _halves(sources[0], module.layer, attention)
        elif module.expert is not None:
            result.append(Arranged(stored, tuple(sources), (len(sources), *shape)))
        elif architecture.rotates_neighbors and module.projection in ("q_proj", "k_proj"):
            assert isinstance(attention, GroupedQueryAttentionSpec)
            heads = attention.num_heads if module.projection == "q_proj" else attention.num_kv_heads
            result.append(Arranged(stored, tuple(sources), shape, in_pairs(heads, attention.head_dim)))
        else:
            result.append(Arranged(stored, tuple(sources), shape))
    return result


def in_pairs(heads: int, head_dim: int) -> Rows:
    """Return the rows i and i + d/2 of each head side by side, as llama.cpp rotates them: [heads * head_dim]."""
    return np.arange(heads * head_dim).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def _halves(source: str, layer: int | None, attention: LatentAttentionSpec) -> list[Arranged]:
    """kv_b_proj [heads * (nope + v), rank] as what turns queries to the latent, and what makes values of it."""
    heads, nope, rank = attention.num_heads, attention.qk_nope_head_dim, attention.kv_lora_rank
    rows = np.arange(heads * (nope + attention.v_head_dim)).reshape(heads, -1)
    keys, values = rows[:, :nope].reshape(-1), rows[:, nope:].reshape(-1)
    return [
        Arranged(f"blk.{layer}.{KEYS}.weight", (source,), (heads, rank, nope), keys, transposed=True),
        Arranged(f"blk.{layer}.{VALUES}.weight", (source,), (heads, attention.v_head_dim, rank), values),
    ]
