"""Text that a model writes itself, to be calibrated on: what it says when nobody else speaks.

A model with a chat template writes the question, too: it is given the template up to where the user's first message
begins, and once it has ended that message, the template's words in front of the answer (the idea of Magpie, Xu et al.
2024). Other models go on from the token that texts begin with, or from one of their vocabulary, drawn at random.

Tokens are drawn at temperature 1 from the whole distribution, many rows at once. The rows of a batch depend on the
seed and the batch's number alone: a batch that is on the disk already need not be written again.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from llmc import machine
from llmc.calibration_recipe import SELF
from llmc.contracts.progress import ProgressFunction
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import CausalLM
from llmc.convert.model.cache import KeyValueCache, LatentCache, LayerCache, layer_cache
from llmc.errors import MachineError
from llmc.packing import Piece
from llmc.progress import size
from llmc.quant.durable import write_json
from llmc.runtime.chat import ChatTemplate
from llmc.runtime.tokenizer import Tokenizer

_ROWS = 64  # written at once
_LONGEST = 1024  # tokens of a document
_QUESTION = 256  # tokens of a question, or a quarter of a document
_SPARE_ONE_IN = 16
_MARK = "4f1d9c27"  # stands for what is said, where the template is taken apart


@dataclass(frozen=True)
class Frame:
    """What a document begins with; of a chat, also what stands between question and answer, and behind the answer."""

    start: list[int]
    turn: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, tokenizer: Tokenizer, chats: bool) -> Frame:
        """As the tokenizer's files say. No start: any token. chats: where there is a template for them."""
        if not chats or ChatTemplate.find(tokenizer.origin) is None:
            bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
            return cls(tokenizer.begins_with or bos)
        template = ChatTemplate(tokenizer.origin)
        asked = template.render([{"role": "user", "content": _MARK}])
        said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
        before, _, between = asked.partition(_MARK)
        behind = template.render(said, add_generation_prompt=False).partition(_MARK)[2]
        return cls(*(tokenizer.encode(text, add_special_tokens=False).ids for text in (before, between, behind)))


