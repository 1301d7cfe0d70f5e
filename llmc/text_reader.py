"""Documents as tokens of one model, each with the model's beginning and its end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from llmc.documents import pieces
from llmc.errors import InputError
from llmc.packing import Piece
from llmc.records import Chat, Document
from llmc.runtime.chat import ChatTemplate
from llmc.runtime.tokenizer import Tokenizer

_AT_ONCE = 1 << 19  # characters that are tokenized at once, which takes a hundred times their memory


class Reader:
    """Documents as tokens of one model."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self.end = list(tokenizer.eos_token_ids[:1])
        self._template: ChatTemplate | None = None

    def draw(self, documents: Iterable[Document], source: int, wanted: int, length: int) -> Iterator[Piece]:
        """Documents in order until they have so many tokens, and then, if there are chats among them, a chat for every
        window of `length`, whose beginning may fill its rest. No more is tokenized than is needed.
        """
        found, chats, spare = 0, False, -(-wanted // length)
        for document in documents:
            whole = not isinstance(document, str)
            if found < wanted:
                ids = self._tokens(document, None if whole else wanted - found)
            elif whole:
                ids = self._tokens(document, None)
            else:
                continue
            self._check(ids)
            chats |= whole
            found += min(len(ids), length) if whole else len(ids)
            if not whole:
                ids = ids[: len(ids) - max(0, found - wanted)]
            if ids:
                yield Piece(ids, source, whole, whole and found > wanted)
                spare -= whole and found > wanted
            if found >= wanted and (spare <= 0 or not chats):
                break

    def _check(self, ids: list[int]) -> None:
        if ids and max(ids) >= self.vocab_size:
            raise InputError(
                f"{self.tokenizer.path}: makes token {max(ids)}, but the model knows {self.vocab_size}; "
                "not its tokenizer"
            )

    def _tokens(self, document: Document, wanted: int | None) -> list[int]:
        """All of a document, or at least so many tokens of it."""
        text, bare = (document, False) if isinstance(document, str) else self._chat(document)
        ids: list[int] = []
        for part in pieces(text, _AT_ONCE, within_lines=True):
            ids += self.tokenizer.encode(part, add_special_tokens=not (bare or ids)).ids
            if wanted is not None and len(ids) >= wanted:
                return ids
        # Templates end a chat themselves, and perhaps its line.
        ended = not ids or any(token in self.tokenizer.eos_token_ids for token in ids[-2:])
        return ids if ended else ids + self.end

    def _chat(self, messages: Chat) -> tuple[str, bool]:
        """Its text, and whether a template wrote it, with all special tokens. A model without one was made for text."""
        origin, folder = self.tokenizer.origin, self.tokenizer.path.parent
        if self._template is None and not ChatTemplate.find(origin):
            contents = [message.get("content") for message in messages]
            if not all(isinstance(content, str) for content in contents):
                raise InputError(f"{folder}: its tokenizer has no chat template for messages that hold more than text")
            return "\n".join(map(str, contents)), False
        self._template = self._template or ChatTemplate(origin)
        return self._template.render(messages, add_generation_prompt=False), True
