"""The process behind `confined.py`: run by path, with the bytes of memory that it may take as its argument.

Requests are lines of JSON on standard input, `{"do": …, "seconds": …}`; each gets one such line on standard output.
Nothing of this package is imported, and jinja2 and tokenizers only when they are asked for.
"""

from __future__ import annotations

import contextlib
import functools
import json
import operator
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

_MOST_TEXT = 1 << 25  # characters of a prompt


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    with contextlib.suppress(ImportError, ValueError, OSError):  # no such limits here
        import resource

        memory = int(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    for line in sys.stdin.buffer:
        request = json.loads(line)
        _limit_time(request.pop("seconds"))
        try:
            reply = _WORK[request.pop("do")](**request)
        except MemoryError:
            reply = {"error": f"more than {int(sys.argv[1]) >> 20} MiB would be needed"}
        except BaseException as error:  # Rust's panics are no Exception
            reply = {"error": str(error) or type(error).__name__}
        sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
        sys.stdout.buffer.flush()


def _limit_time(seconds: float) -> None:
    """The process is ended when it goes on for longer: C code is not interrupted by anything else."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + seconds + 1), most))


def _template(source: str, values: dict[str, Any] | None = None) -> dict[str, Any]:
    """The text that a chat template makes; without values it is only compiled."""
    from jinja2 import TemplateError

    try:
        template = _compiled(source)
    except (TemplateError, RecursionError, SyntaxError, OverflowError, ValueError) as error:
        return {"error": str(error), "broken": True}
    if values is None:
        return {"result": ""}
    pieces, size = [], 0
    for piece in template.generate(values):
        pieces.append(piece)
        size += len(piece)
        if size > _MOST_TEXT:
            return {"error": f"it makes more than {_MOST_TEXT:,} characters of them"}
    return {"result": "".join(pieces)}


@functools.lru_cache(8)
def _compiled(source: str) -> Any:
    """Whitespace, functions and variables are as in transformers, for which these templates are written."""
    from datetime import datetime

    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Marked(Extension):
        """{% generation %} … {% endgeneration %}: for training, what an assistant says; here it is only said."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    extensions = [loopcontrols, Marked]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    return environment.from_string(source)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Unlike jinja2's own it escapes nothing for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _tokenizer(path: str, added: list[Any], method: str, arguments: list[Any]) -> dict[str, Any]:
    """What a method of a tokenizer, or of its decoder, returns."""
    found = operator.attrgetter(method)(_opened(path, json.dumps(added)))(*arguments)
    return {"result": found.ids if method == "encode" else found}


@functools.lru_cache(1)
def _opened(path: str, added: str) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    prepare(tokenizer, json.loads(added))
    return tokenizer


def prepare(tokenizer: Any, added: Sequence[tuple[int, str, bool]]) -> None:
    """For use: takes out what is for training, and adds (number, text, special) in order, where the number is free."""
    from tokenizers import AddedToken

    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None  # it draws another spelling each time
    for number, text, special in added:
        if number == tokenizer.get_vocab_size() and tokenizer.id_to_token(number) is None:
            tokenizer.add_tokens([AddedToken(text, special=special, normalized=not special)])


_WORK: dict[str, Callable[..., dict[str, Any]]] = {"template": _template, "tokenizer": _tokenizer}

if __name__ == "__main__":
    main()
