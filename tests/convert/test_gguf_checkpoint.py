"""GGUF files as checkpoints: read where they lie, they are what they were made from."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from support.byte_tokenizer import byte_tokenizer
from support.random_checkpoint import DEEPSEEK_V3, LLAMA, QWEN2, random_checkpoint
from tokenizers import Tokenizer

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.gguf.file import TYPES, open_gguf
from llmc.convert.gguf.folder import described, gguf_in
from llmc.convert.gguf.pre_tokenizers import EXPRESSIONS
from llmc.convert.gguf.tokenizer import tokenizer_files
from llmc.convert.targets import target
from llmc.convert.targets.gguf import FILE
from llmc.errors import InputError
from llmc.source import locate

DENSE = LLAMA | {"vocab_size": 260}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
DEEPSEEK = DEEPSEEK_V3 | {"vocab_size": 260, "moe_intermediate_size": 32}
MODELS: dict[str, dict[str, Any]] = {
    "llama": DENSE | {"tie_word_embeddings": True, "rope_theta": 500000.0, "rope_scaling": LLAMA3},
    "qwen2": QWEN2 | {"vocab_size": 260},
    "mixtral": DENSE
    | {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4}
    | {"num_experts_per_tok": 2, "sliding_window": None, "eos_token_id": 1},
    "qwen3_moe": DENSE
    | {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "head_dim": 32, "num_experts": 4}
    | {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True, "eos_token_id": 1},
    "deepseek_v3": DEEPSEEK | {"rope_scaling": YARN},
}


def written(folder: Path, config: dict[str, Any], **options: Any) -> tuple[Checkpoint, Path]:
    """A random checkpoint in float32, and the GGUF file of it."""
    path = random_checkpoint(folder / "source", config)
    byte_tokenizer(path)
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "add_bos_token": True}
    (path / "tokenizer_config.json").write_text(json.dumps(names))
    source, chosen = Checkpoint.open(path), target("gguf")
    chosen.build(source, chosen.Options.model_validate(options), folder, lambda *_: None)
    return source, folder / FILE


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    """Every number, and everything that config.json says of the computation."""
    source, file = written(tmp_path, MODELS[name], mtp=True)
    again = Checkpoint.open(file)
    assert again.spec.attentions == source.spec.attentions
    assert again.spec.mlps == source.spec.mlps
    assert again.spec == source.spec or again.spec.eos_token_ids != source.spec.eos_token_ids
    assert sorted(again.names()) == sorted(source.names())
    for each in source.names():
        assert again.shape(each) == source.shape(each)
        torch.testing.assert_close(again.tensor(each), source.tensor(each), rtol=0, atol=0, msg=each)
    there, back = (Tokenizer.from_file(str(each.path / "tokenizer.json")) for each in (source, again))
    text = "a word, about 12\n\n more…  <eos>x"
    assert back.encode(text).ids == there.encode(text).ids and back.decode(back.encode(text).ids) == there.decode(
        there.encode(text).ids
    )
    assert json.loads((again.path / "tokenizer_config.json").read_text())["add_bos_token"] is True


@pytest.mark.parametrize("kind", [each for each in TYPES if each not in ("F32", "F16", "BF16")])
def test_blocks_of_every_type(kind: str, tmp_path: Path) -> None:
    """As the package decodes them, whatever bits they hold."""
    config = DENSE | {"intermediate_size": 512, "hidden_size": 256, "num_attention_heads": 8, "num_hidden_layers": 1}
    _, file = written(tmp_path, config)
    generator, old = np.random.default_rng(0), gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "llama")
    for name, field in old.fields.items():
        if not name.startswith(("GGUF.", "general.architecture")):
            sub = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub)
    wanted = {}
    for each in old.tensors:
        if ".ffn_" in each.name and each.name.endswith("_down.weight"):
            shape = gguf.quant_shape_to_byte_shape((256, 512), Type[kind])
            blocks = generator.integers(0, 48, shape, np.uint8)  # of float16: no infinity, no NaN
            wanted[each.name] = gguf.quants.dequantize(blocks, Type[kind])
            writer.add_tensor(each.name, blocks, raw_dtype=Type[kind])
        else:
            writer.add_tensor(each.name, each.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    decoded = Checkpoint.open(tmp_path / "other.gguf").tensor("model.layers.0.mlp.down_proj.weight")
    np.testing.assert_array_equal(decoded.numpy(), wanted["blk.0.ffn_down.weight"])
    assert np.abs(wanted["blk.0.ffn_down.weight"]).max() > 0


def changed(file: Path, without: str = "", tensors: dict[str, Any] | None = None, **said: Any) -> Path:
    """The file with other metadata (their names with __ for a dot), without a tensor, or with more of them."""
    old, new = gguf.GGUFReader(file), file.with_name(f"changed{len([*file.parent.iterdir()])}.gguf")
    writer = gguf.GGUFWriter(new, old.fields["general.architecture"].contents())
    fields = {name: field for name, field in old.fields.items() if not name.startswith(("GGUF.", "general.arch"))}
    said = {name.replace("__", "."): value for name, value in said.items()}
    for name, field in fields.items():
        if name not in said:
            writer.add_key_value(
                name, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None
            )
    for name, value in said.items():
        if isinstance(value, list):
            writer.add_array(name, value)
        else:
            writer.add_key_value(name, value, gguf.GGUFValueType.get_type(value))
    for each in old.tensors:
        if each.name != without:
            writer.add_tensor(each.name, each.data)
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return new


@pytest.mark.parametrize("half", ["attn_k_b", "attn_v_b"])
def test_half_a_matrix_is_not_filled_up_with_whatever_lies_in_memory(half: str, tmp_path: Path) -> None:
    _, file = written(tmp_path, DEEPSEEK)
    with pytest.raises(InputError, match=r"holds a part of model\.layers\.0\.self_attn\.kv_b_proj\.weight only"):
        Checkpoint.open(changed(file, without=f"blk.0.{half}.weight"))


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"llama__attention__head_count": 0}, "do not fit together"),
        ({"llama__attention__head_count": "x"}, "do not fit together"),
        ({"llama__attention__head_count": [4, 2]}, "do not fit together"),
        ({"llama__attention__layer_norm_rms_epsilon": "a"}, "do not fit together"),
        ({"llama__rope__scaling__type": 3}, "type` 3 is not read"),
        ({"llama__rope__dimension_count": 4}, "rotates a part of each head"),
        ({"llama__rope__scale_linear": 4.0}, "scale_linear` is 4.0, which is not read"),
        ({"llama__rope__scaling__attn_factor": 2.0}, "attn_factor` is 2.0, which is not read"),
        ({"tokenizer__ggml__merges": [1, 2]}, "no texts"),
        ({"tokenizer__ggml__tokens": [*range(260)]}, "no texts"),
        ({"tokenizer__ggml__pre": ["a", "b"]}, "no texts"),
    ],
)
def test_what_is_not_read_is_not_passed_over(said: dict[str, Any], why: str, tmp_path: Path) -> None:
    _, file = written(tmp_path, DENSE)
    with pytest.raises(InputError, match=why):
        Checkpoint.open(changed(file, **said))


def test_a_factor_beside_yarns_own_comes_back(tmp_path: Path) -> None:
    scaling = YARN | {"attention_factor": 1.5}
    source, file = written(tmp_path, DENSE | {"rope_scaling": {k: v for k, v in scaling.items() if "mscale" not in k}})
    mine, again = source.spec.attentions[0].rope, Checkpoint.open(file).spec.attentions[0].rope
    assert mine is not None and again is not None and mine.attention_factor == 1.5
    assert again.attention_factor == pytest.approx(1.5, rel=1e-6)


def test_tensors_that_scale_the_rotation_are_not_passed_over(tmp_path: Path) -> None:
    _, file = written(tmp_path, DENSE)
    with pytest.raises(InputError, match=r"rope_factors_long\.weight has no place"):
        Checkpoint.open(changed(file, tensors={"rope_factors_long.weight": np.ones(4, np.float32)}))


def _header(keys: int = 0, tensors: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (_header(keys=1 << 60), "1,152,921,504,606,846,976 keys"),
        (_header(tensors=1 << 60), "1,152,921,504,606,846,976 tensors"),
        (_header(keys=1, rest=struct.pack("<Q", 1 << 62)), "longer text than any"),
        (_header(keys=1, rest=struct.pack("<Q1sIIQ", 1, b"a", 9, 7, 1 << 40)), "arrays of more than"),
        (_header(keys=1, rest=struct.pack("<Q1s", 1, b"a") + struct.pack("<IQ", 9, 1) * 5000), "unknown type|arrays"),
        (_header(keys=1, rest=struct.pack("<Q1sIIQIQ", 1, b"a", 9, 9, 1, 9, 1)), "an array of arrays"),
        (_header(keys=1, rest=struct.pack("<Q1sI", 1, b"a", 99)), "unknown type 99"),
        (_header(tensors=1, rest=struct.pack("<Q1sI", 1, b"a", 1 << 30)), "1,073,741,824 dimensions"),
        (_header(tensors=1, rest=struct.pack("<Q1sIQQIQ", 1, b"a", 2, 1 << 32, 1 << 32, 0, 0)), "a tensor of 18,446,7"),
        (_header(tensors=1, rest=struct.pack("<Q1sI", 1, b"a", 2)), "ends inside of its headers"),
        (_header(version=3 << 24), "big-endian"),
        (b"GGUF", "ends inside of its headers"),
    ],
)
def test_headers_are_held_against_the_file_before_anything_is_made_of_them(
    content: bytes, why: str, tmp_path: Path
) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(InputError, match=f"damaged or cut short .*({why})"):
        open_gguf(tmp_path / "x.gguf")


def test_in_a_hubs_cache(tmp_path: Path) -> None:
    """Whose files are links to blobs without a name; other links out of the folder would publish what they lead to."""
    _, file = written(tmp_path, DENSE)
    repository = tmp_path / "models--me--model"
    snapshot = repository / "snapshots" / ("c" * 40)
    for folder in (snapshot, repository / "blobs"):
        folder.mkdir(parents=True)
    (tmp_path / "source" / "LICENSE").write_text("Free as the wind")
    for number, each in enumerate((file, *(tmp_path / "source" / name for name in ("tokenizer.json", "LICENSE")))):
        blob = repository / "blobs" / f"{number:064x}"
        blob.write_bytes(each.read_bytes())
        (snapshot / each.name).symlink_to(blob)
    found = locate(str(snapshot / file.name), tmp_path)
    assert found.id == file.name and (found.path / "LICENSE").read_text() == "Free as the wind"
    assert (found.path / "tokenizer.json").read_bytes() == (snapshot / "tokenizer.json").read_bytes()
    assert len(Checkpoint.open(found.path).names()) == len(Checkpoint.open(file).names())
    (snapshot / "tokenizer.json").unlink()
    (snapshot / "tokenizer.json").symlink_to(tmp_path / "source" / "config.json")
    (snapshot / "again.gguf").symlink_to(file)
    with pytest.raises(InputError, match=r"tokenizer\.json: leads out of the checkpoint's folder"):
        described(snapshot / "again.gguf")


def test_float16_stays_float16(tmp_path: Path) -> None:
    source, file = written(tmp_path, DENSE, floats="f16")
    again = Checkpoint.open(file)
    name = "model.layers.1.self_attn.k_proj.weight"
    assert again.stored(name).dtype == "F16" and again.stored("model.norm.weight").dtype == "F32"
    torch.testing.assert_close(again.tensor(name), source.tensor(name).half().float(), rtol=0, atol=0)


def test_a_folder_with_one_file_and_a_recipes_model(tmp_path: Path) -> None:
    _, file = written(tmp_path, DENSE)
    assert gguf_in(file.parent) == file and gguf_in(tmp_path / "source") is None
    found = locate(str(file), Path())
    assert found.id == "model.gguf" and (found.path / "model.gguf").resolve() == file.resolve()
    assert described(file) == found.path == Checkpoint.open(file.parent).path
    (file.parent / "another.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match="holds 2 GGUF files; give one of them"):
        Checkpoint.open(file.parent)


def test_a_tokenizer_beside_the_file_is_taken(tmp_path: Path) -> None:
    _, file = written(tmp_path, DENSE)
    (file.parent / "tokenizer.json").write_bytes((tmp_path / "source" / "tokenizer.json").read_bytes())
    found = described(file)
    assert (found / "tokenizer.json").read_bytes() == (tmp_path / "source" / "tokenizer.json").read_bytes()


def test_what_is_damaged_or_unknown_is_refused_in_a_line(tmp_path: Path) -> None:
    _, file = written(tmp_path, DENSE)
    data = file.read_bytes()
    (tmp_path / "short.gguf").write_bytes(data[: len(data) // 2])
    (tmp_path / "other.gguf").write_bytes(b"PK" + data[2:])
    (tmp_path / "gpt2.gguf").write_bytes(data.replace(b"llama", b"gpt22"))
    for name, said in {
        "short": "damaged or cut short|truncated",
        "other": "does not begin as a GGUF file does",
        "gpt2": "`general.architecture` is 'gpt22'; of GGUF, llama, ",
    }.items():
        with pytest.raises(InputError, match=said):
            Checkpoint.open(tmp_path / f"{name}.gguf")
    assert open_gguf(file).metadata["general.architecture"] == "llama"


def test_tokens_are_divided_and_merged_as_the_file_says() -> None:
    """SmolLM's split: blanks in front of a digit stay together. Of a SentencePiece tokenizer, scores are the order."""
    tokens = ["<|endoftext|>", "Ġ", "ĠĠ", "1", "2", "12", "a"]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 1, 1, 1, 1, 1, 1],
        "tokenizer.ggml.merges": ["Ġ Ġ", "1 2"],
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.chat_template": "{{ messages }}",
    }
    files = tokenizer_files(Path("x.gguf"), metadata)
    made = Tokenizer.from_str(files["tokenizer.json"].decode())
    assert [tokens[each] for each in made.encode("  12a<|endoftext|>").ids] == ["ĠĠ", "1", "2", "a", tokens[0]]
    said = json.loads(files["tokenizer_config.json"])
    assert said["eos_token"] == "<|endoftext|>" and said["add_bos_token"] is False
    assert files["chat_template.jinja"] == b"{{ messages }}"
    with pytest.raises(InputError, match=r"`tokenizer\.ggml\.pre` is 'other'"):
        tokenizer_files(Path("x.gguf"), metadata | {"tokenizer.ggml.pre": "other"})
    with pytest.raises(InputError, match="several of its tokens are the same"):
        tokenizer_files(Path("x.gguf"), metadata | {"tokenizer.ggml.tokens": ["a"] * 7})

    pieces = ["<unk>", "<s>", "▁", "a", "b", "c", "ab", "bc", "<0xC3>", "<0xA9>"]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": [2, 3, 1, 1, 1, 1, 1, 1, 6, 6],
        "tokenizer.ggml.scores": [0.0, 0.0, -4.0, -3.0, -3.0, -3.0, -2.0, -1.0, 0.0, 0.0],
    }
    made = Tokenizer.from_str(tokenizer_files(Path("x.gguf"), metadata)["tokenizer.json"].decode())
    assert made.encode("abcé").tokens == ["▁", "a", "bc", "<0xC3>", "<0xA9>"]
    assert made.decode(made.encode("abcé").ids) == "abcé"


def test_every_known_expression_divides() -> None:
    from tokenizers import Regex, pre_tokenizers

    for name, expressions in EXPRESSIONS.items():
        if not any(each.endswith("…") for each in expressions):
            splits = [pre_tokenizers.Split(Regex(each), "isolated") for each in expressions]
            found = pre_tokenizers.Sequence(splits).pre_tokenize_str("I'll say 1234 things, 日本!\n\n")
            assert len(found) > 4 and "".join(part for part, _ in found).endswith("\n"), name
