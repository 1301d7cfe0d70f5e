"""`calibration` and `check` of a recipe: which texts, and how much of them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from llmc.errors import InputError
from llmc.recipe_section import PathOrId, Section, Share

PYTHON_DOCS = "builtin:python-docs"
_TEXT = (
    f"{PYTHON_DOCS}, or the path of a text file, or of JSON lines or a JSON list whose records have `text`, "
    "`messages`, `conversations`, `prompt` and `completion`, or `instruction` and `output`"
)


class Calibration(Section):
    """The text that pruning and GPTQ measure the model's activations on."""

    text: PathOrId = Field(default=PYTHON_DOCS, description=_TEXT)
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

    def windows(self, context: int) -> tuple[int, int]:
        """How many, and their tokens, for a model with this context; InputError if they are longer."""
        return self.samples, _window("calibration", self.length, 2048, context)


class Gates(Section):
    """Limits of what the artifact may lose, measured on the check text; a build that misses one fails."""

    ppl_increase: Share | None = Field(
        default=None, gt=0, lt=1, description="perplexity over the original's, minus one"
    )
    kl_mean: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="mean KL divergence from the original, nats per token"
    )
    top1: Share | None = Field(default=None, gt=0, le=1, description="share of tokens with the original's first choice")

    def limits(self) -> dict[str, float]:
        return self.model_dump(exclude_none=True)


class Check(Section):
    """The text that the artifact is compared with the original on; never part of the calibration text."""

    text: PathOrId = Field(
        default=PYTHON_DOCS,
        description=f"{_TEXT}; what is taken of it is in the artifact word for word, as tokens, and published with it, "
        "unless publish_text is false",
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

    def windows(self, context: int) -> tuple[int, int]:
        """How many, and their tokens, for a model with this context; InputError if they are longer."""
        length = _window("check", self.length, 1024, context)
        if self.tokens < length:
            raise InputError(f"check.tokens {self.tokens} is less than one window of {length} tokens")
        return self.tokens // length, length


def public_path(path: str) -> str:
    return Path(path).name if Path(path).expanduser().is_absolute() else path


def _window(name: str, length: int | None, default: int, context: int) -> int:
    if length is not None and length > context:
        raise InputError(f"{name}.length {length} is more than the model's context of {context} tokens")
    return length or min(default, context)
