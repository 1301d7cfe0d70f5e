"""Models that see: a language model, which is quantized, beside a vision tower and a projector, which are kept.

A module for each of them says where its language model lies and which families that may be of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmc.convert.families.family import Family
from llmc.convert.fields import Fields
from llmc.convert.spec import ModelSpec
from llmc.convert.stored_names import StoredNames
from llmc.errors import InputError

LEGACY = (("language_model.model.", "model."), ("language_model.lm_head.", "lm_head."))
TRANSFORMERS_5 = (("model.language_model.", "model."), ("lm_head.", "lm_head."))


class VisionLanguage(Family):
    """A family whose language model is of another.

    Attributes:
        texts: that other, by the `model_type` in `text_field`; all of them name tensors alike
        text_field: the object of config.json that describes the language model
        tied: `tie_word_embeddings` where config.json does not say
        missing: a line on what images would take that is not done here
    """

    texts: Mapping[str, Family]
    text_field = "text_config"
    tied = False
    missing: str | None = None

    def text_config(self, config: dict[str, Any]) -> dict[str, Any]:
        text = Fields(config).mapping(self.text_field).config
        outer = {name: config[name] for name in ("quantization_config",) if config.get(name)}
        tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", self.tied))
        return {**text, "tie_word_embeddings": tied, **outer}

    def _text(self, config: dict[str, Any]) -> tuple[str, Family]:
        """Its own `model_type`, and its family."""
        kind = Fields(config).mapping(self.text_field).config.get("model_type")
        for name, family in self.texts.items():
            if kind in (name, *family.other_names):
                return name, family
        raise InputError(f"`{self.text_field}.model_type` is {kind!r}; supported: {', '.join(self.texts)}")

    def spec(self, config: dict[str, Any]) -> ModelSpec:
        try:
            spec = self._text(config)[1].spec(self.text_config(config))
        except InputError as error:
            raise InputError(f"in `{self.text_field}`: {error}") from error
        ends = Fields(config).token_ids("eos_token_id")
        return replace(spec, family=self.name, eos_token_ids=spec.eos_token_ids or ends)

    def notes(self, config: dict[str, Any]) -> list[str]:
        kept = "its vision tower and projector are kept as they are; targets and checks are of text"
        return [kept, *([self.missing] if self.missing else []), *self._text(config)[1].notes(self.text_config(config))]

    def native_config(self, config: dict[str, Any]) -> dict[str, Any]:
        kind, family = self._text(config)
        text = family.native_config(config[self.text_field]) | {"model_type": kind}
        text.pop("quantization_config", None)
        return super().native_config(config) | {self.text_field: text}

    def without_mtp(self, config: dict[str, Any]) -> dict[str, Any]:
        return {**config, self.text_field: super().without_mtp(config[self.text_field])}

    def pruned_config(self, config: dict[str, Any], num_experts: int) -> dict[str, Any]:
        pruned = self._text(config)[1].pruned_config(config[self.text_field], num_experts)
        return {**config, self.text_field: pruned}


def names_of(family: Family, *kept: str, spellings: tuple[tuple[tuple[str, str], ...], ...]) -> StoredNames:
    """Those of a language model's family, inside a larger model."""
    return replace(family.stored_names, prefixes=spellings, kept=kept)
