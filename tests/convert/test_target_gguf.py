"""Target `gguf`: codes bit for bit, held against the decoder of the package gguf; tensors, tokenizer and metadata."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from support.byte_tokenizer import byte_tokenizer
from support.random_checkpoint import DEEPSEEK_V3, LLAMA, QWEN2, random_checkpoint, random_weights, write_checkpoint

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.families import family_of
from llmc.convert.gguf.architectures import obstacle
from llmc.convert.gguf.arrangement import in_pairs
from llmc.convert.gguf.pre_tokenizers import EXPRESSIONS, name_of
from llmc.convert.model import CausalLM
from llmc.convert.quantized_weight import QuantizedWeight, QuantSpec
from llmc.convert.targets import PlannedWeights, TargetResult, target
from llmc.convert.targets.gguf import FILE
from llmc.convert.targets.gguf.blocks import common_type, encode, exact_type
from llmc.errors import InputError
from llmc.quant.assign import Rule
from llmc.quant.layerwise import quantize

DEEPSEEK = DEEPSEEK_V3 | {"vocab_size": 260, "moe_intermediate_size": 64, "v_head_dim": 32, "q_lora_rank": 32}
DEEPSEEK |= {"qk_nope_head_dim": 32, "intermediate_size": 96}
DENSE = LLAMA | {"vocab_size": 260, "intermediate_size": 96}
QWEN3_MOE: dict[str, Any] = DENSE | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "head_dim": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
    "eos_token_id": 1,
}
QWEN3 = DENSE | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 8, "eos_token_id": 1}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
LLAMA3 |= {"original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def weight(bits: int, group: int, zeros: bool = False, smallest: float = 1e-3) -> QuantizedWeight:
    """Random codes of all values, with scales of either sign."""
    generator = torch.Generator().manual_seed(bits * group)
    half, shape = 1 << bits - 1, (6, 256)
    codes = torch.randint(-half, half, shape, generator=generator, dtype=torch.int8)
    scales = torch.randn(6, 256 // group, generator=generator).bfloat16() * smallest
    points = torch.randint(-half, half, scales.shape, generator=generator, dtype=torch.int8) if zeros else None
    return QuantizedWeight(codes, scales, (1, group), f"int{bits}", points)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bits", "group", "kind"),
    [
        *[(bits, group, Type.Q4_0) for bits, group in ((4, 32), (4, 128), (4, 256), (3, 64), (2, 32))],
        *[(5, group, Type.Q5_0) for group in (32, 64)],
        *[(bits, group, Type.Q8_0) for bits, group in ((6, 32), (8, 32), (8, 256))],
    ],
)
def test_symmetric_codes_are_kept_bit_for_bit(bits: int, group: int, kind: Type) -> None:
    given = weight(bits, group)
    assert exact_type(given.kind, 256) is kind
    made = encode(given, kind)
    assert made.inexact == 0 and made.scales == 6 * 256 // group
    np.testing.assert_array_equal(gguf.quants.dequantize(made.blocks, kind), given.dequantize().numpy())


@pytest.mark.parametrize(("bits", "kind"), [(4, Type.Q4_1), (2, Type.Q4_1), (5, Type.Q5_1)])
def test_zero_points_become_smallest_values_that_float16_may_round(bits: int, kind: Type) -> None:
    given = weight(bits, 32, zeros=True)
    assert exact_type(given.kind, 256) is kind
    made = encode(given, kind)
    decoded, wanted = gguf.quants.dequantize(made.blocks, kind), given.dequantize().numpy()
    same = (decoded == wanted).reshape(6, 8, 32).all(-1)
    assert made.inexact < made.scales and same.sum() >= made.scales - made.inexact
    largest = given.scales.float().abs().max().item() * (2 << bits)
    assert np.abs(decoded - wanted).max() < largest * 2**-11


def test_scales_below_float16s_are_counted_and_the_nearest_is_taken() -> None:
    given = weight(4, 32, smallest=1e-7)
    made = encode(given, Type.Q4_0)
    assert 0 < made.inexact <= made.scales
    steps = np.abs(gguf.quants.dequantize(made.blocks, Type.Q4_0) - given.dequantize().numpy())
    assert 0 < steps.max() <= 8 * 2**-25  # half of float16's smallest step, times the largest code


def test_scales_above_float16s_are_refused() -> None:
    given = weight(4, 32)
    given.scales[2] = 1e5
    with pytest.raises(InputError, match=r"model\.x: its scales are beyond 65504"):
        encode(given, Type.Q4_0, "model.x")


def test_mxfp4_is_kept_bit_for_bit() -> None:
    values = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    codes = torch.cat([values, -values]).repeat(4, 4).to(torch.float8_e4m3fn)
    scales = torch.tensor([[2.0**-3, 2.0**-9], [1.0, 2.0**5]]).repeat(2, 1)
    given = QuantizedWeight(codes, scales, (1, 32), "float4_e2m1fn")
    assert exact_type(given.kind, 64) is Type.MXFP4
    made = encode(given, Type.MXFP4)
    assert made.inexact == 0
    np.testing.assert_array_equal(gguf.quants.dequantize(made.blocks, Type.MXFP4), given.dequantize().numpy())


def test_what_has_no_type_of_its_own() -> None:
    plain = QuantSpec("int4", (1, 32), False, False, None)
    assert exact_type(plain, 80) is None  # no multiple of 32
    assert exact_type(plain._replace(g_idx=True), 64) is None
    assert exact_type(QuantSpec("int8", (1, 32), True, False, None), 64) is None
    assert exact_type(QuantSpec("float8_e4m3fn", (1, 0), False, False, None), 64) is None
    assert exact_type(QuantSpec("float4_e2m1fn", (1, 16), False, False, None), 64) is None
    assert common_type({Type.Q4_0, Type.Q8_0, Type.Q5_0}) is Type.Q8_0
    assert common_type({Type.Q4_1, Type.Q5_1}) is Type.Q5_1
    assert common_type({Type.Q4_0, None}) is common_type({Type.Q4_0, Type.Q4_1}) is None


def made(tmp_path: Path, config: dict[str, Any], rules: list[Rule], **options: Any) -> tuple[Checkpoint, TargetResult]:
    """A random model, quantized, and its GGUF file."""
    source = Checkpoint.open(random_checkpoint(tmp_path / "source", config))
    text = torch.randint(3, 96, (2, 16), generator=torch.Generator().manual_seed(0))
    quantize(source, rules, None, text, text, tmp_path / "out", tmp_path / "work", lambda *_: None)
    byte_tokenizer(tmp_path / "out")
    return write(Checkpoint.open(tmp_path / "out"), **options)


def write(checkpoint: Checkpoint, **options: Any) -> tuple[Checkpoint, TargetResult]:
    chosen = target("gguf")
    parsed = chosen.Options.model_validate(options)
    return checkpoint, chosen.build(checkpoint, parsed, checkpoint.path, lambda *_: None)


def read(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]], dict[str, str]]:
    """Metadata, decoded tensors and their types, by the package's own reader."""
    file = gguf.GGUFReader(checkpoint.path / FILE)
    fields = {name: field.contents() for name, field in file.fields.items()}
    values = {each.name: gguf.quants.dequantize(each.data, each.tensor_type) for each in file.tensors}
    return fields, values, {each.name: each.tensor_type.name for each in file.tensors}


