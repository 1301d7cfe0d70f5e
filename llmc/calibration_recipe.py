"""`calibration` and `check` of a recipe: which texts, and how much of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    WithJsonSchema,
    model_serializer,
    model_validator,
)

from llmc.contracts.confidence import CONFIDENCES
from llmc.contracts.part import LimitRecord
from llmc.errors import InputError
from llmc.mixes import MIX, mixed
from llmc.patterns import shown
from llmc.recipe_section import PathOrId, Section, Share, at, explain, path_or_id

PYTHON_DOCS = "builtin:python-docs"
# What the model writes: chats, if it has a template for them, or text in any case. A file of such a name is ./self.
SELF, SELF_TEXT = "self", "self:text"
_TEXT = (
    f"{PYTHON_DOCS}, or the path of a text file, of JSON lines, JSON or Parquet whose records have `text`, `messages`, "
    "`conversations`, `prompt` and `completion`, or `instruction` and `output`, or of a folder of such files; or a "
    "data set of the hub: hub:org/name, with :split or :config/split, and @revision"
)
_MOST_SOURCES = 100


class Source(Section):
    """One of several texts."""

    text: PathOrId = Field(description=_TEXT)
    weight: float = Field(default=1, gt=0, le=1e6, description="its share of the tokens, beside the others' weights")


def _texts(value: Any) -> str | list[Source]:
    """A text, or several with their weights; a text alone is one of weight 1."""
    if isinstance(value, str):
        return path_or_id(value)
    if not isinstance(value, list):
        raise at((), "must be a text or a list of texts: `- {text: chats.jsonl, weight: 2}`")
    if not 0 < len(value) <= _MOST_SOURCES:
        raise at((), f"must be a text or a list of 1 to {_MOST_SOURCES} texts, not {len(value)}")
    sources: list[Source] = []
    for index, each in enumerate(value):
        source = _source(index, each)
        if source.text in [other.text for other in sources]:
            raise at((index,), f"{source.text} is named twice; give it more weight instead")
        sources.append(source)
    return sources


def _source(index: int, value: Any) -> Source:
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, Mapping | Source):
        raise at((index,), "must be a text: `- chats.jsonl`, or `- {text: chats.jsonl, weight: 2}`")
    try:
        return Source.model_validate(value)
    except ValidationError as error:
        location, message = explain(error.errors()[0])
        raise at((index, *location), message) from error


def _texts_schema() -> dict[str, Any]:
    several = {"type": "array", "minItems": 1, "maxItems": _MOST_SOURCES}
    return {"anyOf": [{"type": "string"}, several | {"items": {"anyOf": [{"type": "string"}, {
        "type": "object",
        "additionalProperties": False,
        "required": ["text"],
        "properties": {
            "text": {"type": "string"},
            "weight": {"type": "number", "exclusiveMinimum": 0, "maximum": 1e6, "default": 1},
        },
    }]}}]}  # fmt: skip


def _written_texts(value: str | list[Source]) -> Any:
    return value if isinstance(value, str) else [{"text": each.text, "weight": float(each.weight)} for each in value]


# Without a serializer of its own pydantic serializes sources twice, and warns of what it finds the second time.
TextOrTexts = Annotated[
    str | list[Source], PlainValidator(_texts), PlainSerializer(_written_texts), WithJsonSchema(_texts_schema())
]


class Calibration(Section):
    """The text that pruning and GPTQ measure the model's activations on."""

    text: TextOrTexts = Field(
        default=PYTHON_DOCS,
        description=f"{_TEXT}; {SELF}, chats or text that the model writes itself, or {SELF_TEXT}, text in any case; a "
        f"mix of these by name, {MIX}chat, {MIX}code or {MIX}prose; or a list of such texts, each alone or as "
        "`{text: …, weight: 2}`, which get their shares of the tokens",
    )
    samples: int = Field(default=128, ge=1, le=1 << 20, description="windows of text")
    length: int | None = Field(
        default=None, ge=16, le=1 << 24, description="tokens per window; default 2048, or the model's context"
    )
    seed: int = Field(default=0, ge=0, lt=1 << 63, description="decides which documents are taken, and in which order")
    experts: Literal["routed", "shared", "all"] = Field(
        default="routed",
        description="an expert is calibrated on the tokens routed to it; shared: its inputs on all tokens, with one "
        "Hessian for all experts, which is faster and loses a little; all: everything on all tokens",
    )

    @property
    def sources(self) -> list[Source]:
        """The texts with their weights; InputError for a mix that is not known."""
        weights: dict[str, float] = {}
        for each in [Source(text=self.text)] if isinstance(self.text, str) else self.text:
            is_mix = each.text.startswith(MIX)
            for text, share in mixed(each.text.removeprefix(MIX)) if is_mix else [(each.text, 1.0)]:
                weights[text] = weights.get(text, 0) + share * each.weight
        return [Source(text=text, weight=weight) for text, weight in weights.items()]

    def shares(self, context: int) -> list[tuple[str, int]]:
        """Text and tokens of each source; together they fill the windows."""
        return _shares(self.sources, math.prod(self.windows(context)))

    def windows(self, context: int) -> tuple[int, int]:
        """How many, and their tokens, for a model with this context; InputError if they are longer."""
        return self.samples, _window("calibration", self.length, 2048, context)


def _shares(sources: Sequence[Source], total: int) -> list[tuple[str, int]]:
    """What each source gets of a whole, by weight."""
    whole = sum(source.weight for source in sources)
    ends = [round(total * weight / whole) for weight in accumulate(source.weight for source in sources)]
    return [(each.text, end - start) for each, start, end in zip(sources, [0, *ends], ends, strict=False)]


