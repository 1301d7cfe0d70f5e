"""What is written can be loaded without the code that the checkpoint came with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.quantized_checkpoint import quantized_copy
from support.random_checkpoint import DEEPSEEK_V3, LLAMA, random_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.families import family_of
from llmc.convert.model import CausalLM
from llmc.errors import InputError
from llmc.sidecars import copy_sidecar

AUTO_MAP = {"AutoConfig": "configuration_my.MyConfig", "AutoModelForCausalLM": "modeling_my.MyModel"}
# As the checkpoints of Kimi-K2 are; as old ones without model_type are.
CASES: dict[str, dict[str, Any]] = {
    "auto_map": LLAMA | {"auto_map": AUTO_MAP, "custom_pipelines": {"mine": {"impl": "pipeline_my.Mine"}}},
    "kimi_k2": DEEPSEEK_V3 | {"model_type": "kimi_k2", "auto_map": AUTO_MAP, "num_nextn_predict_layers": 0},
    "no model_type": {key: value for key, value in LLAMA.items() if key != "model_type"},
    "no architectures": {key: value for key, value in LLAMA.items() if key != "architectures"},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("trust_remote_code", [False, True])
def test_transformers_loads_with_its_own_class(tmp_path: Path, case: str, trust_remote_code: bool) -> None:
    source = random_checkpoint(tmp_path / "source", CASES[case] | {"v_head_dim": 16})
    made = quantized_copy(Checkpoint.open(source), {"attention": "fp8-channel"}, tmp_path)
    assert not {"auto_map", "custom_pipelines"} & made.config.keys()
    theirs = AutoModelForCausalLM.from_pretrained(
        made.path, dtype=torch.float32, trust_remote_code=trust_remote_code, local_files_only=True
    )
    assert [type(theirs).__name__] == made.config["architectures"]
    ours, ids = CausalLM.load(made), torch.arange(40)[None]
    with torch.no_grad():
        expected = theirs(ids).logits
    assert ((expected - ours.logits(ours.hidden(ids))).abs().max() / expected.abs().max()).item() < 1e-4


def test_another_architecture_under_a_known_name_is_refused() -> None:
    with pytest.raises(InputError, match=r"`model_type` is 'mistral', but `architectures` names 'LlamaForCausalLM'"):
        family_of(LLAMA | {"model_type": "mistral"})
    assert family_of({"model_type": "kimi_k2"}).name == "deepseek_v3"


def test_the_tokenizer_needs_no_code_either(tmp_path: Path, embedded: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    settings = json.loads((embedded / "tokenizer_config.json").read_text(encoding="utf-8"))
    mine = {"tokenizer_class": "MyTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_my.MyTokenizer", None]}}
    (source / "tokenizer_config.json").write_text(json.dumps(settings | mine), encoding="utf-8")
    for name in ("tokenizer.json", "config.json"):
        (source / name).write_bytes((embedded / name).read_bytes())
    for file in source.iterdir():
        copy_sidecar(file.parent, file.name, target)
    assert (target / "tokenizer.json").read_bytes() == (embedded / "tokenizer.json").read_bytes()
    settings = json.loads((target / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 4 stops at a class it does not have
    expected = AutoTokenizer.from_pretrained(embedded)("The first").input_ids
    for trust_remote_code in (False, True):
        loaded = AutoTokenizer.from_pretrained(target, trust_remote_code=trust_remote_code, local_files_only=True)
        assert loaded("The first").input_ids == expected


@pytest.mark.parametrize("content", [b"{", b"[1]", b'{"a": 1 }', b"\xff"])
def test_other_settings_are_copied_byte_for_byte(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer_config.json").write_bytes(content)
    (tmp_path / "out").mkdir()
    copy_sidecar(tmp_path, "tokenizer_config.json", tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer_config.json").read_bytes() == content
