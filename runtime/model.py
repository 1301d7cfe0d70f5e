"""A loaded artifact: text in, text out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

import numpy as np
from tokenizers import Tokenizer

from llmc.errors import InputError
from llmc.runtime.artifact import TOKENIZER, Artifact
from llmc.runtime.backends import Backend, IntArray, choose
from llmc.runtime.check import CheckReport, Progress, check
from llmc.runtime.decoding import Decoder, Request
from llmc.runtime.detokeniser import Detokeniser
from llmc.runtime.sampling import Sampling

_SPACES = ("Ġ", "▁")  # how byte-level and SentencePiece vocabularies write a token that is one space


@dataclass(frozen=True)
class Generation:
    """One answer.

    steps: passes of the main model after the prompt; with speculation there are fewer than tokens
    drafted, accepted: tokens that the MTP layer proposed, and those of them that the model agreed to
    """

    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    steps: int
    drafted: int
    accepted: int


class Model:
    """What `load` returns. Use it as a context manager, or call `close`, to free sessions and memory."""

    def __init__(self, artifact: Artifact, backend: Backend, reason: str, speculative: bool, draft_tokens: int) -> None:
        self.artifact, self.backend = artifact, backend
        self.reason = reason  # which backend was picked, and why no other
        self.draft_tokens = draft_tokens if speculative and backend.has_mtp else 0
        path = artifact.path / TOKENIZER
        if not path.is_file():
            raise InputError(f"{path}: missing; an artifact cannot be run without its tokenizer")
        self.tokenizer = Tokenizer.from_file(str(path))

    @overload
    def generate(
        self,
        prompts: str,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_k: int = ...,
        top_p: float = ...,
        seed: int = ...,
    ) -> Generation: ...
    @overload
    def generate(
        self,
        prompts: list[str],
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_k: int = ...,
        top_p: float = ...,
        seed: int = ...,
    ) -> list[Generation]: ...
    def generate(
        self,
        prompts: str | list[str],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Generation | list[Generation]:
        """Continues one prompt, or several in one batch; the same shape comes back.

        A prompt may end in a space: the answer's first token is then one that begins with it. temperature 0 is
        greedy. The same seed gives the same text; in a batch, row i draws with `seed + i`.

        One prompt is decoded speculatively when the artifact has an MTP layer; batches take one token a step. Sampled
        text has the same distribution either way. Greedy text is the same as without speculation as long as the most
        likely token leads by more than rounding: a pass over several tokens may use other kernels than a pass over
        one. With ONNX Runtime at accuracy level 1 their logits differ by 1e-5, at level 4 (int8 activations) by 1e-3
        and sometimes 0.02, so that a tie closer than that may go the other way.

        InputError when prompt and answer do not fit the context.
        """
        texts = [prompts] if isinstance(prompts, str) else prompts
        sampling = Sampling(temperature, top_k, top_p)
        requests = [self._request(text, max_new_tokens, seed + row) for row, text in enumerate(texts)]
        for start in range(0, len(requests), self.backend.batch):
            group = requests[start : start + self.backend.batch]
            if len(group) > 1:
                self._decoder(len(group), sampling).batch(group)
            else:
                deque(self._decoder(1, sampling).speculate(group[0]), maxlen=0)
        answers = [self._generation(request) for request in requests]
        return answers[0] if isinstance(prompts, str) else answers

    def stream(
        self,
        prompt: str,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """Continues one prompt, piece by piece; together the pieces are what `generate` returns for it."""
        request = self._request(prompt, max_new_tokens, seed)
        tokens = self._decoder(1, Sampling(temperature, top_k, top_p)).speculate(request)
        return self._pieces(tokens, request)

    def check(self, progress: Progress | None = None) -> CheckReport:
        """Replays the check text on this machine: what the artifact says against what the original said."""
        return check(self.artifact, self.backend, progress)

    def close(self) -> None:
        self.backend.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decoder(self, batch: int, sampling: Sampling) -> Decoder:
        return Decoder(self.backend, batch, sampling, self.draft_tokens, self.artifact.eos_token_ids)

    def _request(self, prompt: str, max_new_tokens: int, seed: int) -> Request:
        ids = self.tokenizer.encode(prompt).ids
        if not ids:
            raise InputError("the prompt is empty and this tokenizer adds no first token; give some text")
        ids, first_tokens = self._heal(ids)
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {max_new_tokens}; ask for at least 1")
        if len(ids) + max_new_tokens - 1 > self.backend.context:  # the last token is never fed back
            raise InputError(
                f"{len(ids)} prompt tokens and {max_new_tokens} new ones do not fit the context of "
                f"{self.backend.context}; shorten one of them"
            )
        return Request(ids, max_new_tokens, np.random.default_rng(seed), first_tokens)

    def _heal(self, ids: list[int]) -> tuple[list[int], IntArray | None]:
        """A prompt, and what the answer may begin with.

        Vocabularies put the space before a word into the word's token, so that a prompt that ends in a space asks for
        a word without one, which is rare. That space is taken back, and the answer has to begin with it.
        """
        space = self.tokenizer.id_to_token(ids[-1])
        if len(ids) == 1 or space not in _SPACES:
            return ids, None
        vocabulary = self.tokenizer.get_vocab(with_added_tokens=False)
        last = self.artifact.vocab_size
        first = [token for text, token in vocabulary.items() if text.startswith(space) and token < last]
        return ids[:-1], np.array(sorted(first))

    def _pieces(self, tokens: Iterable[int], request: Request) -> Iterator[str]:
        detokeniser = Detokeniser(self.tokenizer, request.prompt)
        healed = 0 if request.first_tokens is None else 1  # the prompt has this space already
        for token in tokens:
            if piece := detokeniser.push(token):
                if piece[healed:]:
                    yield piece[healed:]
                healed = 0
        if piece := detokeniser.rest()[healed:]:
            yield piece

    def _generation(self, request: Request) -> Generation:
        return Generation(
            text="".join(self._pieces(request.tokens, request)),
            token_ids=request.tokens,
            finish_reason="stop" if request.stopped else "length",
            prompt_tokens=len(request.prompt),
            steps=request.steps,
            drafted=request.drafted,
            accepted=request.accepted,
        )


def load(
    artifact: str | Path,
    backend: str | None = None,
    threads: int | None = None,
    speculative: bool = True,
    draft_tokens: int = 1,
    verify: bool = False,
) -> Model:
    """Opens an artifact directory.

    backend: `tensorrt-rtx`, `onnxruntime`; None picks the fastest that is available (`Model.reason` says why)
    threads: of the CPU backend; None: all cores
    speculative, draft_tokens: use the MTP layer where there is one, and how far it looks ahead
    verify: compare every file's sha256 with the manifest first
    InputError for a broken artifact, MachineError when nothing here can run it.
    """
    opened = Artifact.open(artifact)
    if verify:
        opened.verify()
    if draft_tokens < 0:
        raise InputError(f"draft_tokens is {draft_tokens}; 0 is none")
    module, reason = choose(opened, backend)
    return Model(opened, module.start(opened, threads), reason, speculative, draft_tokens)