_CONFIDENCES = "|".join(map(str, CONFIDENCES))
_ENDS = re.compile(r"(.*?)\s*@\s*(\S*)")  # `2% @95`
_AT = {"type": "string", "pattern": rf"^\d+(\.\d+)?\s*%?\s*(@\s*({_CONFIDENCES}))?$"}
_LIMIT = WithJsonSchema({"anyOf": [{"type": "number"}, _AT]})
GateShare = Annotated[Share, _LIMIT]
GateNumber = Annotated[float, _LIMIT]


class Gates(Section):
    """Limits of what the artifact may lose, measured on the check text; a build that misses one fails. `2% @95` wants
    the end of the one-sided interval of 95 % confidence within the limit; 90 and 99 are known, too.
    """

    ppl_increase: GateShare | None = Field(
        default=None, gt=0, lt=1, description="perplexity over the original's, minus one; or `2% @95`"
    )
    kl_mean: GateNumber | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="mean KL divergence from the original, nats per token; or `0.05 @95`",
    )
    top1: GateShare | None = Field(
        default=None, gt=0, le=1, description="share of tokens with the original's first choice; or `90% @95`"
    )
    runtime_kl: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="median KL divergence of the runtime's answers from torch's with the same quantized weights, of a "
        "prompt's tokens or of an answer's, nats; default 0.005, or the median that the quantization costs if more",
    )
    _confidence: dict[str, int] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _of_ends(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Takes the confidences off."""
        if not isinstance(value, dict):
            return handler(value)
        bare, confidence = dict(value), {}
        for name, limit in value.items():
            if isinstance(limit, dict) and limit.keys() == {"limit", "confidence"}:
                bare[name], level = limit["limit"], str(limit["confidence"])
            elif isinstance(limit, str) and (match := _ENDS.fullmatch(limit.strip())):
                bare[name], level = _number(match[1]), match[2].removesuffix("%")
            else:
                continue
            if name == "runtime_kl":
                raise at(
                    (name,), "the runtime's own difference is no estimate of what other texts cost: leave out the @"
                )
            if level not in map(str, CONFIDENCES):
                known = ", ".join(map(str, CONFIDENCES))
                raise at((name,), f"a confidence of {shown(level)} is not known, only {known}: write `2% @95`")
            confidence[name] = int(level)
        found = handler(bare)
        found._confidence = confidence
        return found

    @model_serializer
    def _written(self) -> dict[str, Any]:
        limits = self.limits().items()
        return {name: each.to_json() if isinstance(each, LimitRecord) else each for name, each in limits}

    def limits(self) -> dict[str, float | LimitRecord]:
        """By name, as an artifact has them."""
        found = ((name, getattr(self, name)) for name in type(self).model_fields if getattr(self, name) is not None)
        levels = self._confidence
        return {
            name: LimitRecord(limit=limit, confidence=levels[name]) if name in levels else limit
            for name, limit in found
        }


def _number(text: str) -> Any:
    """What YAML would have made of it; a share stays as it is."""
    try:
        return float(text)
    except ValueError:
        return text


class Check(Section):
    """The text that the artifact is compared with the original on; never part of the calibration text."""

    text: TextOrTexts = Field(
        default=PYTHON_DOCS,
        description=f"{_TEXT}; or a list of such texts, each alone or as `{{text: …, weight: 2}}`, which get their "
        "shares of the windows, and the divergence is shown for each; what is taken of them is in the artifact word "
        "for word, as tokens, and published with it, unless publish_text is false",
    )
    publish_text: bool = Field(
        default=True,
        description="false: reference.safetensors, in which even the original's answers tell the text, is left out of "
        "the artifact and lies beside it as OUTPUT.reference.safetensors; `llmc check --reference` takes it",
    )
    tokens: int = Field(
        default=16384,
        ge=32,
        le=1 << 30,
        description="of fewer than a thousand, little follows: see the standard errors",
    )
    length: int | None = Field(
        default=None, ge=16, le=1 << 24, description="tokens per window; default 1024, or the model's context"
    )
    gates: Gates = Field(default_factory=Gates)
    default_gates: bool = Field(
        default=True,
        description="whether what holds for every model, however compressed, is a gate, too: runtime_kl, and graphs, "
        "tokenizer, chat template and MTP acceptance as they were built",
    )

    @property
    def sources(self) -> list[Source]:
        """The texts with their weights."""
        return [Source(text=self.text)] if isinstance(self.text, str) else self.text

    def shares(self, context: int) -> list[tuple[str, int]]:
        """Text and windows of each source; InputError where one would get none."""
        count, length = self.windows(context)
        shares = _shares(self.sources, count)
        for text, windows in shares:
            if not windows:
                raise InputError(
                    f"check.text {text} would get none of {count} windows of {length} tokens; give more tokens, "
                    "shorter windows, or this text more weight"
                )
        return shares

    def windows(self, context: int) -> tuple[int, int]:
        """How many, and their tokens, for a model with this context; InputError if they are longer."""
        length = _window("check", self.length, 1024, context)
        if self.tokens < length:
            raise InputError(f"check.tokens {self.tokens} is less than one window of {length} tokens")
        return self.tokens // length, length


def public_texts(texts: Any) -> Any:
    """As JSON for an artifact: see `public_path`."""
    if isinstance(texts, str):
        return public_path(texts)
    return [each | {"text": public_path(each["text"])} for each in texts]


def public_path(path: str) -> str:
    """An absolute path, which only tells where a build ran, is cut to its last part."""
    return Path(path).name if Path(path).expanduser().is_absolute() else path


def _window(name: str, length: int | None, default: int, context: int) -> int:
    if length is not None and length > context:
        raise InputError(f"{name}.length {length} is more than the model's context of {context} tokens")
    return length or min(default, context)