def logits_of_transformers(checkpoint: Checkpoint, text: torch.Tensor) -> torch.Tensor:
    """What transformers says by its own reading of the file."""
    from transformers import AutoConfig, AutoModelForCausalLM

    plain = {name: value for name, value in checkpoint.config.items() if name != "quantization_config"}
    config = AutoConfig.for_model(**plain)  # of experts it reads neither their width nor how they are weighted
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint.path / "gguf", gguf_file="model.gguf", config=config, dtype=torch.float32
    )
    with torch.no_grad():
        return model(text).logits  # type: ignore[no-any-return]


READ_BY_TRANSFORMERS = {
    "llama": (DENSE, [Rule("dense_mlp", "int4-g32", "rtn"), Rule("attention", "int8-g32", "rtn")]),
    "llama, tied, GPTAQ": (DENSE | {"tie_word_embeddings": True}, [Rule("dense_mlp", "int4-g32")]),
    "qwen2": (QWEN2 | {"vocab_size": 260, "intermediate_size": 96}, [Rule("attention", "int5-g64", "rtn")]),
    "qwen3_moe": (QWEN3_MOE, [Rule("experts", "int4-g32", "rtn")]),
}


@pytest.mark.parametrize("case", READ_BY_TRANSFORMERS)
def test_transformers_reads_the_file_and_says_the_same(case: str, tmp_path: Path) -> None:
    config, rules = READ_BY_TRANSFORMERS[case]
    checkpoint, result = made(tmp_path, config, rules)
    assert result.details["exact"]["inexact_scales"] == 0 and not result.details["rounded"], result.notes
    text = torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(1))
    ours = CausalLM.load(checkpoint)
    with torch.no_grad():
        want = ours.logits(ours.hidden(text))
    got = logits_of_transformers(checkpoint, text)
    assert ((got - want).abs().max() / want.abs().max()).item() < 1e-4


