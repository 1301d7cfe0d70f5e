"""Messages to a prompt: the tokenizer's own chat template, rendered by jinja2, sandboxed and confined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmc.errors import InputError
from llmc.runtime.confined import Confined
from llmc.runtime.origin import Origin, names, read, read_json, where
from llmc.runtime.prefill import cut, opened
from llmc.runtime.special_tokens import special_tokens, tokenizer_config

Message = Mapping[str, Any]
_TEMPLATE, _MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
_OLDER = "chat_template.json"  # what processors wrote once: an object with the one key `chat_template`
_DEFAULT, _FOR_TOOLS = "default", "tool_use"
_MOST_BYTES = 1 << 20  # of a template
_process = Confined(seconds=2, memory=1 << 29)


class ChatTemplate:
    """The templates of an artifact, or of a checkpoint's folder; InputError when it has none."""

    def __init__(self, origin: Origin, source: str | None = None) -> None:
        """source: of another template than its own"""
        self._directory = where(origin)
        self._its_own = source is None
        self._sources = _templates(origin) if source is None else {_DEFAULT: source}
        if not self._sources:
            raise InputError(f"{self._directory}: its tokenizer has no chat template; give it text to continue instead")
        self._special = special_tokens(origin)
        for name in self._sources.keys() & {_DEFAULT, _FOR_TOOLS}:  # the only ones that are ever used
            self._ask(self._sources[name])

    @property
    def source(self) -> str:
        """The text of the one that is used without tools."""
        return self._chosen(None)

    def mentions(self, variable: str) -> bool:
        """Whether a template has this word, without which a variable of that name would change nothing."""
        return any(variable in source for source in self._sources.values())

    @staticmethod
    def find(origin: Origin) -> str | None:
        """The text of a template, the default one if there are several; None: there is none."""
        found = _templates(origin)
        return found.get(_DEFAULT, next(iter(found.values()), None))

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The text of a conversation, up to where the answer begins, or goes on: with `continue_final_message` (and
        without `add_generation_prompt`) the last message is its beginning. variables: `tools` and what else the
        template knows, such as `enable_thinking`. With tools, the template `tool_use` is taken, if there is one.
        InputError when the template refuses the messages.
        """
        if continue_final_message and add_generation_prompt:
            raise InputError("an answer either begins or goes on: continue_final_message needs no generation prompt")
        shown, said = opened(messages) if continue_final_message else (messages, None)
        values: dict[str, Any] = {"tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
        values |= self._special | variables
        text = self._ask(self._chosen(values["tools"]), values | {"messages": shown})
        return text if said is None else cut(text, said)

    def _chosen(self, tools: Any) -> str:
        name = _FOR_TOOLS if tools is not None and _FOR_TOOLS in self._sources else _DEFAULT
        if name not in self._sources:
            names = ", ".join(sorted(self._sources))
            raise InputError(f"{self._directory}: none of its chat templates ({names}) is for a chat without tools")
        return self._sources[name]

    def _ask(self, source: str, values: dict[str, Any] | None = None) -> str:
        try:
            reply = _process.ask("template", source=source, values=values)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{self._directory}: not what a chat template can be given: {error}") from error
        if "error" not in reply:
            return reply["result"]
        name = f"{self._directory}: its chat template" if self._its_own else "the chat template that was given"
        if values is None or reply.get("broken"):
            advice = f"replace {_TEMPLATE}" if self._its_own else "correct it"
            raise InputError(f"{name} is broken ({reply['error']}); {advice}")
        raise InputError(f"{name} refuses these messages: {reply['error']}")


def _templates(origin: Origin) -> dict[str, str]:
    """Name → text: from files of their own, else the configuration of the tokenizer, else what a processor left."""
    more = [file for file in names(origin, _MORE_TEMPLATES) if file.endswith(".jinja")]
    files = {file.removeprefix(f"{_MORE_TEMPLATES}/").removesuffix(".jinja"): file for file in more}
    files[_DEFAULT] = _TEMPLATE
    written = {name: _read(origin, file) for name, file in files.items()}
    found: Any = {name: source for name, source in written.items() if source is not None}
    if not found:
        found = tokenizer_config(origin).get("chat_template")
    if not found:
        found = read_json(origin, _OLDER, _MOST_BYTES).get("chat_template")
    if isinstance(found, list):
        found = {str(each.get("name")): each.get("template") for each in found if isinstance(each, dict)}
    named = found if isinstance(found, dict) else {_DEFAULT: found}
    return {name: source for name, source in named.items() if isinstance(source, str)}


def _read(origin: Origin, name: str) -> str | None:
    data = read(origin, name, _MOST_BYTES)
    try:
        return None if data is None else data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where(origin) / name}: not UTF-8 text ({error}); download it again") from error
