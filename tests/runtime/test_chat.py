"""Chat templates against transformers, which they are written for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.listed_files import list_files
from transformers import PreTrainedTokenizerFast

from llmc.errors import InputError
from llmc.runtime import load
from llmc.runtime.chat import ChatTemplate

MESSAGES = [
    {"role": "system", "content": "Be brief.  "},
    {"role": "user", "content": "What is <b>this</b> & “that”?"},
    {"role": "assistant", "content": "A test."},
    {"role": "user", "content": "Again?\n"},
]
# Written for these tests; each uses what templates of one well-known family use.
HEADERS = """
{%- if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{{- bos_token }}
{% for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- raise_exception('Begin with the system message') }}
    {%- endif %}
    {{- '[' + message['role'] + ']' }}{{ message['content'] | trim }}{{ eos_token }}
{% endfor %}
{%- if add_generation_prompt %}[assistant]{% endif %}"""
TOOLS = """{% set ns = namespace(system='', first=true) %}
{%- for message in messages if message.role == 'system' %}{% set ns.system = message.content %}{% endfor %}
{{- ns.system ~ '|' }}
{%- if tools %}
{% for tool in tools %}
{{ tool | tojson(indent=2) }}
{% endfor %}
{% endif %}
{%- for message in messages %}
    {% if message.role == 'system' %}{% continue %}{% endif %}