class _Row:
    """A document that is being written, token by token: those of the template are forced, the others are drawn."""

    def __init__(self, frame: Frame, start: list[int], ends: set[int], longest: int) -> None:
        self.frame, self.ends, self.longest = frame, ends, longest
        self.tokens = start[:longest]
        self.asking, self.begun = bool(frame.turn), False
        self.done = len(self.tokens) == longest
        self._forced: deque[int] = deque()
        self._question_ends = len(start) + min(_QUESTION, longest // 4)

    def barred(self) -> set[int]:
        """What must not be drawn now: the end of a question or an answer that has not begun."""
        return set() if self.begun or self._forced else self.ends | set(self.frame.turn[:1])

    def take(self, drawn: int) -> int:
        """The next token, which is the one that was drawn, unless the template has another."""
        turn = self.frame.turn
        if self.asking and (drawn in self.ends | {turn[0]} or len(self.tokens) >= self._question_ends):
            self.asking, self._forced = False, deque(turn)
        if self._forced:
            token, self.begun = self._forced.popleft(), False
        else:
            token, self.begun = drawn, True
        self.tokens.append(token)
        if self.begun and not self.asking and token in self.ends:
            self.done = True
            if self.frame.end[:1] == [token]:
                self.tokens += self.frame.end[1:]
        self.done |= len(self.tokens) >= self.longest
        self.tokens = self.tokens[: self.longest]
        return token


class SelfText:
    """Documents of a model.

    Attributes:
        whole: whether they are chats, which are not to be cut
    """

    def __init__(
        self, checkpoint: Checkpoint, tokenizer: Tokenizer, seed: int, longest: int, chats: bool = True
    ) -> None:
        """longest: tokens of a window, which no document is longer than. chats: rather than text, if it can."""
        self.checkpoint, self.tokenizer, self.seed = checkpoint, tokenizer, seed
        self.longest = min(longest, _LONGEST)
        self.frame = Frame.of(tokenizer, chats)
        self.whole = bool(self.frame.turn)
        self._ends = set(tokenizer.eos_token_ids)

    def memory(self) -> int:
        """Bytes that writing takes: the model in float32, and the cache of all rows."""
        spec = self.checkpoint.spec
        weights = sum(math.prod(self.checkpoint.shape(name)) for name in self.checkpoint.names())
        caches = [layer_cache(attention, 1, 1) for attention in spec.attentions]
        per_token = sum(part.numel() for cache in caches for part in _parts(cache).values())
        return 4 * (weights + per_token * _ROWS * self.longest + 3 * _ROWS * spec.vocab_size)

    def require(self, memory: int | None) -> None:
        """MachineError where the model does not fit into so many bytes; None: into what is free."""
        free = machine.memory() if memory is None else min(memory, machine.memory())
        if (needed := self.memory()) > free:
            raise MachineError(
                f"calibration.text {SELF}: to write text the whole model has to be in memory, about {size(needed)}, "
                f"but only {size(free)} are free or allowed; let a program that serves the model write text, and name "
                "that file"
            )

    def pieces(self, source: int, wanted: int, folder: Path | None, progress: ProgressFunction) -> Iterator[Piece]:
        """Documents of so many tokens together; of chats some more, to fill the rest of windows with."""
        found, most = 0, wanted + (wanted // _SPARE_ONE_IN if self.whole else 0)
        for ids in self.documents(folder, progress, most):
            found += len(ids)
            past = max(0, found - wanted)
            yield Piece(ids if self.whole else ids[: len(ids) - past], source, self.whole, self.whole and past > 0)
            if found >= most:
                break

    def documents(self, folder: Path | None, progress: ProgressFunction, wanted: int) -> Iterator[list[int]]:
        """Token ids of one document after the other, without end; batches lie in `folder` afterwards, if there is one.
        wanted: tokens that are asked for, to tell the progress by.
        """
        model, number, written = None, 0, 0
        rows = min(_ROWS, 2 * -(-wanted // self.longest))  # of a few tokens there need not be many
        while True:
            path = folder and folder / f"{'chats' if self.whole else 'text'}-{number:05d}.json"
            found = _read(path)
            if found is None:
                model = model or CausalLM.load(self.checkpoint)
                found = self._batch(
                    model, number, rows, lambda tokens: progress("write text", min(tokens, wanted), wanted)
                )
                if path is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_json(path, {"documents": found})
            written += sum(map(len, found))
            progress("write text", min(written, wanted), wanted)
            yield from found
            number += 1

    def _batch(self, model: CausalLM, number: int, count: int, tell: Callable[[int], None]) -> list[list[int]]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % (1 << 63))
        known = torch.zeros(model.spec.vocab_size, dtype=torch.bool)
        known[[token for token in self.tokenizer.get_vocab().values() if token < len(known)]] = True
        tokens = torch.nonzero(known)[:, 0]
        first = tokens[torch.randint(len(tokens), (count,), generator=generator)].tolist()
        rows = [_Row(self.frame, self.frame.start or [token], self._ends, self.longest) for token in first]
        alive = [row for row in range(count) if not rows[row].done]
        caches = model.new_cache(count, 0)
        fed = torch.tensor([row.tokens for row in rows])
        while alive:
            _make_room(caches, fed.shape[1], self.longest)
            logits = model.logits(model.hidden(fed, caches)[:, -1:])[:, 0]
            logits[:, ~known] = -torch.inf
            for at, row in enumerate(alive):
                logits[at, list(rows[row].barred())] = -torch.inf
            drawn = _draw(logits, torch.rand(count, dtype=torch.float64, generator=generator)[alive])
            fed = torch.tensor([[rows[row].take(token)] for row, token in zip(alive, drawn, strict=True)])
            left = [at for at, row in enumerate(alive) if not rows[row].done]
            if len(left) < len(alive):
                fed, alive = fed[left], [alive[at] for at in left]
                _keep(caches, left)
            tell(sum(len(row.tokens) for row in rows))
        return [row.tokens for row in rows]


def _draw(logits: torch.Tensor, uniform: torch.Tensor) -> list[int]:
    """A token of each row of [B, V], by its place [B] in the cumulated distribution: other rows have no part in it."""
    ends = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    found: list[int] = torch.searchsorted(ends, uniform[:, None] * ends[:, -1:], right=True)[:, 0].tolist()
    return [min(token, logits.shape[1] - 1) for token in found]


def _parts(cache: LayerCache) -> dict[str, torch.Tensor]:
    return {name: part for name, part in vars(cache).items() if isinstance(part, torch.Tensor)}


def _make_room(caches: list[LayerCache], tokens: int, longest: int) -> None:
    """For so many more tokens, and then some, up to those of the longest document."""
    for cache in caches:
        if isinstance(cache, LatentCache | KeyValueCache):
            for name, part in _parts(cache).items():
                if cache.length + tokens > part.shape[2]:
                    room = min(2 * (cache.length + tokens), longest)
                    grown = part.new_zeros(*part.shape[:2], room, part.shape[3])
                    grown[:, :, : cache.length] = part[:, :, : cache.length]
                    setattr(cache, name, grown)


def _keep(caches: list[LayerCache], rows: list[int]) -> None:
    for cache in caches:
        for name, part in _parts(cache).items():
            setattr(cache, name, part[rows])


def _read(path: Path | None) -> list[list[int]] | None:
    """What an interrupted build left; None: nothing whole."""
    try:
        documents = json.loads(path.read_text("utf-8"))["documents"] if path else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return documents
