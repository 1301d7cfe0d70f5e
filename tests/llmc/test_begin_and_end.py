"""With what texts begin and answers end is decided at the build, said, and done again wherever the artifact is used."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from support.listed_files import list_files

from llmc.runtime import load
from llmc.runtime.chat import ChatTemplate


@pytest.fixture
def model(small_model: Path, tmp_path: Path) -> Path:
    """As DeepSeek publishes it, and without an end token."""
    folder = Path(shutil.copytree(small_model, tmp_path / "begins"))
    config = {"add_bos_token": True, "bos_token": "<bos>", "tokenizer_class": "LlamaTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    change(folder / "config.json", eos_token_id=None)
    return folder


def change(file: Path, **fields: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_a_beginning_and_no_end(llmc, recipe, model: Path) -> None:
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    (model / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    path = recipe(model=str(model), prune=None)
    made = llmc("build", path)
    assert made.exit_code == 0, made.output
    begins, ends = "`<bos>` (0) (add_bos_token in tokenizer_config.json)", "nothing: the model names no end token"
    out = Path("build/small")
    shown = llmc("inspect", out).stdout
    for said in (made.stdout, shown, (out / "README.md").read_text().replace("\\", "")):
        assert begins in " ".join(said.split()) and ends in " ".join(said.split())
    manifest = json.loads((out / "llmc.json").read_text())
    assert manifest["tokenizer"]["add_bos"] is True and manifest["model"]["eos_token_ids"] == []
    assert (load_file(out / "reference.safetensors")["input_ids"] == 0).sum() >= 1
    assert ChatTemplate(out).render([{"role": "user", "content": "a"}], tools=[]) == "tools"
    with load(out, threads=1) as loaded:
        assert loaded.encode("a")[0] == 0 and loaded.chat_prompt([{"role": "user", "content": "a"}])[0] == 0
        assert loaded.generate("a", max_new_tokens=5).finish_reason == "length"
        assert loaded.generate("a", max_new_tokens=None).finish_reason == "length"
    with load(out, threads=1, add_bos=False) as loaded:
        assert 0 not in loaded.encode("a")
    asked = ("run", out, "--prompt", "a", "--max-new-tokens", "3", "--json")
    answers = [
        json.loads(llmc(*asked, *more).stdout)["prompt_tokens"] for more in ([], ["--add-bos"], ["--no-add-bos"])
    ]
    assert answers == [2, 2, 1]
    assert llmc("build", path).stderr.endswith("is up to date; --fresh builds it anew\n")


def test_the_recipe_decides(llmc, recipe, model: Path) -> None:
    change(model / "tokenizer_config.json", eos_token="<eos>")
    made = llmc("build", recipe(model=str(model), prune=None, add_bos=False))
    assert made.exit_code == 0, made.output
    assert "no token of their own (as asked for)" in made.stdout and "`<eos>` (1)" in made.stdout
    assert not (load_file("build/small/reference.safetensors")["input_ids"] == 0).any()
    with load("build/small", threads=1) as loaded:
        assert 0 not in loaded.encode("a") and loaded.artifact.eos_token_ids == {1}


def test_lm_eval_of_a_model_without_an_end(llmc, recipe, model: Path) -> None:
    from llmc.runtime.lm_eval import ArtifactLM

    assert llmc("build", recipe(model=str(model), prune=None)).exit_code == 0
    with load("build/small", threads=1) as loaded:
        lm = ArtifactLM(loaded)
        assert lm.prefix_token_id == lm.eot_token_id == 0 and lm.tok_encode("a")[0] == 0
    out = Path("build/small")  # nor a beginning
    manifest = json.loads((out / "llmc.json").read_text())
    (out / "tokenizer_config.json").write_text("{}")
    nothing = {"model": manifest["model"] | {"bos_token_id": None}, "tokenizer": {"add_bos": False}}
    change(out / "llmc.json", **nothing)
    list_files(out, "tokenizer_config.json")
    with load(out, threads=1) as loaded:
        lm = ArtifactLM(loaded)
        assert [lm.prefix_token_id] == lm.tok_encode("\n") and lm.eot_token_id == lm.prefix_token_id
