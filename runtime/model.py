"""A loaded artifact."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from llmc.errors import ContextError, InputError
from llmc.runtime import arguments, generation_config
from llmc.runtime.artifact import Artifact
from llmc.runtime.backends import Backend, IntArray, start
from llmc.runtime.chat import ChatTemplate, Message
from llmc.runtime.check import CheckReport, check
from llmc.runtime.decoding import Decoder, KVCacheState
from llmc.runtime.fork import watch
from llmc.runtime.from_hub import locate
from llmc.runtime.generator import Cancelled, Images, Prompt, TextGenerator
from llmc.runtime.image_prompt import ReadPrompt, parts_of, with_marks
from llmc.runtime.image_reader import ImageReader
from llmc.runtime.logprobs import TokenLogprob, score
from llmc.runtime.sampling import SamplingParams
from llmc.runtime.sequence import GeneratedSequence
from llmc.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llmc.contracts.progress import ProgressFunction

_MOST_THREADS = 1024
_MOST_DEVICES = 1023
_MOST_RANKS = 64
_SPACES = ("Ġ", "▁")  # how byte-level and SentencePiece vocabularies write a token that is one space


class Model(TextGenerator):
    """What `load` returns. Use it as a context manager, or call `close`, to free sessions and memory.

    It remembers nothing from call to call, and may be used from several threads, but not in a process that was forked
    after it was loaded: InputError there.
    """

    def __init__(
        self,
        artifact: Artifact,
        tokenizer: Tokenizer,
        backend: Backend,
        backend_info: str,
        speculative: bool,
        draft_tokens: int,
    ) -> None:
        self.artifact, self.tokenizer, self.backend = artifact, tokenizer, backend
        self.backend_info = backend_info  # which backend was picked, and why no other
        self.draft_tokens = draft_tokens if speculative and backend.has_mtp else 0
        self.chat_template: str | None = None  # in place of its own

    def __repr__(self) -> str:
        backend = self.backend_info.partition(" ")[0]
        return (
            f"Model({str(self.artifact.path)!r}, backend={backend!r}, context={self.context}, mtp={self.draft_tokens})"
        )

    @property
    def context(self) -> int:
        """The most tokens that prompt and answer can have together."""
        return self.backend.context

    @property
    def has_chat_template(self) -> bool:
        return self.chat_template is not None or ChatTemplate.find(self.artifact) is not None

    @property
    def template(self) -> ChatTemplate:
        """InputError when it has none."""
        return self._chat_template

    @cached_property
    def defaults(self) -> SamplingParams:
        return generation_config.read(self.artifact)

    def session(self, prompt: Prompt | None = None) -> Session:
        """A session: it keeps what it has read. The prompt, if there is one, is read now."""
        session = Session(self, KVCacheState(self.backend.new_cache(1)))
        if prompt is not None:
            session.read(prompt)
        return session

    def score(self, prompts: list[Prompt], first: int | list[int] = 1, top: int = 0) -> list[list[TokenLogprob]]:
        """What the model says of given texts: the log-probabilities of each one's tokens from `first` on.

        Args:
            first: a place in the tokens, at least 1, since nothing tells the first one; one for all or one for each
            top: how many of the most likely tokens to name at each place
        """
        prompts, top = arguments.several_prompts(prompts), arguments.whole("top", top, 0)
        each = list(first) if isinstance(first, (Sequence, np.ndarray)) else [first] * len(prompts)
        firsts = [arguments.whole("first", one, 1) for one in each]
        if len(firsts) != len(prompts):
            raise InputError(f"first is for {len(firsts)} prompts of {len(prompts)}; give one number, or one for each")
        texts = [self.encode(prompt) for prompt in prompts]
        for text in texts:
            self._fits(len(text), 0)
        # Those of like length share a batch, so that little of it is padding.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found: list[list[TokenLogprob]] = [[] for _ in texts]
        for place in range(0, len(order), self.backend.batch):
            rows = order[place : place + self.backend.batch]
            scored = score(
                self.backend, [texts[i] for i in rows], [firsts[i] for i in rows], top, self.artifact.vocab_size
            )
            for row, result in zip(rows, scored, strict=True):
                found[row] = result
        return found

    def check(self, progress: ProgressFunction | None = None, reference: str | Path | None = None) -> CheckReport:
        """Replays the check text on this machine: what the artifact says against what the original said.

        Args:
            progress: is called with a phase and how many tokens of how many are done, see `llmc.Progress`
            reference: the file that says so, for an artifact that was built without it (`check: {publish_text: false}`)
        """
        if progress is not None:
            arguments.function("progress", progress)
        if reference is not None:
            reference = arguments.path("reference", reference)
        return check(self, progress, reference)

    def encode(self, prompt: Prompt) -> list[int]:
        """The tokens of a prompt. InputError for none at all, for one that the model does not know, and for messages
        with images, which tokens alone do not hold.
        """
        return self._without_images(self._read(prompt))

    def _read(self, prompt: Prompt | ReadPrompt, images: Images = ()) -> ReadPrompt:
        """What `encode` says, of prompts with images, too."""
        read = self._tokens(prompt, images)
        tokens = read.tokens
        if not tokens:
            raise InputError("the prompt is empty and this tokenizer adds no first token; give some text")
        if not 0 <= min(tokens) <= max(tokens) < self.artifact.vocab_size:
            wrong = next(token for token in tokens if not 0 <= token < self.artifact.vocab_size)
            raise InputError(f"token {wrong} is none of this model's {self.artifact.vocab_size}")
        return read

    def _tokens(self, prompt: Prompt | ReadPrompt, images: Images) -> ReadPrompt:
        prompt = prompt if isinstance(prompt, ReadPrompt) else arguments.prompt(prompt)
        if isinstance(prompt, str) and images:
            return self._seen.read(with_marks(prompt, len(images), self._seen.record), images)
        if isinstance(prompt, str):
            return ReadPrompt(self.tokenizer.encode(prompt, fits=self.context).ids)
        if images:
            raise InputError("images are for a prompt of text; those of a chat are parts of its messages")
        if isinstance(prompt, ReadPrompt):
            return prompt
        if prompt and isinstance(prompt[0], Mapping):
            return self._read_chat(cast(Sequence[Message], prompt), {})
        return ReadPrompt(cast(list[int], prompt))

    def chat_prompt(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **template: Any
    ) -> list[int]:
        return self._without_images(
            self._read_chat(messages, {"add_generation_prompt": add_generation_prompt, **template})
        )

    def _without_images(self, read: ReadPrompt) -> list[int]:
        if read.pixels:
            raise InputError(
                "the messages have images, which tokens alone do not hold; give them to generate or stream"
            )
        return read.tokens

    def _read_chat(self, messages: Sequence[Message], template: Mapping[str, Any]) -> ReadPrompt:
        plain, images = parts_of(arguments.messages(messages), self.artifact.manifest.model.images)
        text = arguments.well_formed(self._chat_template.render(plain, **template))
        # The template writes special tokens itself.
        if images:
            return self._seen.read(text, images, add_special_tokens=False)
        return ReadPrompt(self.tokenizer.encode(text, add_special_tokens=False, fits=self.context).ids)

    def close(self) -> None:
        self.backend.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def _chat_template(self) -> ChatTemplate:
        return ChatTemplate(self.artifact, self.chat_template)

    @cached_property
    def _seen(self) -> ImageReader:
        """InputError for a model or a backend that takes text alone."""
        return ImageReader(self.artifact, self.tokenizer, self.backend)

    @cached_property
    def _spaced(self) -> dict[str, IntArray]:
        """The tokens that begin with each kind of space."""
        known = [(text, token) for text, token in self.tokenizer.get_vocab(with_added_tokens=False).items()]
        known = [(text, token) for text, token in known if token < self.artifact.vocab_size]
        return {space: np.array(sorted(token for text, token in known if text.startswith(space))) for space in _SPACES}

    def _steps(
        self, answers: list[GeneratedSequence], cancelled: Cancelled, memory: KVCacheState | None = None
    ) -> Iterator[None]:
        batch = self.backend.batch
        for place in range(0, len(answers), batch):
            yield from Decoder(self.backend, answers[place : place + batch], self.draft_tokens, memory).run(cancelled)

    def _answer(
        self, prompt: Prompt | ReadPrompt, parameters: SamplingParams, images: Images = ()
    ) -> GeneratedSequence:
        read = self._read(prompt, images)
        ids, first_tokens = read.tokens, None
        if isinstance(prompt, str):
            ids, first_tokens = self._heal(ids)
        limit = self._fits(len(ids), parameters.max_new_tokens)
        seen = self._seen.features(read) if read.pixels else None
        ends, size = self.artifact.eos_token_ids, self.artifact.vocab_size
        return GeneratedSequence(ids, parameters, limit, self.tokenizer, ends, first_tokens, seen, size)

    def _fits(self, prompt_tokens: int, new_tokens: int | None) -> int:
        """How many new tokens there may be; ContextError when they do not fit the context."""
        room = self.context - prompt_tokens + 1  # the last token is never fed back
        if room < (new_tokens or 1):
            new = f" and {new_tokens} new ones" if new_tokens else ""
            raise ContextError(
                f"{prompt_tokens} prompt tokens{new} do not fit the context of {self.context}; shorten it"
            )
        return room if new_tokens is None else new_tokens

    def _heal(self, ids: list[int]) -> tuple[list[int], IntArray | None]:
        """A prompt, and what the answer may begin with.

        Vocabularies put the space before a word into the word's token, so that a prompt that ends in a space asks for
        a word without one, which is rare. That space is taken back, and the answer has to begin with it.
        """
        space = self.tokenizer.id_to_token(ids[-1])
        if len(ids) == 1 or space not in _SPACES:
            return ids, None
        return ids[:-1], self._spaced[space]


class Session(TextGenerator):
    """A conversation's memory: what a prompt has in common with what was read and said before is not computed again.

    Prompts are whole, as they are for the model. A session answers one prompt at a time; one that is still being
    streamed ends when the next begins. Several prompts at once all start from what it holds, and leave it as it is.
    """

    def __init__(self, model: Model, memory: KVCacheState) -> None:
        self.model, self._memory, self._turn = model, memory, 0
        self._new_lock()
        watch(self, Session._new_lock)  # a thread that is not in the child may hold it

    def __repr__(self) -> str:
        return f"Session({self.model!r}, tokens={len(self._memory.tokens)})"

    @property
    def tokens(self) -> list[int]:
        """What it holds."""
        with self._lock:
            tokens = list(self._memory.tokens)
        return [token if token >= 0 else self.model._seen.token for token in tokens]

    def read(self, prompt: Prompt, images: Images | None = None) -> None:
        """Computes a prompt, for answers to come."""
        (shown,) = arguments.images_of_each(images, 1, single=True)
        answer = self._answer(self.model._read(prompt, shown), SamplingParams(max_new_tokens=None))
        for _ in self._steps([answer], lambda: self._memory.tokens == answer.identity):
            pass

    def fork(self) -> Session:
        """A copy that goes its own way."""
        memory, backend = self._memory, self.model.backend
        with self._lock:
            copy = KVCacheState(backend.new_cache(1), list(memory.tokens), memory.mtp, memory.long)
            backend.copy(memory.cache, [0], len(memory.tokens), copy.cache)
        return Session(self.model, copy)

    def chat_prompt(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **template: Any
    ) -> list[int]:
        return self.model.chat_prompt(messages, add_generation_prompt, **template)

    @property
    def defaults(self) -> SamplingParams:
        return self.model.defaults

    def _new_lock(self) -> None:
        self._lock = threading.RLock()

    def _read_chat(self, messages: Sequence[Message], template: Mapping[str, Any]) -> ReadPrompt:
        return self.model._read_chat(messages, template)

    def _answer(
        self, prompt: Prompt | ReadPrompt, parameters: SamplingParams, images: Images = ()
    ) -> GeneratedSequence:
        return self.model._answer(prompt, parameters, images)

    def _steps(self, answers: list[GeneratedSequence], cancelled: Cancelled) -> Iterator[None]:
        self._turn += 1
        return self._turns(answers, cancelled, self._turn)

    def _turns(self, answers: list[GeneratedSequence], cancelled: Cancelled, turn: int) -> Iterator[None]:
        """Holds the lock for each pass: an answer that was cancelled may be in the middle of one, in another thread."""
        steps = None
        while True:
            with self._lock:
                if steps is None:
                    memory = self._memory if len(answers) == 1 else self.fork()._memory
                    steps = self.model._steps(answers, lambda: cancelled() or self._turn != turn, memory)
                try:
                    next(steps)
                except StopIteration:
                    return
            yield


def load(
    artifact: str | Path,
    backend: str | None = None,
    threads: int | None = None,
    speculative: bool = True,
    draft_tokens: int = 1,
    verify: bool = False,
    chat_template: str | None = None,
    add_bos: bool | None = None,
    device: int | None = None,
    ranks: int = 1,
) -> Model:
    """Opens an artifact directory.

    Args:
        artifact: the directory, or its name on the hub, `org/name` or `org/name@revision`: then it is fetched into the
            cache of the hub's client, once, and verified
        backend: `tensorrt-rtx`, `onnxruntime`, or `onnxruntime:cuda`, `onnxruntime:openvino` and whatever other
            execution provider is installed; None picks the fastest that is available (`Model.backend_info` says why)
        threads: of the CPU backend; None: all cores
        speculative: use the MTP layer where there is one
        draft_tokens: how far it looks ahead
        verify: compare every file's sha256 with the manifest first, weights and engines too; others always are
        chat_template: a template of jinja2 in place of the model's own, which cannot be edited where it lies: a file
            that is not as it was built is refused
        add_bos: whether texts begin with the beginning-of-text token; None: as when it was built
            (`Model.tokenizer.because` says who wants it so)
        device: the number of the GPU, as CUDA counts them; None: the current one
        ranks: GPUs that hold the model together, if it was built with `tensor_parallel`. A process for each of the
            others is started here; or a launcher did so, such as torchrun: then these stay in `load`, and end with
            SystemExit when the first closes its model

    InputError for a broken artifact or an argument of the wrong type, MachineError when nothing here can run it.
    """
    place = arguments.path("artifact", artifact)
    if backend is not None and not isinstance(backend, str):
        arguments.refuse("backend", backend, "a name, such as 'onnxruntime'")
    threads = None if threads is None else arguments.whole("threads", threads, 1, _MOST_THREADS)
    draft_tokens = arguments.whole("draft_tokens", draft_tokens, 0)
    ranks = arguments.whole("ranks", ranks, 1, _MOST_RANKS)
    speculative, verify = arguments.flag("speculative", speculative), arguments.flag("verify", verify)
    device = None if device is None else arguments.whole("device", device, 0, _MOST_DEVICES)
    add_bos = None if add_bos is None else arguments.flag("add_bos", add_bos)
    if chat_template is not None and not isinstance(chat_template, str):
        arguments.refuse("chat_template", chat_template, "the text of a template")
    opened = Artifact.open(locate(place))
    if verify:
        opened.verify()
    tokenizer = Tokenizer(opened, opened.vocab_size, opened.add_bos if add_bos is None else add_bos)
    opened = replace(opened, eos_token_ids=opened.eos_token_ids | set(tokenizer.eos_token_ids))
    if ranks > 1:
        if device is not None:
            raise InputError(f"device is {device}, and {ranks} ranks have a GPU each; leave out one of the two")
        from llmc.runtime import distributed

        started, reason = distributed.start(opened, backend, ranks)
    else:
        started, reason = start(opened, backend, threads, device)
    model = Model(opened, tokenizer, started, reason, speculative, draft_tokens)
    model.chat_template = chat_template
    return model
