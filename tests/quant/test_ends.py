"""Embedding and head are quantized, alone or as one matrix, and all that is measured counts them."""

import json

import pytest
import torch
from safetensors.torch import load_file
from support.artifact_in_transformers import loaded_by_transformers
from support.random_checkpoint import DEEPSEEK_V3, LLAMA, random_checkpoint
from transformers import AutoModelForCausalLM

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.formats import layout
from llmc.convert.model import CausalLM
from llmc.errors import InputError
from llmc.quant import ends, tied_head
from llmc.quant.assign import Rule, assign, check_layout, end_modules
from llmc.quant.layerwise import quantize
from llmc.quant.schemes import scheme

TEXT = torch.randint(3, 96, (32, 32), generator=torch.Generator().manual_seed(0))
TIED = LLAMA | {"tie_word_embeddings": True}


def quantized(config, rules, directory, source=None):
    source = Checkpoint.open(source or random_checkpoint(directory / "source", config))
    out = directory / "out"
    return source, out, quantize(source, rules, None, TEXT, TEXT[:4], out, directory / "work", lambda *_: None)


def log_probabilities(checkpoint):
    model = CausalLM.load(checkpoint)
    return model.logits(model.hidden(TEXT[:4]))[:, :-1].log_softmax(-1)


CASES = {
    "head": (LLAMA, [Rule("lm_head", "int4-g32")]),
    "head to nearest": (LLAMA, [Rule("lm_head", "fp8-channel", "rtn")]),
    "embedding": (LLAMA, [Rule("embedding", "int4-g32-asym")]),
    "both": (LLAMA, [Rule("embedding", "int8-g32"), Rule("lm_head", "int3-g32", "gptq")]),
    "tied": (TIED, [Rule("lm_head", "int4-g32"), Rule("attention", "int4-g32")]),
    "tied, to nearest": (TIED, [Rule("embedding", "int8-g32", "rtn")]),
    "tied, scaled and capped": (
        TIED
        | {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "head_dim": 8}
        | {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 8},
        [Rule("embedding", "int4-g32")],
    ),
    "with MTP": (
        DEEPSEEK_V3 | {"moe_intermediate_size": 64, "v_head_dim": 16, "q_lora_rank": 32},
        [Rule("lm_head", "int4-g32"), Rule("embedding", "int4-g32"), Rule("mtp", "int4-g32")],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_measured_is_what_is_stored(case, tmp_path):
    """The pass computes with the codes: embedding, layers behind it, and head."""
    source, out, result = quantized(*CASES[case], tmp_path)
    artifact = Checkpoint.open(out)
    for rule in CASES[case][1]:
        role = "embedding" if source.spec.tie_word_embeddings and rule.match == "lm_head" else rule.match
        assert result.roles[role].quantized == result.roles[role].expected > 0
    for module in end_modules(source).keys() & assign(source, CASES[case][1]).keys():
        weight = artifact.quantized(module)
        assert weight is not None and scheme(result.modules[module].scheme).stores(weight)
    said, heard = log_probabilities(source), log_probabilities(artifact)
    assert result.kl == pytest.approx((said.exp() * (said - heard)).sum(-1).mean().item(), rel=1e-3)
    assert result.kl > 1e-5


def test_a_head_is_solved_by_the_text_that_arrives_there(tmp_path):
    """GPTAQ, of inputs behind the final norm, loses less of the logits than rounding to nearest."""
    rules = [Rule("attention", "int3-g32", "rtn")]
    kl = {
        method: quantized(LLAMA, [*rules, Rule("lm_head", "int2-g32", method)], tmp_path / method)[2].kl
        for method in ("rtn", "gptaq")
    }
    assert kl["gptaq"] < 0.9 * kl["rtn"]


def test_one_matrix_is_solved_as_a_head(tmp_path):
    """By what arrives at it in the original model; and a pass that was killed behind that ends in the same bytes."""
    lost = {}
    for method in ("rtn", "gptaq"):
        source, out, result = quantized(TIED, [Rule("lm_head", "int2-g32", method)], tmp_path / method)
        original = CausalLM.load(source)
        change = Checkpoint.open(out).tensor("model.embed_tokens.weight") - original.lm_head
        lost[method] = (original.hidden(TEXT) @ change.T).square().sum().item()
    assert result.modules["model.embed_tokens"].method == "gptq"
    assert lost["gptaq"] < 0.8 * lost["rtn"]

    killed = tmp_path / "killed"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tied_head.TiedHead, "_sum", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        quantized(TIED, [Rule("lm_head", "int2-g32")], killed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tied_head.TiedHead, "_layer", lambda self, index: pytest.fail("done again"))
        _, again, _ = quantized(TIED, [Rule("lm_head", "int2-g32")], killed, tmp_path / "gptaq" / "source")
    for file in out.glob("*.safetensors"):
        assert file.read_bytes() == (again / file.name).read_bytes()


def test_the_layers_make_up_for_the_embedding(tmp_path):
    """They are calibrated on what they will read."""
    rules = [Rule("embedding", "int2-g32"), Rule("attention", "int8-g32"), Rule("dense_mlp", "fp8-channel")]
    _, out, result = quantized(LLAMA, rules, tmp_path)
    plain = Checkpoint.open(quantized(LLAMA, rules[1:], tmp_path / "plain")[1])
    model, without = CausalLM.load(Checkpoint.open(out)), CausalLM.load(plain)
    without.embedding = model.embedding  # the same table before layers that were not told of it
    x = without.logits(without.hidden(TEXT[:4]))[:, :-1].log_softmax(-1)
    said = log_probabilities(Checkpoint.open(tmp_path / "source"))
    assert result.kl < (said.exp() * (said - x)).sum(-1).mean().item()


@pytest.mark.parametrize("name", ["int4-g32", "int4-g32-asym", "fp8-block", "nvfp4"])
def test_rows_in_blocks_are_the_rows_at_once(name, tmp_path, monkeypatch):
    config = LLAMA | {"vocab_size": 300}
    rules = [Rule("embedding", name), Rule("lm_head", name, "gptq")]
    at_once = quantized(config, rules, tmp_path / "once")[1] / "model-00001-of-00003.safetensors"
    monkeypatch.setattr(ends, "ROWS_TOGETHER", 1)
    in_blocks = quantized(config, rules, tmp_path / "blocks")[1] / "model-00001-of-00003.safetensors"
    a, b = load_file(at_once), load_file(in_blocks)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key].view(torch.uint8), b[key].view(torch.uint8)) for key in a)


