"""Messages to a prompt: the tokenizer's own chat template, rendered by jinja2 in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from llmc.errors import InputError
from llmc.runtime.origin import Origin, read, read_json, where
from llmc.runtime.prefill import cut, opened

Message = Mapping[str, Any]
_CONFIG, _TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
_MOST_BYTES = 1 << 24


class ChatTemplate:
    """The template of an artifact, or of a checkpoint's folder; InputError when it has none.

    Whitespace, functions and variables are as in transformers, for which these templates are written.
    """

    def __init__(self, origin: Origin, source: str | None = None) -> None:
        """source: of another template than its own"""
        directory, source = where(origin), self.find(origin) if source is None else source
        if source is None:
            raise InputError(f"{directory}: its tokenizer has no chat template; give it text to continue instead")
        from jinja2 import TemplateError
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
        self.source, self._directory = source, directory
        config = read_json(origin, _CONFIG, _MOST_BYTES)
        named = config.get("extra_special_tokens")
        self._special = {
            name: value["content"] if isinstance(value, dict) else value
            for name, value in (config | (named if isinstance(named, dict) else {})).items()
            if name.endswith("_token") and isinstance(value.get("content") if isinstance(value, dict) else value, str)
        }
        try:
            self._template = environment.from_string(source)
        except (TemplateError, RecursionError, ValueError, OverflowError) as error:
            raise InputError(f"{directory}: its chat template is broken ({error}); replace {_TEMPLATE}") from error

    @staticmethod
    def find(origin: Origin) -> str | None:
        """The template's text, from a file of its own or the tokenizer's configuration."""
        written = read(origin, _TEMPLATE, _MOST_BYTES)
        if written is not None:
            return written.decode("utf-8", "replace")
        template = read_json(origin, _CONFIG, _MOST_BYTES).get("chat_template")
        if isinstance(template, list):  # several by name
            named = (each for each in template if isinstance(each, dict))
            template = {str(each.get("name")): each.get("template") for each in named}.get("default")
        return template if isinstance(template, str) else None

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The text of a conversation, up to where the answer begins, or goes on: with `continue_final_message` (and
        without `add_generation_prompt`) the last message is its beginning. variables: `tools` and what else the
        template knows, such as `enable_thinking`. InputError when the template refuses the messages."""
        if continue_final_message and add_generation_prompt:
            raise InputError("an answer either begins or goes on: continue_final_message needs no generation prompt")
        shown, said = opened(messages) if continue_final_message else (messages, None)
        values: dict[str, Any] = {"tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
        values |= self._special | variables
        try:
            text: str = self._template.render(messages=shown, **values)
        except Exception as error:  # a template is a program
            raise InputError(f"{self._directory}: its chat template refuses these messages: {error}") from error
        return text if said is None else cut(text, said)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Unlike jinja2's own it escapes nothing for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)
