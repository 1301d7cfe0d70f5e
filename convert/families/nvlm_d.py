"""NVLM-D: Qwen2 with an InternViT vision tower, whose features take the places of tokens.

The published code is Python of the checkpoint's own, which is not run; what it does with an image is said here.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from llmc.contracts.images import ImagesRecord
from llmc.convert.families.family import published
from llmc.convert.families.qwen2 import Qwen2
from llmc.convert.families.vision_language import LEGACY, VisionLanguage, names_of
from llmc.convert.fields import Fields
from llmc.convert.vision import PROJECTOR, TOWER, VisionSpec
from llmc.errors import InputError

# Where config.json does not say: InternVisionConfig, and InternVLChatConfig, which NVLM's own is.
_TOWER = published(
    hidden_size=3200,
    intermediate_size=12800,
    num_hidden_layers=48,
    num_attention_heads=25,
    patch_size=14,
    image_size=224,
    layer_norm_eps=1e-6,
    norm_type="rms_norm",
    qk_normalization=True,
)
_IMAGES = published(
    downsample_ratio=0.5, select_layer=-1, ps_version="v1", max_dynamic_patch=6, dynamic_image_size=False
)
_MOST_TILES = 6  # there are tags for no more, <tile_1> to <tile_6>
_MEAN, _DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet


class NvlmD(VisionLanguage):
    name = "NVLM_D"
    architectures = ("NVLM_D", "NVLM_D_Model")
    texts = published(qwen2=Qwen2())
    text_field = "llm_config"
    stored_names = names_of(Qwen2(), TOWER, PROJECTOR, spellings=(LEGACY,))

    def notes(self, config: dict[str, Any]) -> list[str]:
        kept = "its vision tower and projector are kept as they are; calibration and checks are of text"
        images = "targets take images; the tower is a float32 graph of onnx and onnxruntime, which engines need, too"
        loaded = "transformers has no class for it, and the checkpoint's own code is not copied: llmc runs the artifact"
        return [kept, images, loaded, *self._text(config)[1].notes(self.text_config(config))]

    def obstacle(self, quantized: Collection[str]) -> str:
        return "it has no class of this architecture"

    def vision(self, config: dict[str, Any]) -> VisionSpec:
        """InputError for a tower that is no InternViT, or is not made for the size of the tiles."""
        outer, text = Fields({**_IMAGES, **config}), Fields(self.text_config(config))
        tower = Fields({**_TOWER, **outer.mapping("vision_config").config}, "vision_config.")
        tower.require("hidden_act", "gelu", "the tower's MLPs are of that kind")
        tower.require("num_channels", 3, "images are red, green and blue")
        size, patch = outer.integer("force_image_size", tower.config["image_size"]), tower.integer("patch_size")
        layers, heads, merged = tower.count("num_hidden_layers"), tower.count("num_attention_heads"), _merged(outer)
        width = tower.integer("hidden_size")
        if width % heads:
            raise InputError(f"`vision_config.hidden_size` {width} is no multiple of its `num_attention_heads` {heads}")
        if size % (patch * merged):
            raise InputError(f"`force_image_size` {size} is no multiple of {merged} patches of {patch} pixels")
        cut = outer.boolean("dynamic_image_size", False)
        return VisionSpec(
            hidden_size=width,
            intermediate_size=tower.integer("intermediate_size"),
            num_layers=_layers(outer, layers),
            num_heads=heads,
            patch_size=patch,
            norm=tower.one_of("norm_type", "rms_norm", "layer_norm"),
            eps=tower.number("layer_norm_eps"),
            qk_norm=tower.boolean("qk_normalization", True),
            merged=merged,
            transposed=outer.one_of("ps_version", "v1", "v2") == "v1",
            projector_size=text.integer("intermediate_size"),
            text_size=text.integer("hidden_size"),
            images=ImagesRecord(
                tile_size=size,
                most_tiles=min(outer.count("max_dynamic_patch"), _MOST_TILES) if cut else 1,
                tile_tokens=(size // patch // merged) ** 2,
                mean=_MEAN,
                deviation=_DEVIATION,
                mark="<image>",
                token="<|vision_pad|>",
                begin="<Image>",
                end="</Image>",
                tile_tag="<tile_#>",
                thumbnail_tag="<tile_global_thumbnail>",
            ),
        )


def _layers(outer: Fields, layers: int) -> int:
    """How many of the tower's layers come before the features."""
    chosen = outer.config["select_layer"]
    if type(chosen) is not int or not -layers <= chosen <= layers:
        raise outer.error("select_layer", f"an integer from {-layers} to {layers}")
    return chosen if chosen >= 0 else layers + chosen + 1


def _merged(outer: Fields) -> int:
    """Patches a side that become one token."""
    ratio = outer.number("downsample_ratio")
    if abs(round(1 / ratio) * ratio - 1) > 1e-6:
        raise outer.error("downsample_ratio", "one divided by a whole number")
    return round(1 / ratio)


FAMILY = NvlmD()
