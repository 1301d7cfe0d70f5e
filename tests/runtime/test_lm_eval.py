"""The harness itself on a real artifact, and what it is told against the model's own words."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pytest
from lm_eval.api.instance import Instance
from support.listed_files import list_files

from llmc.errors import InputError
from llmc.runtime import Model, load
from llmc.runtime.lm_eval import ArtifactLM

pytestmark = pytest.mark.slow

TEXT = "import os\n\n\ndef main(argv):\n    return os.path.join(argv[1], 'a')\n"


@pytest.fixture(scope="module")
def model(trained: Path) -> Iterator[Model]:
    with load(trained, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def lm(model: Model) -> Any:
    return ArtifactLM(model)


def requests(kind: str, *arguments: Any) -> list[Any]:
    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]


def test_log_likelihoods_of_continuations(model: Model, lm: Any) -> None:
    greedy = model.generate("import os\n", max_new_tokens=6)
    pairs = [("import os\n", greedy.text), ("def", " get(self"), ("", "x = 1"), ("value ", "is")]
    found = lm.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    assert found[0][1] and not found[1][1]
    for (context, following), (value, _) in zip(pairs, found, strict=True):
        whole = model.encode(context + following) if context else [lm.prefix_token_id, *lm.tok_encode(following, False)]
        start = len(model.encode(context.rstrip())) if context.strip() else 1
        if context.endswith("\n"):  # the harness moves spaces at the end of a context to what follows
            start = len(model.encode(context.rstrip()))
        logits, _ = model.backend.forward(
            "main", model.backend.new_cache(1), np.array([whole]), np.array([0]), np.arange(len(whole))[None]
        )
        logprobs = logits[0] - np.log(np.exp(logits[0]).sum(-1, keepdims=True))
        expected = sum(logprobs[place - 1, whole[place]] for place in range(start, len(whole)))
        assert value == pytest.approx(expected, abs=1e-3)


def test_rolling_log_likelihoods_cover_texts_longer_than_the_context(
    model: Model, lm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = lm.loglikelihood_rolling(requests("loglikelihood_rolling", (TEXT,)), disable_tqdm=True)[0]
    ids = [lm.prefix_token_id, *lm.tok_encode(TEXT, False)]
    assert short == pytest.approx(sum(each.logprob for each in model.score([ids])[0]), abs=1e-3)
    monkeypatch.setattr(model.backend, "context", 12)
    windowed = lm.loglikelihood_rolling(requests("loglikelihood_rolling", (TEXT,)), disable_tqdm=True)[0]
    assert 1.02 * short > windowed > 4 * short  # less context, no token lost


def test_answers_stop_where_the_task_says(model: Model, lm: Any) -> None:
    asked = [(TEXT, {"until": ["\n"], "max_gen_toks": 20}), ("def get", {"until": [], "max_gen_toks": 5}), ("x", {})]
    found = lm.generate_until(requests("generate_until", *asked), disable_tqdm=True)
    assert found[0] == model.generate(TEXT, max_new_tokens=20, stop="\n").text
    assert found[1] == model.generate("def get", max_new_tokens=5).text
    assert found[2] == model.generate("x", max_new_tokens=256).text
    wanted = lm._parameters({"do_sample": True, "temperature": 0.7, "top_p": 0.9, "until": "a"})
    assert (wanted.temperature, wanted.top_p, wanted.stop, wanted.max_new_tokens) == (0.7, 0.9, ("a",), 256)
    assert lm._parameters({"do_sample": False, "temperature": 0.7}).temperature == 0


SAMPLED = {"until": [], "do_sample": True, "temperature": 1.5, "max_gen_toks": 12}


def test_repeats_of_a_sampled_request_are_drawn_anew_and_stay_the_same_in_any_order(lm: Any) -> None:
    repeated = requests("generate_until", *[("def f", dict(SAMPLED))] * 8)
    answers = lm.generate_until(repeated, disable_tqdm=True)
    assert len(set(answers)) > 4 and lm.generate_until(repeated, disable_tqdm=True) == answers
    others = requests("generate_until", ("import", dict(SAMPLED)), ("x", {}))
    mixed = lm.generate_until([others[0], *repeated[:3], others[1], *repeated[3:]], disable_tqdm=True)
    assert [*mixed[1:4], *mixed[5:]] == answers
    seeded = requests("generate_until", *[("def f", SAMPLED | {"seed": 7})] * 8)
    assert set(lm.generate_until(seeded, disable_tqdm=True)) != set(answers)
    greedy = requests("generate_until", *[("def f", {"max_gen_toks": 6})] * 3)
    assert len(set(lm.generate_until(greedy, disable_tqdm=True))) == 1


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"do_sample": True, "temperature": 0}, {"temperature": 0.0}),
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"do_sample": False, "temperature": 0.8}, {"temperature": 0.0}),
        ({"temperature": 0.8, "do_sample": None}, {"temperature": 0.8}),
        ({"max_tokens": 16}, {"max_new_tokens": 16}),
        ({"max_completion_tokens": 17, "max_new_tokens": 18}, {"max_new_tokens": 18}),
        ({"max_gen_toks": 10_000}, {"max_new_tokens": 512}),  # half of the context
        ({"until": None}, {"stop": ()}),
        ({"until": ("a", "b")}, {"stop": ("a", "b")}),
        ({"do_sample": "False", "temperature": 0.8}, {"temperature": 0.0}),
        ({"do_sample": "true", "temperature": 0.8}, {"temperature": 0.8}),
        ({"until": ["a", ""], "seed": 7, "temperature": 1, "top_k": -1}, {"stop": ("a",), "seed": 7, "top_k": 0}),
        ({"num_beams": 1, "use_cache": True, "repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
    ],
)
def test_what_a_task_asks_for_is_done(lm: Any, wanted: Any, expected: Any) -> None:
    found = lm._parameters(wanted)
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize("wanted", [{"num_beams": 10}, {"max_length": 100}, {"temprature": 0.5}, {"logit_bias": {}}])
def test_what_cannot_be_done_is_told(lm: Any, wanted: Any) -> None:
    with pytest.raises(InputError, match=f"cannot generate with {next(iter(wanted))}="):
        lm.generate_until(requests("generate_until", ("x", wanted)), disable_tqdm=True)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"max_tokens": "many"}, "cannot be read: invalid literal"),
        ({"temperature": "hot"}, "cannot be read: could not convert"),
        ({"do_sample": "perhaps"}, "do_sample is 'perhaps'; it has to be True or False"),
    ],
)
def test_what_cannot_be_read_is_told(lm: Any, wanted: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        lm._parameters(wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": "x"}, "batch_size is 'x'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_gen_toks": 2.5}, "max_gen_toks is 2.5"),
        ({"threads": 1}, "unknown option 'threads'; known: batch_size, max_gen_toks"),  # it is loaded already
    ],
)
def test_options_of_the_model(model: Model, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ArtifactLM(model, **options)
    assert ArtifactLM(model, batch_size="3", max_batch_size=64, device="cpu").batch == 3
    with pytest.raises(InputError, match=r"unknown option 'pretrained'; known: .*threads"):
        ArtifactLM("artifact", pretrained="x")


def test_the_beginning_of_an_answer_stays_open(trained: Path, tmp_path: Path) -> None:
    artifact = shutil.copytree(trained, tmp_path / "artifact")
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    (artifact / "chat_template.jinja").write_text(template + "{% if add_generation_prompt %}<assistant>{% endif %}")
    list_files(artifact, "chat_template.jinja")
    chat = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "The best is"}]
    with load(artifact, threads=1) as model:
        lm = ArtifactLM(model, batch_size="auto:4")
        assert lm.apply_chat_template(chat, add_generation_prompt=False) == "<user>Which?<end><assistant>The best is"
        assert lm.apply_chat_template(chat[:1]) == "<user>Which?<end><assistant>"
        ids = model.chat_prompt(chat, add_generation_prompt=False, continue_final_message=True)
        assert model.tokenizer.decode(ids).endswith("The best is")


def test_templates_without_a_place_for_the_system_message(trained: Path, tmp_path: Path) -> None:
    artifact = shutil.copytree(trained, tmp_path / "artifact")
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}{{ messages[0].content }}"
    (artifact / "chat_template.jinja").write_text(refusing)
    list_files(artifact, "chat_template.jinja")
    with load(artifact, threads=1) as model:
        lm, chat = ArtifactLM(model), [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "hi"}]
        assert lm.apply_chat_template(chat) == "hi"


def test_chats_have_one_beginning_of_text(trained: Path, embedded: Path, tmp_path: Path) -> None:
    artifact = shutil.copytree(trained, tmp_path / "artifact")
    template = "{{ bos_token }}{% for m in messages %}#{{ m.role }} {{ m.content }}\n{% endfor %}"
    (artifact / "chat_template.jinja").write_text(template)
    list_files(artifact, "chat_template.jinja")
    shutil.copy(embedded / "tokenizer_config.json", artifact)
    list_files(artifact)
    with load(artifact, threads=1) as model:
        lm = ArtifactLM(model)
        assert lm.chat_template(True) == template and lm.chat_template(False) is None
        text = lm.apply_chat_template([{"role": "user", "content": "hi"}])
        assert text.endswith("#user hi\n") and lm.tok_encode(text).count(model.tokenizer.encode("a").ids[0]) == 1


def test_the_harness_runs_a_task(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    documents = [
        {"q": "import", "choices": [" os", " qqqq"], "label": 0},
        {"q": "class Error(", "choices": ["banana", "Exception)"], "label": 1},
        {"q": "def get(self", "choices": ["zzz zzz", "):"], "label": 0},  # what the model takes to be wrong
    ]
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(each) + "\n" for each in documents))
    task = {
        "task": "choices",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "documents.jsonl")}, "cache_dir": str(tmp_path)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{choices}}",
        "target_delimiter": "",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
    }
    results = lm_eval.simple_evaluate(
        model="llmc", model_args=f"artifact={trained},threads=1", tasks=[task], bootstrap_iters=0, batch_size=2
    )
    assert math.isclose(results["results"]["choices"]["acc,none"], 2 / 3)
