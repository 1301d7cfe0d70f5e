"""A real `llmc serve` and its real clients: the official one, the harness, many at once, and some that hang up."""

import asyncio
import json
import re
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI
from support.listed_files import list_files
from support.served import Served, served

from llmc.runtime import Model, load
from llmc.runtime.lm_eval import ArtifactLM

TEMPLATE = (
    "{% for m in messages %}#{{ m.role }} {{ m.content }}\n{% endfor %}"
    "{% if shout %}!{% endif %}{% if add_generation_prompt %}#assistant {% endif %}"
)
CHAT = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "import os"}]
LONG = {"prompt": "def get", "max_tokens": 900, "temperature": 1.5}  # does not end by itself so soon


def excerpts(count: int) -> list[str]:
    text = Path(json.decoder.__file__).read_text(encoding="utf-8")
    return [text[start : start + 10 + start % 90] for start in range(0, count * 101, 101)]


@pytest.fixture(scope="module")
def artifact(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = shutil.copytree(trained, tmp_path_factory.mktemp("served") / "tiny")
    (path / "chat_template.jinja").write_text(TEMPLATE)
    list_files(path, "chat_template.jinja")
    return path


@pytest.fixture(scope="module")
def model(artifact: Path) -> Iterator[Model]:
    with load(artifact, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def server(artifact: Path) -> Iterator[Served]:
    with served(artifact, "--batch", "8", "--queue", "100") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=600) as client:
        yield client


def metric(server: Served, name: str) -> float:
    page = urllib.request.urlopen(f"{server.url}/metrics").read().decode()
    found = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
    return float(found[1]) if found else 0.0


def hung_up_on(server: Served, asked: dict[str, Any], until: str) -> None:
    """Asks, waits until the server has sent this or, if that is empty, until it works on the answer, and is gone."""
    body = json.dumps(asked).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        read = b""
        while until and until.encode() not in read:
            read += connection.recv(4096)
        while not until and not metric(server, "llmc_running_answers"):
            time.sleep(0.01)


def test_the_model_is_listed(client: openai.OpenAI, server: Served) -> None:
    (found,) = client.models.list().data
    assert found.id == "tiny" == client.models.retrieve("tiny").id
    assert json.loads(urllib.request.urlopen(f"{server.url}/health").read()) == {"status": "ok"}
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4' is served here, only 'tiny'"):
        client.chat.completions.create(model="gpt-4", messages=CHAT)


def test_a_chat_is_answered_through_the_template(client: openai.OpenAI, model: Model) -> None:
    expected = model.generate(model.chat_prompt(CHAT), max_new_tokens=12, logprobs=2)
    asked = {"model": "tiny", "messages": CHAT, "max_completion_tokens": 12, "logprobs": True, "top_logprobs": 2}
    found = client.chat.completions.create(**asked)
    (choice,) = found.choices
    assert choice.message.content == expected.text and choice.message.role == "assistant"
    assert choice.finish_reason == expected.finish_reason and found.usage and choice.logprobs
    assert found.usage.prompt_tokens == expected.prompt_tokens
    assert found.usage.completion_tokens == len(expected.token_ids)
    content = choice.logprobs.content or []
    assert [each.logprob for each in content] == pytest.approx([t.logprob for t in expected.logprobs or ()], abs=1e-3)
    assert b"".join(bytes(each.bytes or []) for each in content).decode() == expected.text
    assert all(len(each.top_logprobs) == 2 and each.top_logprobs[0].logprob >= each.logprob for each in content)
    pieces = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == expected.text
    assert pieces[0].choices[0].delta.role == "assistant" and pieces[-2].choices[0].finish_reason == "length"
    assert pieces[-1].usage == found.usage and len({piece.id for piece in pieces}) == 1
    told = [token for p in pieces if p.choices and p.choices[0].logprobs for token in p.choices[0].logprobs.content]
    assert [each.token for each in told] == [each.token for each in content]


def test_a_template_has_its_own_variables(client: openai.OpenAI, model: Model) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "import"}, {"type": "text", "text": "os"}]}]
    plain = [{"role": "user", "content": "import\nos"}]
    more = {"chat_template_kwargs": {"shout": True}}
    found = client.chat.completions.create(model="tiny", messages=parts, max_tokens=4, extra_body=more)
    assert found.usage and found.usage.prompt_tokens == len(model.chat_prompt(plain, shout=True))
    open_ended = [*plain, {"role": "assistant", "content": "import os"}]
    go_on = {"continue_final_message": True}
    found = client.chat.completions.create(model="tiny", messages=open_ended, max_tokens=4, extra_body=go_on)
    ids = model.chat_prompt(open_ended, add_generation_prompt=False, continue_final_message=True)
    assert found.choices[0].message.content == model.generate(ids, max_new_tokens=4).text