def test_a_latent_models_tensors_are_what_they_were(tmp_path: Path) -> None:
    """Heads of kv_b_proj, stacked experts and what routes to them; layers for multi-token prediction if asked for."""
    rules = [
        Rule("experts", "int4-g32", "rtn"),
        Rule("shared_experts", "int8-g32", "rtn"),
        Rule("mtp", "int4-g32", "rtn"),
    ]
    checkpoint, result = made(tmp_path, DEEPSEEK, rules)
    assert any("left out" in note for note in result.notes)
    fields, values, types = read(checkpoint)
    spec, attention = checkpoint.spec, checkpoint.spec.attentions[0]
    assert fields["general.architecture"] == "deepseek2"
    assert fields["deepseek2.block_count"] == spec.num_layers
    assert not any(name.startswith(f"blk.{spec.num_layers}.") for name in values)
    block, prefix = f"blk.{spec.num_layers - 1}", f"model.layers.{spec.num_layers - 1}"
    for theirs, ours in (("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj")):
        stack = [checkpoint.tensor(f"{prefix}.mlp.experts.{e}.{ours}.weight") for e in range(8)]
        assert types[f"{block}.ffn_{theirs}_exps.weight"] == "Q4_0"
        np.testing.assert_array_equal(values[f"{block}.ffn_{theirs}_exps.weight"], torch.stack(stack).numpy())
        shared = checkpoint.tensor(f"{prefix}.mlp.shared_experts.{ours}.weight").numpy()
        assert types[f"{block}.ffn_{theirs}_shexp.weight"] == "Q8_0"
        np.testing.assert_array_equal(values[f"{block}.ffn_{theirs}_shexp.weight"], shared)
    bias = checkpoint.tensor(f"{prefix}.mlp.gate.e_score_correction_bias").numpy()
    np.testing.assert_array_equal(values[f"{block}.exp_probs_b.bias"], bias)
    whole = checkpoint.tensor(f"{prefix}.self_attn.kv_b_proj.weight").numpy().reshape(attention.num_heads, -1, 32)
    keys, up = values[f"{block}.attn_k_b.weight"], values[f"{block}.attn_v_b.weight"]
    np.testing.assert_array_equal(np.concatenate([keys.swapaxes(1, 2), up], 1), whole)

    _, result = write(checkpoint, mtp=True)
    fields, values, types = read(checkpoint)
    assert any("written as nextn" in note for note in result.notes)
    assert fields["deepseek2.nextn_predict_layers"] == 1 and fields["deepseek2.block_count"] == spec.num_layers + 1
    joined = checkpoint.tensor(f"model.layers.{spec.num_layers}.eh_proj.weight").numpy()
    np.testing.assert_array_equal(values[f"blk.{spec.num_layers}.nextn.eh_proj.weight"], joined)


def test_what_has_no_codes_is_rounded_and_the_loss_is_said(tmp_path: Path) -> None:
    checkpoint, result = made(tmp_path, DENSE, [Rule("attention", "fp8-channel", "rtn"), Rule("dense_mlp", "int4-g32")])
    _, values, types = read(checkpoint)
    name = "model.layers.0.self_attn.v_proj.weight"
    wanted = checkpoint.tensor(name).numpy()
    assert types["blk.0.attn_v.weight"] == "Q8_0" and types["blk.0.ffn_up.weight"] == "Q4_0"
    assert 0 < np.abs(values["blk.0.attn_v.weight"] - wanted).max() < np.abs(wanted).max() / 120
    rounded = result.details["rounded"]["Q8_0"]
    assert rounded["weights"] == 2 * (2 * 64 * 64 + 2 * 16 * 64) and 1e-3 < rounded["relative_error"] < 1e-2
    assert any("rounded to Q8_0" in note for note in result.notes)
    _, result = write(checkpoint, other="f32", floats="f16")
    _, values, types = read(checkpoint)
    assert types["blk.0.attn_v.weight"] == "F32" and types["output.weight"] == "F16"
    np.testing.assert_array_equal(values["blk.0.attn_v.weight"], wanted)
    assert "Q8_0" not in result.details["rounded"]


