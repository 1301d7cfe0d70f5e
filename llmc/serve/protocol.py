"""The bodies of requests, as OpenAI's clients send them, with the sampling parameters that vLLM and SGLang add.

What a field asks for is done or refused, never passed over; a few fields that ask for nothing are taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, field_validator, model_validator

MOST_LOGPROBS = 20
_MOST_STOPS = 32
Tokens = list[StrictInt]


class StreamOptions(BaseModel):
    """How a stream ends."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    include_obfuscation: bool = False  # of lengths, which nobody but the client sees here


class Asked(BaseModel):
    """What both kinds of completions have in common. A sampling parameter that is absent is the model's own."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    max_tokens: Annotated[int | None, Field(ge=0)] = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: StrictStr | list[StrictStr] | None = None
    n: Annotated[int, Field(ge=1, le=128)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    # What cannot be asked for, but may be said: the value that asks for nothing.
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    # Of use to somebody else.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    neutral: ClassVar[Mapping[str, Any]] = {"presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {}}

    @field_validator("n", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return 1 if value is None else value

    @field_validator("stream", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        return False if value is None else value

    @field_validator("stop")
    @classmethod
    def _few(cls, value: Any) -> Any:
        if isinstance(value, list) and len(value) > _MOST_STOPS:
            raise ValueError(f"there are {len(value)} strings; {_MOST_STOPS} are the most")
        return value

    @model_validator(mode="after")
    def _nothing_that_is_not_done(self) -> Asked:
        for name, nothing in self.neutral.items():
            value = getattr(self, name)
            if value is not None and value != nothing:
                raise NotDone(name, value)
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for streams; leave it out, or give stream: true")
        return self

    def sampling(self) -> dict[str, Any]:
        """Options of `SamplingParams`; None for what is the model's own. The same request draws anew without a seed."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0 if self.top_k == -1 else self.top_k,  # vLLM's way to write no limit
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "seed": None if self.seed is None else self.seed % 2**64,
            "stop": stop,
        }


class CompletionRequest(Asked):
    """POST /v1/completions."""

    prompt: StrictStr | list[StrictStr] | Tokens | list[Tokens]
    max_tokens: Annotated[int | None, Field(ge=0)] = 16
    echo: bool = False
    logprobs: Annotated[int | None, Field(ge=0, le=MOST_LOGPROBS)] = None
    best_of: int | None = None
    suffix: str | None = None

    neutral = {**Asked.neutral, "suffix": ""}

    @field_validator("logprobs", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("it has to be a number; true is for chats")
        return value

    @model_validator(mode="after")
    def _best_of(self) -> CompletionRequest:
        if self.best_of not in (None, self.n):
            raise ValueError("best_of has to be n; all answers are returned")
        if not self.max_tokens and self.max_tokens is not None and not self.echo:
            raise ValueError("max_tokens is 0; give echo: true, too, to have the prompt alone")
        return self


class ChatMessage(BaseModel):
    """One of a conversation: what templates may show. Parts of a content are text."""

    model_config = ConfigDict(extra="forbid")

    role: str
    content: StrictStr | list[dict[str, Any]] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    @field_validator("content")
    @classmethod
    def _text_alone(cls, value: Any) -> Any:
        """Other parts could name files of the server."""
        for part in value if isinstance(value, list) else ():
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise ValueError(f"a part is of type {part.get('type')!r}; this server takes text alone")
        return value

    def plain(self) -> dict[str, Any]:
        """As templates take it: parts are one text."""
        found = self.model_dump(exclude_none=True)
        if isinstance(self.content, list):
            found["content"] = "\n".join(part["text"] for part in self.content)
        return {"content": None if self.tool_calls else "", **found}


class ChatRequest(Asked):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=MOST_LOGPROBS)] = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    response_format: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None

    neutral = {**Asked.neutral, "response_format": {"type": "text"}}

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        return self

    @property
    def most_tokens(self) -> int | None:
        """Of the answer; None: what fits the context."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def template(self) -> dict[str, Any]:
        """Variables of the chat template, but for the messages."""
        found = dict(self.chat_template_kwargs or {})
        if self.tools and self.tool_choice != "none":
            found["tools"] = self.tools
        if self.reasoning_effort is not None:
            found["reasoning_effort"] = self.reasoning_effort
        return found


class NotDone(ValueError):
    """Something was asked for that llmc does not do."""

    def __init__(self, name: str, value: Any) -> None:
        super().__init__(f"{name} is {value!r}, which llmc does not do; leave it out")
