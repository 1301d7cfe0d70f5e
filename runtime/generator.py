"""Text in, text out: what a model and a session of it have in common."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, Unpack, cast, overload

from llmc.errors import InputError
from llmc.runtime import arguments
from llmc.runtime.chat import Message
from llmc.runtime.image_prompt import ReadPrompt
from llmc.runtime.images import Image
from llmc.runtime.sampling import SamplingOptions, SamplingParams
from llmc.runtime.sequence import GeneratedSequence, Generation
from llmc.runtime.stream import Stream

Prompt: TypeAlias = str | Sequence[int] | Sequence[Message]
"""A text, or tokens as they are to be fed, or the messages of a chat, {"role": …, "content": …}."""
Prompts: TypeAlias = list[str] | list[Prompt] | Sequence[Sequence[int]] | Sequence[Sequence[Message]]
Images: TypeAlias = Sequence[Image]
Cancelled: TypeAlias = Callable[[], bool]


class TextGenerator(ABC):
    """All take `SamplingParams`, or its fields by name, which win. Without `SamplingParams` the model's own
    settings hold (`defaults`), and the fields by name win over those: a model whose generation_config.json says so is
    sampled, unless `temperature=0` is given. `SamplingParams(…)` are taken as they are.

    A text may end in a space: the answer's first token is then one that begins with it. The same seed gives the same
    text on the same machine.

    An MTP layer, where there is one, drafts tokens that the model verifies. Sampled text has the same distribution
    with and without. Greedy text is the same as long as the most likely token leads by more than rounding: a pass over
    several tokens may use other kernels than a pass over one. With ONNX Runtime at accuracy level 1 their logits
    differ by 1e-5, at level 4 (int8 activations) by 1e-3 and sometimes 0.02, so that a tie closer than that may go the
    other way. So it is with batches: at accuracy level 1 a batch's answers are those of its prompts alone; at level 4,
    which recipes take unless they say otherwise, log-probabilities differ by 1e-3 and sometimes 0.1, and in one answer
    of ten a close call goes the other way.

    InputError for an argument of the wrong type or out of range, when prompt and answer do not fit the context, or for
    a chat without a chat template.
    """

    @overload
    def generate(
        self,
        prompts: Prompt,
        parameters: SamplingParams | None = ...,
        *,
        images: Images | None = ...,
        cancelled: Cancelled | None = ...,
        **options: Unpack[SamplingOptions],
    ) -> Generation: ...
    @overload
    def generate(
        self,
        prompts: Prompts,
        parameters: SamplingParams | Sequence[SamplingParams] | None = ...,
        *,
        images: Sequence[Images] | None = ...,
        cancelled: Cancelled | None = ...,
        **options: Unpack[SamplingOptions],
    ) -> list[Generation]: ...
    def generate(
        self,
        prompts: Prompt | Prompts,
        parameters: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        images: Images | Sequence[Images] | None = None,
        cancelled: Cancelled | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Generation | list[Generation]:
        """Continues one prompt, or several in one batch; the same shape comes back. Whether each answer is what its
        prompt would get alone depends on the accuracy level (see `TextGenerator`).

        Args:
            parameters: for all, prompt i drawing with `seed + i`; or one for each, as they are
            options: fields of `SamplingParams`, for all
            images: of a text, for a model that takes images; for several prompts a list of each one's. They stand
                where the text says `<image>`, or in front of it. A chat's are in its messages, as parts of a content:
                `{"type": "image", "image": …}` beside `{"type": "text", "text": …}`
            cancelled: asked between passes; once it says True, what there is comes back. `threading.Event().is_set`
                will do
        """
        if cancelled is not None:
            arguments.function("cancelled", cancelled)
        single = arguments.is_one_prompt(prompts)
        several = cast(list[Prompt], [prompts] if single else list(prompts))
        if isinstance(parameters, Sequence) and not isinstance(parameters, str):
            each = [self._parameters(one, options) for one in parameters]
        else:
            base = self._parameters(parameters, options)
            seeds = [None if base.seed is None else (base.seed + row) % 2**64 for row in range(len(several))]
            each = [replace(base, seed=seed) for seed in seeds]
        if len(each) != len(several):
            raise InputError(f"{len(several)} prompts, but parameters for {len(each)}; give one for each or for all")
        shown = arguments.images_of_each(images, len(several), single)
        found = self._generate(several, each, shown, cancelled or (lambda: False))
        return found[0] if single else found

    def _parameters(self, parameters: Any, options: Mapping[str, Any]) -> SamplingParams:
        if parameters is not None and not isinstance(parameters, SamplingParams):
            arguments.refuse("parameters", parameters, "llmc.runtime.SamplingParams, or its fields by name")
        return (self.defaults if parameters is None else parameters).changed(options)

    def _generate(
        self,
        prompts: Sequence[Prompt | ReadPrompt],
        each: list[SamplingParams],
        images: Sequence[Images],
        cancelled: Cancelled,
    ) -> list[Generation]:
        pairs = zip(prompts, each, images, strict=True)
        answers = [self._answer(prompt, one, shown) for prompt, one, shown in pairs]
        for _ in self._steps(answers, cancelled):
            pass
        return [answer.generation() for answer in answers]

    def stream(
        self,
        prompt: Prompt,
        parameters: SamplingParams | None = None,
        *,
        images: Images | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Stream:
        """Continues one prompt, piece by piece; together the pieces are the `text` that `generate` returns for it."""
        (shown,) = arguments.images_of_each(images, 1, single=True)
        answer = self._answer(prompt, self._parameters(parameters, options), shown)
        return Stream(answer, lambda cancelled: self._steps([answer], cancelled))

    def chat(
        self,
        messages: Sequence[Message],
        parameters: SamplingParams | None = None,
        *,
        template: Mapping[str, Any] | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Generation:
        """The answer to a conversation. `generate` and `stream` take messages, too.

        Args:
            template: variables of the chat template, such as `tools` or `enable_thinking`
        """
        wanted = self._parameters(parameters, options)
        prompt = self._read_chat(messages, arguments.template(template))
        return self._generate([prompt], [wanted], [()], lambda: False)[0]

    async def agenerate(
        self,
        prompts: Prompt,
        parameters: SamplingParams | None = None,
        *,
        images: Images | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Generation:
        """`generate` in a thread of its own; it ends when the task is cancelled."""
        import asyncio

        stop = threading.Event()
        try:
            return await asyncio.to_thread(
                lambda: self.generate(prompts, parameters, images=images, cancelled=stop.is_set, **options)
            )
        finally:
            stop.set()

    async def astream(
        self,
        prompt: Prompt,
        parameters: SamplingParams | None = None,
        *,
        images: Images | None = None,
        **options: Unpack[SamplingOptions],
    ) -> AsyncIterator[str]:
        """`stream` whose passes run in a thread, one after the other; it ends when the task is cancelled."""
        import asyncio

        stream = self.stream(prompt, parameters, images=images, **options)
        try:
            while (piece := await asyncio.to_thread(next, stream, None)) is not None:
                yield piece
        finally:
            stream.cancel()

    @property
    @abstractmethod
    def defaults(self) -> SamplingParams:
        """What holds where the caller says nothing: the settings of the model's generation_config.json, or greedy.
        InputError when that file is broken.
        """

    @abstractmethod
    def chat_prompt(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **template: Any
    ) -> list[int]:
        """The tokens of a conversation, up to where the answer begins."""

    @abstractmethod
    def _read_chat(self, messages: Sequence[Message], template: Mapping[str, Any]) -> ReadPrompt:
        """The same, with the images that its messages have."""

    @abstractmethod
    def _answer(
        self, prompt: Prompt | ReadPrompt, parameters: SamplingParams, images: Images = ()
    ) -> GeneratedSequence:
        """An answer that has not begun; InputError for what cannot be answered."""

    @abstractmethod
    def _steps(self, answers: list[GeneratedSequence], cancelled: Cancelled) -> Iterator[None]:
        """Makes answers, as many at once as the backend can; yields between passes."""