def test_the_file_is_the_same_again_and_as_large_as_planned(tmp_path: Path) -> None:
    checkpoint, result = made(tmp_path, DENSE, [Rule("dense_mlp", "int4-g32", "rtn")])
    before = (checkpoint.path / FILE).read_bytes()
    write(checkpoint)
    assert (checkpoint.path / FILE).read_bytes() == before
    spec = QuantSpec("int4", (1, 32), False, False, None)
    parameters = {"dense_mlp": {spec: 1000}}
    chosen = target("gguf")
    assert chosen.estimate_bytes(PlannedWeights(checkpoint.spec, 1000, parameters), chosen.Options()) == 1062
    assert result.file_bytes == len(before) and result.weight_bytes < len(before)


def test_metadata_of_scaled_rotations(tmp_path: Path) -> None:
    checkpoint, _ = made(tmp_path / "llama3", DENSE | {"rope_scaling": LLAMA3}, [])
    _, values, _ = read(checkpoint)
    rope = checkpoint.spec.attentions[0].rope
    plain = rope.theta ** (-np.arange(0, rope.dim, 2) / rope.dim)
    np.testing.assert_allclose(plain / values["rope_freqs.weight"], rope.inverse_frequencies, rtol=1e-6)
    checkpoint, _ = made(tmp_path / "yarn", QWEN3 | {"rope_scaling": YARN}, [])
    fields, values, _ = read(checkpoint)
    assert "rope_freqs.weight" not in values
    assert fields["qwen3.rope.scaling.type"] == "yarn" and fields["qwen3.rope.scaling.factor"] == 4.0
    assert fields["qwen3.rope.scaling.original_context_length"] == 64
    assert "qwen3.rope.scaling.attn_factor" not in fields  # YaRN's own


