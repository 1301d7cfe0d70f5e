"""How text becomes tokens of a model, and tokens text: the one place that knows, for calibration and check texts,
prompts, chats and lm_eval alike.

A tokenizer.json tells the spelling, but not always with what a text begins: the ones that DeepSeek publishes leave that
to `add_bos_token` in tokenizer_config.json, and models are worse at texts that begin as none did in training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from llmc.errors import ContextError, InputError
from llmc.files import count_items
from llmc.runtime import arguments
from llmc.runtime.origin import Origin, lies, read, where
from llmc.runtime.special_tokens import CONFIG, added_tokens, end_token_ids, special_tokens, tokenizer_config
from llmc.runtime.tokenizer_hazards import harmless
from llmc.runtime.tokenizer_library import Apart, Here, Methods

if TYPE_CHECKING:
    from llmc.contracts.manifest import TokenizerRecord

TOKENIZER = "tokenizer.json"
_MOST_BYTES = 1 << 28  # of tokenizer.json; Gemma's 33 MB are the largest known
# transformers 4, with which models were trained, let these begin texts with bos_token unless `add_bos_token` is false,
# whatever tokenizer.json said.
_BEGIN_BY_DEFAULT = ("LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "CodeLlamaTokenizerFast")


class Encoding(NamedTuple):
    """Named as in the library."""

    ids: list[int]


class _Decoder:
    """How tokens, as the vocabulary writes them, become text."""

    def __init__(self, library: Methods) -> None:
        self._library = library

    def decode(self, tokens: list[str]) -> str:
        return self._library.join(tokens)


class Tokenizer:
    """path: of tokenizer.json, as it is called in messages; origin: what it is of

    Attributes:
        bos_token, bos_token_id: the model's token for the beginning of a text, if it has one
        begins_with: tokens in front of every text, and `because`, who says so
        eos_token_ids: what ends an answer; the first one ends the documents of a text. generation_config.json, with
            which models are run, names them, and tokenizer_config.json, where fine-tunes name their end of turn. One
            that config.json adds to those of generation_config.json has to be a special token: some fine-tunes keep
            another model's number there, which is a word of theirs.
    """

    def __init__(self, origin: Origin, vocab_size: int, add_bos: bool | None = None) -> None:
        """Of a checkpoint or an artifact. add_bos: whether texts begin with bos_token; None: as the files say.

        InputError for files that are missing or broken, and for a beginning that the model has no token for.
        """
        self.origin, self.path = origin, where(origin) / TOKENIZER
        data = read(origin, TOKENIZER, _MOST_BYTES)
        if data is None:
            raise InputError(f"{self.path}: missing; a model without it can be neither calibrated nor run")
        try:
            items, described = count_items(data), json.loads(data)
            if not isinstance(described, dict):
                raise ValueError("no JSON object")
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.path}: not a tokenizer ({error}); download it again") from error
        added = added_tokens(origin)
        here = harmless(described, items)
        self._library: Methods = Here(self.path, data, added) if here else Apart(lies(origin, TOKENIZER), added)
        self.decoder = None if described.get("decoder") is None else _Decoder(self._library)
        special, config = special_tokens(origin), tokenizer_config(origin)
        self.bos_token = special.get("bos_token")
        self.bos_token_id = self.token_to_id(self.bos_token) if self.bos_token else None
        in_front = self._in_front(described.get("post_processor"))
        wanted, self.because = _beginning(in_front, self.bos_token_id, config, add_bos)
        first = in_front or [token for token in [self.bos_token_id] if token is not None]
        if wanted and not first:
            named = f"{self.bos_token!r} is not among its tokens" if self.bos_token else f"{CONFIG} names no bos_token"
            raise InputError(f"{self.path}: no token that texts could begin with: {named}; set add_bos to false")
        self.add_bos, self.begins_with = wanted, first if wanted else []
        generation, model = end_token_ids(origin)
        if generation:
            special_ids = _special_ids(described) | {token.number for token in added if token.special}
            model = [token for token in model if token in special_ids]
        eos = self.token_to_id(special["eos_token"]) if "eos_token" in special else None
        ids = dict.fromkeys([*generation, *model, *([] if eos is None else [eos])])
        self.eos_token_ids = tuple(token for token in ids if 0 <= token < vocab_size)

    def encode(self, text: str, add_special_tokens: bool = True, fits: int | None = None) -> Encoding:
        """The tokens of a text, with those it begins with, unless it spells them out itself; without any, if so wanted.
        What a tokenizer.json puts behind a text is left out: a prompt is to go on.

        Args:
            fits: InputError as soon as it is certain that there are more tokens than this. Also for half a character.
        """
        if not isinstance(text, str):
            arguments.refuse("the text", text, "text")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"a text is no valid text at character {error.start}; give it in UTF-8") from error
        if fits is not None:
            self._refuse_long(text, fits)
        ids, first = self._library.encode(text), self.begins_with if add_special_tokens else []
        return Encoding(ids if ids[: len(first)] == first else first + ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self._library.decode(arguments.tokens("the tokens", ids), skip_special_tokens)

    def id_to_token(self, token: int) -> str | None:
        return self._library.id_to_token(token)

    def token_to_id(self, token: str) -> int | None:
        return self._library.token_to_id(token)

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        return self._library.get_vocab(with_added_tokens)

    def record(self) -> TokenizerRecord:
        """For an artifact's manifest: what is done here, to be done again by who loads it."""
        from llmc.contracts.manifest import TokenizerRecord

        ends: tuple[Sequence[int], ...] = (self.begins_with, self.eos_token_ids)
        first, last = ([(token, self.id_to_token(token)) for token in each] for each in ends)
        return TokenizerRecord(add_bos=self.add_bos, because=self.because, begins_with=first, ends_with=last)

    def _refuse_long(self, text: str, most: int) -> None:
        """Looks at beginnings of the text, each four times as long as the one before: what is far too long is not read
        to its end. A cut changes the tokens beside it, and never their number by half.
        """
        size = 16 * most
        while size < len(text):
            if len(self._library.encode(text[:size])) > 2 * most:
                raise ContextError(
                    f"a text of {len(text):,} characters has more than {2 * most:,} tokens, which do not fit the "
                    f"context of {most}; shorten it"
                )
            size *= 4

    def _in_front(self, processor: dict[str, Any] | None) -> list[int]:
        """The tokens that tokenizer.json's post-processor puts in front of a text."""
        if processor is None:
            return []
        try:
            if processor["type"] == "Sequence":  # the later ones put theirs in front of what is there
                parts = [self._in_front(each) for each in processor["processors"]]
                return [token for part in reversed(parts) for token in part]
            if processor["type"] in ("BertProcessing", "RobertaProcessing"):
                return [int(processor["cls"][1])]
            found: list[int] = []
            for piece in processor["single"] if processor["type"] == "TemplateProcessing" else ():
                if "SpecialToken" not in piece:
                    break
                found += [int(i) for i in processor["special_tokens"][piece["SpecialToken"]["id"]]["ids"]]
            return found
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise InputError(f"{self.path}: its post_processor is broken ({error!r}); download it again") from error


def _beginning(in_front: list[int], bos: int | None, config: dict[str, Any], asked: bool | None) -> tuple[bool, str]:
    """Whether texts begin with tokens of their own, and who says so."""
    flag, kind = _flag(config.get("add_bos_token")), config.get("tokenizer_class")
    if asked is not None:
        return asked, "as asked for"
    if in_front and not (flag is False and kind in _BEGIN_BY_DEFAULT and in_front == [bos]):
        return True, "tokenizer.json"
    if flag is True and bos is None:
        return False, f"add_bos_token in {CONFIG}, which names no token for it"
    if flag is not None:
        return flag, f"add_bos_token in {CONFIG}"
    if kind in _BEGIN_BY_DEFAULT and bos is not None:
        return True, f"what a {kind} does by default"
    return False, "no file asks for one"


def _flag(value: Any) -> bool | None:
    """True and false, as some files write them; None: neither."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower())
    return bool(value) if value in (0, 1) else None


def _special_ids(described: dict[str, Any]) -> set[int]:
    added = described.get("added_tokens")
    found = [each for each in added if isinstance(each, dict)] if isinstance(added, list) else []
    return {each["id"] for each in found if each.get("special") and type(each.get("id")) is int}