def test_texts_are_continued(client: openai.OpenAI, model: Model) -> None:
    prompts = [*excerpts(3), "def "]
    expected = model.generate(prompts, max_new_tokens=10)
    found = client.completions.create(model="tiny", prompt=prompts, max_tokens=10)
    assert [choice.text for choice in found.choices] == [each.text for each in expected]
    assert [choice.finish_reason for choice in found.choices] == [each.finish_reason for each in expected]
    ids = model.encode(prompts[0])
    assert client.completions.create(model="tiny", prompt=ids, max_tokens=10).choices[0].text == expected[0].text
    echoed = client.completions.create(model="tiny", prompt="def ", max_tokens=10, echo=True).choices[0].text
    assert echoed == "def " + expected[3].text
    pieces = list(client.completions.create(model="tiny", prompt=prompts, max_tokens=10, stream=True))
    for index, each in enumerate(expected):
        mine = [piece.choices[0] for piece in pieces if piece.choices[0].index == index]
        assert "".join(choice.text for choice in mine) == each.text and mine[-1].finish_reason == each.finish_reason
    alone = client.completions.create(model="tiny", prompt="def get", max_tokens=0, echo=True)
    assert alone.choices[0].text == "def get" and alone.usage and alone.usage.completion_tokens == 0


def test_answers_end_before_any_stop_string(client: openai.OpenAI, model: Model) -> None:
    whole = model.generate("def get", max_new_tokens=30).text
    stops = [whole[12:15], whole[20:24]]
    expected = model.generate("def get", max_new_tokens=30, stop=stops)
    asked: dict[str, Any] = {"model": "tiny", "prompt": "def get", "max_tokens": 30, "stop": stops}
    found = client.completions.create(**asked).choices[0]
    assert (found.text, found.finish_reason) == (expected.text, "stop") and len(found.text) < len(whole)
    streamed = "".join(piece.choices[0].text for piece in client.completions.create(**asked, stream=True))
    assert streamed == expected.text


def test_seeds_and_several_answers(client: openai.OpenAI, model: Model) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": "def get", "max_tokens": 12, "temperature": 1.0, "top_p": 0.9}
    found = [choice.text for choice in client.completions.create(**asked, n=3, seed=5).choices]
    options = {"temperature": 1.0, "top_p": 0.9, "max_new_tokens": 12}
    assert found == [model.generate("def get", seed=seed, **options).text for seed in (5, 6, 7)]
    free = {client.completions.create(**asked).choices[0].text for _ in range(6)}
    assert len(free) > 1  # without a seed every answer is another
    chats = client.chat.completions.create(model="tiny", messages=CHAT, n=2, max_tokens=3)
    assert len(chats.choices) == 2 and chats.choices[0].message == chats.choices[1].message


def test_log_probabilities_of_what_was_given(client: openai.OpenAI, model: Model) -> None:
    ids = model.encode(excerpts(2)[1])
    asked: dict[str, Any] = {"model": "tiny", "prompt": ids, "max_tokens": 1, "echo": True, "logprobs": 2}
    (choice,) = client.completions.create(**asked).choices
    (scored,) = model.score([ids], top=2)
    assert choice.logprobs and choice.logprobs.token_logprobs and choice.logprobs.tokens
    assert choice.logprobs.token_logprobs[0] is None and len(choice.logprobs.tokens) == len(ids) + 1
    assert choice.logprobs.token_logprobs[1:-1] == pytest.approx([each.logprob for each in scored], abs=1e-3)
    assert choice.text == "".join(choice.logprobs.tokens)
    assert choice.logprobs.text_offset == [
        len("".join(choice.logprobs.tokens[:place])) for place in range(len(ids) + 1)
    ]
    for told, each in zip((choice.logprobs.top_logprobs or [])[1:-1], scored, strict=True):
        assert max(told.values()) == pytest.approx(max(each.top.values()), abs=1e-3)


@pytest.mark.slow
def test_the_harness_says_the_same_over_http(server: Served, artifact: Path, model: Model) -> None:
    pairs = [("import os\n", "import sys"), ("def", " get(self"), ("class Error(", "Exception):"), ("x = [1, 2", "]")]
    over_http = LocalCompletionsAPI(
        model="tiny",
        base_url=f"{server.url}/v1/completions",
        tokenizer=str(artifact),
        tokenizer_backend="huggingface",
        add_bos_token=True,
        max_length=model.context,
        batch_size=2,
    )
    here = ArtifactLM(model)
    asked = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    expected = here.loglikelihood(asked, disable_tqdm=True)
    found = over_http.loglikelihood(asked, disable_tqdm=True)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    wanted = {"until": ["\n\n"], "max_gen_toks": 16, "do_sample": False}
    texts = [Instance("generate_until", {}, (prompt, dict(wanted)), index) for index, prompt in enumerate(excerpts(4))]
    expected_texts = here.generate_until(texts, disable_tqdm=True)
    assert over_http.generate_until(texts, disable_tqdm=True) == expected_texts and all(expected_texts)