def test_tokenizer_and_chat_template(tmp_path: Path) -> None:
    weights = random_weights(DENSE)
    path = write_checkpoint(tmp_path / "model", DENSE, weights)
    byte_tokenizer(path)
    described = json.loads((path / "tokenizer.json").read_text())
    described["model"]["vocab"]["ab"], described["model"]["merges"] = 258, [["a", "b"]]
    described["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": EXPRESSIONS["qwen2"][0]}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
    ]}  # fmt: skip
    (path / "tokenizer.json").write_text(json.dumps(described))
    named = {each["id"]: each["content"] for each in described["added_tokens"]}
    settings = {"bos_token": named[0], "eos_token": named[1], "add_bos_token": True, "chat_template": "{{ messages }}"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    checkpoint, result = write(Checkpoint.open(path))
    fields, _, _ = read(checkpoint)
    tokens = fields["tokenizer.ggml.tokens"]
    assert len(tokens) == 260 and tokens[258] == "ab" and tokens[259] == "[PAD259]"
    assert fields["tokenizer.ggml.token_type"][0] == gguf.TokenType.CONTROL
    assert fields["tokenizer.ggml.token_type"][259] == gguf.TokenType.UNUSED
    assert fields["tokenizer.ggml.merges"] == ["a b"] and fields["tokenizer.ggml.pre"] == "qwen2"
    assert fields["tokenizer.ggml.bos_token_id"] == 0 and fields["tokenizer.ggml.eos_token_id"] == 1
    assert fields["tokenizer.ggml.eot_token_id"] == 2  # config.json's second end
    assert fields["tokenizer.ggml.add_bos_token"] is True
    assert fields["tokenizer.chat_template"] == "{{ messages }}"
    assert not any("pre-tokenizer" in note for note in result.notes)

    described["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+|\s+"
    (path / "tokenizer.json").write_text(json.dumps(described))
    checkpoint, result = write(Checkpoint.open(path))
    assert "tokenizer.ggml.pre" not in read(checkpoint)[0]
    assert any("no pre-tokenizer" in note for note in result.notes)
    checkpoint, result = write(Checkpoint.open(path), pre_tokenizer="gpt-2")
    assert read(checkpoint)[0]["tokenizer.ggml.pre"] == "gpt-2"


def test_a_sentencepiece_like_tokenizer_has_scores_by_its_merges(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "model", DENSE, random_weights(DENSE))
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "<0x0A>": 3, "▁": 4, "a": 5, "b": 6, "ab": 7, "▁ab": 8}
    described = {
        "model": {"type": "BPE", "vocab": vocabulary, "merges": ["a b", "▁ ab"], "byte_fallback": True,
                  "unk_token": "<unk>"},
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]},
        "added_tokens": [{"id": 1, "content": "<s>", "special": True}, {"id": 2, "content": "</s>", "special": True}],
    }  # fmt: skip
    (path / "tokenizer.json").write_text(json.dumps(described))
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    checkpoint, _ = write(Checkpoint.open(path))
    fields, _, _ = read(checkpoint)
    scores, kinds = fields["tokenizer.ggml.scores"], fields["tokenizer.ggml.token_type"]
    assert fields["tokenizer.ggml.model"] == "llama" and fields["tokenizer.ggml.add_space_prefix"] is True
    assert scores[7] == 0 and scores[8] == -1 and scores[5] == -2
    assert kinds[0] == gguf.TokenType.UNKNOWN and kinds[3] == gguf.TokenType.BYTE
    assert fields["tokenizer.ggml.add_bos_token"] is True and "tokenizer.ggml.merges" not in fields
    described["model"] = {"type": "Unigram", "vocab": []}
    (path / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match="a tokenizer of type 'Unigram' cannot be written"):
        write(Checkpoint.open(path))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (DENSE | {"model_type": "seed_oss", "architectures": ["SeedOssForCausalLM"]}, "none of the families"),
        (DENSE | MISTRAL | {"sliding_window": 16}, "see the last tokens only"),
        (QWEN3_MOE | {"norm_topk_prob": False}, "sum to one"),
        (QWEN3_MOE | {"mlp_only_layers": [0]}, "experts in all layers"),
        (DEEPSEEK | {"rope_interleave": False}, "another order of channels"),
        (DEEPSEEK | {"rope_scaling": YARN}, "with `mscale_all_dim`"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(config: dict[str, Any], said: str) -> None:
    assert said in (obstacle(family_of(config).spec(config), config) or "")


def test_what_the_plan_can_know_it_refuses() -> None:
    chosen, config = target("gguf"), QWEN3_MOE | {"norm_topk_prob": False}
    with pytest.raises(InputError, match=r"target gguf: llama\.cpp lets the weights"):
        chosen.check(family_of(config).spec(config), chosen.Options(), {})


def test_rows_of_a_head() -> None:
    """Two heads of four channels: pairs (0, 2), (1, 3) of Llama's checkpoints lie side by side for llama.cpp."""
    assert in_pairs(2, 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_nothing_is_said_behind_the_users_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The package logs warnings of its own, about what is no trouble."""
    with caplog.at_level(logging.WARNING):
        made(tmp_path, DEEPSEEK, [])
    assert not [each for each in caplog.records if each.name.startswith("gguf")]


def test_names_of_pre_tokenizers() -> None:
    digits = {"type": "Digits", "individual_digits": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    assert name_of(byte_level) == "gpt-2"
    assert name_of({"type": "Sequence", "pretokenizers": [digits, byte_level]}) == "smollm"
    assert name_of({"type": "Whitespace"}) is None and name_of({"kind": 1}) is None
    long = {"type": "Split", "pattern": {"Regex": EXPRESSIONS["deepseek-llm"][1].replace("…", "ø-ƺ]+")}}
    parts = [{"type": "Split", "pattern": {"Regex": each}} for each in EXPRESSIONS["deepseek-llm"][:-1]]
    parts[0]["pattern"]["Regex"], parts[1] = "[\r\n]", long
    assert name_of({"type": "Sequence", "pretokenizers": [*parts, digits]}) == "deepseek-llm"