<{{ message.role }}>{{ message.content.split('</think>')[-1] }}
{%- endfor %}
{%- if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}
{{ strftime_now('%Y') }}{{ messages[0] | tojson }}"""
TOOL = {"type": "function", "function": {"name": "größe", "parameters": {"type": "object", "required": ["a"]}}}


def with_template(directory: Path, template: list[dict[str, str]] | str, as_file: bool = False) -> Path:
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config["extra_special_tokens"] = {"image_token": "<image>"}
    config |= {"bos_token": "<|begin|>", "eos_token": {"__type": "AddedToken", "content": "<|end|>", "special": True}}
    if as_file:
        (directory / "chat_template.jinja").write_text(template)
    else:
        config["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture
def directory(embedded: Path, tmp_path: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(embedded / name, tmp_path)
    return tmp_path


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize(
    ("template", "variables"),
    [
        (HEADERS, {}),
        (HEADERS, {"add_generation_prompt": False}),
        (TOOLS, {"tools": [TOOL], "enable_thinking": False}),
        ("test{% if tools is not none or documents is not none %}more{% endif %}{{ image_token }}", {}),
        ("test{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", {}),
    ],
)
def test_text_is_what_transformers_renders(directory: Path, template: str, variables: Any, as_file: bool) -> None:
    with_template(directory, template, as_file)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    wanted = {"add_generation_prompt": True} | variables
    expected = tokenizer.apply_chat_template(MESSAGES, tokenize=False, **wanted)
    assert ChatTemplate(directory).render(MESSAGES, **variables) == expected and "test" in expected


BLOCKS = """{% for message in messages %}<{{ message.role }}>
{%- if message.content is string %}{{ message.content }}{% else %}
{%- for block in message.content %}{{ block.text }}{% endfor %}{% endif %}<end>
{% endfor %}"""


@pytest.mark.parametrize("beginning", ["The best answer is", "The best answer is ", "  Well,\n", "a"])
@pytest.mark.parametrize("template", [HEADERS, TOOLS, BLOCKS, "test{{ bos_token }}{{ messages[-1].content }}#"])
def test_a_last_message_is_continued_as_transformers_does_it(directory: Path, template: str, beginning: str) -> None:
    with_template(directory, template)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    messages = [*MESSAGES, {"role": "assistant", "content": beginning}]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    found = ChatTemplate(directory).render(messages, False, continue_final_message=True)
    assert found == expected and found.rstrip().endswith(beginning.strip())
    assert messages[-1]["content"] == beginning


def test_a_last_message_of_blocks_is_continued_and_others_are_refused(directory: Path) -> None:
    template = ChatTemplate(with_template(directory, BLOCKS))
    blocks = [{"type": "text", "text": "One"}, {"type": "text", "text": "Two"}, {"type": "image"}]
    open_ended = {"add_generation_prompt": False, "continue_final_message": True}
    found = template.render([{"role": "assistant", "content": blocks}], **open_ended)
    assert found == "<assistant>OneTwo" and blocks[1]["text"] == "Two"
    for wrong in ([], [{"role": "assistant", "content": None}], [{"role": "assistant", "content": [{}]}]):
        with pytest.raises(InputError, match="no text that an answer could go on from"):
            template.render(wrong, **open_ended)
    with pytest.raises(InputError, match="either begins or goes on"):
        template.render(MESSAGES, True, continue_final_message=True)
    with pytest.raises(InputError, match="does not show the last message"):
        ChatTemplate(with_template(directory, "nothing")).render(MESSAGES, **open_ended)


def test_of_several_templates_the_default_one_is_used(directory: Path) -> None:
    with_template(directory, [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}])
    assert ChatTemplate(directory).render(MESSAGES) == "yes"


def named(**templates: Any) -> list[dict[str, str]]:
    return [{"name": name, "template": template} for name, template in templates.items()]


def in_files(directory: Path, **templates: Any) -> Path:
    with_template(directory, "of the configuration")
    (directory / "additional_chat_templates").mkdir()
    for name, template in templates.items():
        at_root = name == "default"
        path = directory / ("chat_template.jinja" if at_root else f"additional_chat_templates/{name}.jinja")
        path.write_text(template)
    return directory


@pytest.mark.parametrize("put", [lambda directory, **each: with_template(directory, named(**each)), in_files])
@pytest.mark.parametrize("tools", [None, [], [TOOL]])
def test_of_several_templates_the_one_for_tools_is_used_with_tools(
    directory: Path, put: Callable[..., Any], tools: list[Any] | None
) -> None:
    put(directory, tool_use="tools {{ tools | tojson }}", default="default", rag="rag")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    expected = tokenizer.apply_chat_template(MESSAGES, tools=tools, tokenize=False, add_generation_prompt=True)
    template = ChatTemplate(directory)
    assert template.render(MESSAGES, tools=tools) == expected
    assert expected.startswith("default" if tools is None else "tools") and template.source == "default"


def test_the_template_of_an_older_processor_is_used_where_there_is_no_other(directory: Path) -> None:
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}!"}))
    assert ChatTemplate(directory).render(MESSAGES) == "Be brief.  !"
    assert ChatTemplate(with_template(directory, "of the tokenizer")).render(MESSAGES) == "of the tokenizer"
    (directory / "chat_template.jinja").write_text("of a file")
    assert ChatTemplate(directory).render(MESSAGES) == "of a file"


@pytest.mark.parametrize("content", ["[]", "{", '{"chat_template": 3}'])
def test_the_file_of_an_older_processor_that_holds_no_template(directory: Path, content: str) -> None:
    (directory / "chat_template.json").write_text(content)
    with pytest.raises(InputError, match=r"chat_template\.json: broken|has no chat template"):
        ChatTemplate(directory)


def test_templates_that_nobody_asks_for_are_not_compiled(directory: Path) -> None:
    """Each may take seconds, and a configuration has room for thousands."""
    others = [{"name": f"other{number}", "template": "{{ broken"} for number in range(3)]
    with_template(directory, [*others, {"name": "default", "template": "{{ messages[0].content }}"}])
    assert ChatTemplate(directory).render(MESSAGES) == "Be brief.  "


def test_templates_for_something_else_only(directory: Path) -> None:
    template = ChatTemplate(with_template(directory, named(tool_use="tools", rag="rag")))
    assert template.render(MESSAGES, tools=[TOOL]) == "tools"
    with pytest.raises(InputError, match=r"none of its chat templates \(rag, tool_use\) is for a chat without tools"):
        template.render(MESSAGES)


@pytest.mark.parametrize("listed", [False, True])
def test_special_tokens_of_older_checkpoints(directory: Path, listed: bool) -> None:
    with_template(directory, "{{ bos_token }}[{{ messages[0].content }}]{{ eos_token }}{{ pad_token }}")
    config = json.loads((directory / "tokenizer_config.json").read_text()) | {"pad_token": "<pad>"}
    del config["eos_token"]
    if listed:
        config["added_tokens_decoder"] = {}
    else:
        del config["bos_token"]
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    older = {"bos_token": "<|older|>", "eos_token": {"content": "<|end|>", "lstrip": False}, "pad_token": "<older>"}
    (directory / "special_tokens_map.json").write_text(json.dumps(older))
    rendered = ChatTemplate(directory).render(MESSAGES)
    if listed:
        assert rendered == "<|begin|>[Be brief.  ]<|end|><pad>"
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
        assert (
            rendered
            == tokenizer.apply_chat_template(MESSAGES, tokenize=False)
            == "<|older|>[Be brief.  ]<|end|><older>"
        )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 'a' * 10**10 }}", "MiB would be needed"),
        ("{{ messages[0].content * (messages | length) ** 17 }}", "refuses these messages: .*MiB would be needed"),
        ("{% for i in range(10**9) %}{% endfor %}", "refuses these messages: Range too big"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "is broken .*recursion"),
        ("x" * (1 << 20) + "x", "larger than"),
    ],
)
def test_templates_that_would_take_everything(directory: Path, template: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ChatTemplate(with_template(directory, template, as_file=True)).render(MESSAGES)


def test_variables_are_plain_data(directory: Path) -> None:
    template = ChatTemplate(with_template(directory, "{{ x }}"))
    with pytest.raises(InputError, match="not what a chat template can be given: object is neither text nor"):
        template.render(MESSAGES, x=object())


def test_what_a_template_refuses_and_what_it_may_not_do(directory: Path) -> None:
    template = ChatTemplate(with_template(directory, HEADERS))
    with pytest.raises(InputError, match="refuses these messages: Begin with the system message"):
        template.render(MESSAGES[1:])
    escape = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(InputError, match="unsafe"):
        ChatTemplate(with_template(directory, escape)).render(MESSAGES)
    with pytest.raises(InputError, match="unsafe"):
        ChatTemplate(with_template(directory, "{{ messages.append(1) }}")).render(MESSAGES)
    with pytest.raises(InputError, match=r"refuses these messages: .*not found"):
        ChatTemplate(with_template(directory, "{{ messages[0].content.index('zzz') }}")).render(MESSAGES)
    with pytest.raises(InputError, match="its chat template is broken"):
        ChatTemplate(with_template(directory, "{% if %}"))


def test_a_chat_is_the_continuation_of_its_prompt(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "artifact")
    (tmp_path / "artifact" / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for message in messages %}# {{ message.role }}: {{ message.content }}\n{% endfor %}"
    )
    list_files(tmp_path / "artifact")
    with load(tmp_path / "artifact", threads=1) as model:
        messages = [{"role": "user", "content": "import os"}]
        ids = model.chat_prompt(messages)
        text = "# user: import os\n"
        assert ids == model.tokenizer.encode(text, add_special_tokens=False).ids
        answer = model.chat(messages, max_new_tokens=10)
        assert answer == model.generate(ids, max_new_tokens=10) == model.generate(messages, max_new_tokens=10)
        assert model.generate([messages, messages], max_new_tokens=10)[1].text == answer.text
        assert "".join(model.stream(messages, max_new_tokens=10)) == answer.text
        session = model.session(messages)
        longer = [*messages, {"role": "assistant", "content": answer.text}, {"role": "user", "content": "import re"}]
        assert session.chat(longer, max_new_tokens=10).token_ids == model.chat(longer, max_new_tokens=10).token_ids
        assert session.chat(longer, max_new_tokens=10).cached_tokens > len(ids)


def test_without_a_template(trained: Path) -> None:
    with load(trained, threads=1) as model, pytest.raises(InputError, match="no chat template; give it text"):
        model.chat([{"role": "user", "content": "hi"}])