def test_sixty_four_clients_at_once_get_their_own_answers(server: Served, model: Model) -> None:
    prompts = excerpts(64)
    lengths = [2 + 5 * (place % 5) for place in range(64)]
    alone = [
        model.generate(prompt, max_new_tokens=length).text for prompt, length in zip(prompts, lengths, strict=True)
    ]

    async def ask(client: openai.AsyncOpenAI, prompt: str, length: int, streamed: bool) -> str:
        asked: dict[str, Any] = {"model": "tiny", "prompt": prompt, "max_tokens": length}
        if not streamed:
            return (await client.completions.create(**asked)).choices[0].text
        stream = await client.completions.create(**asked, stream=True)
        return "".join([piece.choices[0].text async for piece in stream])

    async def all_at_once() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=600
        ) as client:
            asked = zip(prompts, lengths, strict=True)
            return await asyncio.gather(
                *(ask(client, prompt, length, place % 2 == 0) for place, (prompt, length) in enumerate(asked))
            )

    before = metric(server, "llmc_generated_tokens_total")
    assert asyncio.run(all_at_once()) == alone
    assert metric(server, "llmc_generated_tokens_total") > before
    assert metric(server, "llmc_running_answers") == metric(server, "llmc_waiting_answers") == 0


@pytest.mark.parametrize(("stream", "until"), [(True, "data: "), (False, "")])
def test_a_client_that_hangs_up_frees_its_rows(server: Served, client: openai.OpenAI, stream: bool, until: str) -> None:
    before = metric(server, 'llmc_answers_total{reason="cancelled"}')
    hung_up_on(server, LONG | {"n": 8, "stream": stream}, until)
    while metric(server, "llmc_running_answers"):
        time.sleep(0.01)
    assert metric(server, 'llmc_answers_total{reason="cancelled"}') > before
    assert client.completions.create(model="tiny", prompt="def get", max_tokens=2).usage


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"prompt": "x",', "the body is no JSON: "),
        ("[1]", "the body has to be a JSON object"),
        ("{}", "prompt is missing"),
        ('{"prompt": 5}', "prompt has to be a text, a list of texts, a list of tokens"),
        ('{"prompt": []}', "prompt is an empty list"),
        ('{"prompt": "x", "max_token": 3}', "unknown parameter 'max_token'; did you mean 'max_tokens'?"),
        ('{"prompt": "x", "temperature": -1}', "temperature is -1.0; it has to be at least 0"),
        ('{"prompt": "x", "temperature": "hot"}', "temperature: input should be a valid number"),
        ('{"prompt": "x", "logit_bias": {"5": 1}}', "logit_bias is {'5': 1.0}, which llmc does not do"),
        ('{"prompt": "x", "max_tokens": 5000}', "2 prompt tokens and 5000 new ones do not fit the context of 1024"),
        ('{"prompt": [99999]}', "token 99999 is none of this model's"),
        ('{"prompt": "x", "n": 128, "best_of": 200}', "best_of has to be n"),
        ('{"prompt": "x", "stop": ["a", ""]}', "stop holds an empty string"),
        ('{"prompt": "x", "logprobs": true}', "logprobs: it has to be a number"),
        ('{"prompt": "x", "stream_options": {}}', "stream_options is for streams"),
        ('{"messages": []}', "messages: list should have at least 1 item"),
        (
            '{"messages": [{"role": "user", "content": [{"type": "image", "image": "/etc/fstab"}]}]}',
            "takes text alone",
        ),
        ('{"messages": [{"role": "user", "content": "x"}], "tools": [{}]}', "chat template knows no tools"),
        ('{"messages": [{"role": "user", "content": "x"}], "top_logprobs": 2}', "top_logprobs needs logprobs: true"),
    ],
)
def test_what_is_wrong_is_told_in_the_form_of_the_interface(server: Served, body: str, message: str) -> None:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    request = urllib.request.Request(f"{server.url}{path}", body.encode(), {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    told = json.loads(refused.value.read())["error"]
    assert refused.value.code == 400 and told["type"] == "invalid_request_error" and message in told["message"]
    assert "\n" not in told["message"]


def test_forms_of_web_pages_are_refused(server: Served) -> None:
    """A page can send these anywhere without being asked; JSON it cannot."""
    url = f"{server.url}/v1/completions"
    for headers, status in (({"Content-Type": "text/plain"}, 400), ({"Host": "rebound.example"}, 403)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(url, b'{"prompt": "x"}', headers))
        assert refused.value.code == status
