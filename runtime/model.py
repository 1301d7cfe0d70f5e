"""A loaded artifact: text in, text out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, overload

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from llmc.errors import InputError
from llmc.runtime.artifact import Artifact
from llmc.runtime.backends import Backend, choose
from llmc.runtime.check import CheckReport, Progress, check
from llmc.runtime.decoding import Decoder, Request
from llmc.runtime.sampling import Sampling


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
        self.tokenizer = Tokenizer.from_file(str(artifact.path / "tokenizer.json"))

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

        temperature 0 is greedy. The same seed gives the same text; in a batch, row i draws with `seed + i`. One prompt
        is decoded speculatively when the artifact has an MTP layer: greedy text is the same as without (up to ties
        that the last bits of float32 decide, since two tokens a pass may take other kernels than one), sampled text
        has the same distribution. Batches are decoded one token a step.
        InputError when prompt and answer do not fit the context.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        sampling = Sampling(temperature, top_k, top_p)
        if len(texts) == 1:
            sequences = [self._request(texts[0], max_new_tokens, seed)]
            for _ in self._decoder(1, sampling).speculate(sequences[0]):
                pass
        else:
            sequences = [self._request(text, max_new_tokens, seed + row) for row, text in enumerate(texts)]
            if sequences:
                self._decoder(len(texts), sampling).batch(sequences)
        answers = [self._generation(sequence) for sequence in sequences]
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
        """Continues one prompt, piece by piece; together the pieces are what `generate` returns."""
        sequence = self._request(prompt, max_new_tokens, seed)
        decoder = self._decoder(1, Sampling(temperature, top_k, top_p))
        return self._pieces(decoder.speculate(sequence), sequence)

    def check(self, progress: Progress | None = None) -> CheckReport:
        """Replays the check text on this machine: what the artifact says against what the original said."""
        return check(self.artifact, self.backend, progress)

    def close(self) -> None:
        self.backend.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decoder(self, batch: int, sampling: Sampling) -> Decoder:
        return Decoder(
            self.backend, batch, sampling, self.draft_tokens, frozenset(self.artifact.model["eos_token_ids"])
        )

    def _request(self, prompt: str, max_new_tokens: int, seed: int) -> Request:
        ids = self.tokenizer.encode(prompt).ids
        if not ids:
            raise InputError("the prompt is empty and this tokenizer adds no first token; give some text")
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {max_new_tokens}; ask for at least 1")
        # The last token is never fed back, and drafts need room behind it.
        if len(ids) + max_new_tokens - 1 > self.backend.context:
            raise InputError(
                f"{len(ids)} prompt tokens and {max_new_tokens} new ones do not fit the context of "
                f"{self.backend.context}; shorten one of them"
            )
        return Request(ids, max_new_tokens, np.random.default_rng(seed))

    def _pieces(self, tokens: Iterator[int], sequence: Request) -> Iterator[str]:
        decode = DecodeStream(ids=[], skip_special_tokens=True)
        said = ""
        for token in tokens:
            piece = decode.step(self.tokenizer, token)
            if piece:
                said += piece
                yield piece
        whole = self.tokenizer.decode(sequence.tokens)
        if whole.startswith(said) and len(whole) > len(said):  # bytes that never became a character
            yield whole[len(said) :]

    def _generation(self, sequence: Request) -> Generation:
        return Generation(
            text="".join(self._pieces(iter(sequence.tokens), sequence)),
            token_ids=sequence.tokens,
            finish_reason="stop" if sequence.stopped else "length",
            prompt_tokens=len(sequence.prompt),
            steps=sequence.steps,
            drafted=sequence.drafted,
            accepted=sequence.accepted,
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
    module, reason = choose(opened, backend)
    return Model(opened, module.start(opened, threads), reason, speculative, draft_tokens)
