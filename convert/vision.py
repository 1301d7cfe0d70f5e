"""What a vision tower and its projector are: InternViT (Chen et al. 2023) and what follows it in NVLM-D."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from llmc.contracts.images import ImagesRecord

TOWER, PROJECTOR = "vision_model.", "mlp1."
EMBEDDINGS, LAYERS = f"{TOWER}embeddings", f"{TOWER}encoder.layers"
PROJECTOR_EPS = 1e-5


@dataclass(frozen=True)
class VisionSpec:
    """A vision tower and its projector.

    Attributes:
        num_layers: those that are computed: the tower's may be more
        num_heads: those that head_dim follows from; the checkpoint may have further ones, of zeros
        qk_norm: whether queries and keys are normalized, all heads together
        merged: patches a side whose features become those of one token
        transposed: whether tokens run from top to bottom first (`ps_version` v1), not from left to right
        text_size: width of the language model
        images: what a runtime does with an image
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    patch_size: int
    norm: Literal["rms_norm", "layer_norm"]
    eps: float
    qk_norm: bool
    merged: int
    transposed: bool
    projector_size: int
    text_size: int
    images: ImagesRecord

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patches(self) -> int:
        """A side of a tile."""
        return self.images.tile_size // self.patch_size

    def shapes(self, stored_heads: int) -> Mapping[str, tuple[int, ...]]:
        """Of all tensors that there have to be; biases of linear layers and norms need not."""
        width, inner, heads = self.hidden_size, self.intermediate_size, stored_heads * self.head_dim
        merged = width * self.merged**2
        found: dict[str, tuple[int, ...]] = {
            f"{EMBEDDINGS}.class_embedding": (1, 1, width),
            f"{EMBEDDINGS}.position_embedding": (1, self.patches**2 + 1, width),
            f"{EMBEDDINGS}.patch_embedding.weight": (width, 3, self.patch_size, self.patch_size),
        }
        for layer in range(self.num_layers):
            inside: dict[str, tuple[int, ...]] = {
                "attn.qkv.weight": (3 * heads, width),
                "attn.proj.weight": (width, heads),
                "norm1.weight": (width,),
                "norm2.weight": (width,),
                "ls1": (width,),
                "ls2": (width,),
                "mlp.fc1.weight": (inner, width),
                "mlp.fc2.weight": (width, inner),
            }
            if self.qk_norm:
                inside |= {"attn.q_norm.weight": (heads,), "attn.k_norm.weight": (heads,)}
            found |= {f"{LAYERS}.{layer}.{name}": shape for name, shape in inside.items()}
        return found | {
            f"{PROJECTOR}0.weight": (merged,),
            f"{PROJECTOR}1.weight": (self.projector_size, merged),
            f"{PROJECTOR}3.weight": (self.text_size, self.projector_size),
        }