def test_what_is_stored_in_the_scheme_is_kept(tmp_path):
    rules = [Rule("embedding", "int4-g32"), Rule("lm_head", "int4-g32")]
    _, once, _ = quantized(LLAMA, rules, tmp_path / "first")
    _, twice, result = quantized(LLAMA, rules, tmp_path / "second", once)
    assert {each.method for each in result.modules.values()} == {"kept as stored"}
    assert result.kl == pytest.approx(0, abs=1e-6)
    name = "model-00001-of-00003.safetensors"
    assert (once / name).read_bytes() == (twice / name).read_bytes()


@pytest.mark.parametrize(
    ("config", "rules", "message"),
    [
        (LLAMA, [Rule("lm_head", "int4-g128")], "lm_head.weight has 64 inputs, no multiple of 128"),
        (LLAMA, [Rule("embedding", "fp8-channel-dynamic")], "rounds inputs, which .* use fp8-channel for it"),
        (LLAMA, [Rule("lm_head", "int4-g32-actorder")], "use int4-g32 for it"),
        (
            TIED,
            [Rule("lm_head", "int4-g32"), Rule("embedding", "int8-g32")],
            "one matrix, model.embed_tokens.weight, which cannot become both int4-g32 and int8-g32",
        ),
        (
            LLAMA,
            [Rule("lm_head", "int4-g32"), Rule("lm_head", "int8-g32")],
            "matches nothing that an earlier rule left",
        ),
    ],
)
def test_rules_that_do_not_fit(config, rules, message, tmp_path):
    with pytest.raises(InputError, match=message):
        assign(Checkpoint.open(random_checkpoint(tmp_path, config)), rules)


def test_rules_that_fit(tmp_path):
    """A rule of either name is about a matrix that is both, two of one scheme are no quarrel, patterns leave it."""
    checkpoint = Checkpoint.open(random_checkpoint(tmp_path, TIED))
    for names in (["lm_head"], ["embedding"], ["embedding", "lm_head"]):
        given = assign(checkpoint, [Rule(name, "int4-g32") for name in names])
        assert {module: each.method for module, each in given.items()} == {"model.embed_tokens": "gptq"}
    untied = Checkpoint.open(random_checkpoint(tmp_path / "untied", LLAMA))
    given = assign(untied, [Rule(name, "int4-g32", "yaqa") for name in ("embedding", "lm_head")])
    assert {module: each.method for module, each in given.items()} == {"model.embed_tokens": "rtn", "lm_head": "gptaq"}
    assert not {"lm_head", "model.embed_tokens"} & assign(checkpoint, [Rule("re:.*", "fp8-channel")]).keys()
    for name in ("gptq", "native-fp8"):
        with pytest.raises(InputError, match="takes no quantized lm_head; use layout compressed-tensors"):
            check_layout([Rule("lm_head", "int4-g32" if name == "gptq" else "fp8-block")], layout(name))


@pytest.mark.parametrize("name", ["int4-g32", "fp8-channel"])
def test_transformers_loads_the_head(name, tmp_path):
    rules = [Rule("lm_head", name), Rule("attention", "int4-g32")]
    _, out, _ = quantized(LLAMA | {"intermediate_size": 128}, rules, tmp_path)
    with torch.no_grad():
        got = loaded_by_transformers(out)(TEXT[:4]).logits
    ours = CausalLM.load(Checkpoint.open(out))
    want = ours.logits(ours.hidden(TEXT[:4]))
    assert ((got - want).abs().max() / want.abs().max()).item() < 1e-5
    assert "lm_head" not in json.loads((out / "config.json").read_text())["quantization_config"]["ignore"]
    assert not layout("compressed-tensors").obstacle({"lm_head": [scheme(name).spec]}, False)


@pytest.mark.parametrize("config", [LLAMA, TIED])
def test_transformers_refuses_an_embedding_and_we_say_so(config, tmp_path):
    _, out, _ = quantized(config, [Rule("embedding", "int4-g32")], tmp_path)
    with pytest.raises(AttributeError):
        AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert "no quantized embeddings" in layout("compressed-tensors").obstacle(
        {"embedding": [scheme("int4-g32").spec]}, False
    )
