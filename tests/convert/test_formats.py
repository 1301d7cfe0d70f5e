"""Quantized weights on disk: DeepSeek's FP8 against the formula, compressed-tensors against its package."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from support.random_checkpoint import DEEPSEEK_V3, LLAMA, random_weights, write_checkpoint
from support.source_files import ROOMS, sources
from transformers import AutoModelForCausalLM, FineGrainedFP8Config

from llmc.convert.bits import pack, unpack
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.formats import formats
from llmc.convert.formats.gptq import GPTQ
from llmc.convert.model import CausalLM
from llmc.errors import InputError
from llmc.quant.gptq import solve
from llmc.quant.schemes.integer import Integer

NATIVE_FP8 = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [16, 16],
}
SCHEMES: dict[str, tuple[str, dict[str, Any]]] = {
    "int4 group": ("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16}),
    "int4 asymmetric": (
        "pack-quantized",
        {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16, "symmetric": False},
    ),
    "int4 channel": ("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "channel"}),
    "int8 group": ("pack-quantized", {"num_bits": 8, "type": "int", "strategy": "group", "group_size": 16}),
    "int3 group": ("pack-quantized", {"num_bits": 3, "type": "int", "strategy": "group", "group_size": 32}),
    "int6 group": ("pack-quantized", {"num_bits": 6, "type": "int", "strategy": "group", "group_size": 16}),
    "int2 channel": ("pack-quantized", {"num_bits": 2, "type": "int", "strategy": "channel"}),
    "fp8 tensor": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
    "fp8 naive": ("naive-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    "fp8 channel": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    "fp8 block": (
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [24, 48]},
    ),
}


def scale_of(weight: torch.Tensor, args: dict[str, Any]) -> torch.Tensor:
    """Largest magnitude of each block over the largest code, in float32."""
    rows, columns = weight.shape
    block = {
        "group": (1, args.get("group_size")),
        "channel": (1, columns),
        "tensor": (rows, columns),
        "block": args.get("block_structure"),
    }[args["strategy"]]
    scale = torch.empty(-(-rows // block[0]), -(-columns // block[1]))
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            part = weight[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
            scale[i, j] = part.abs().max() / (7 if args["type"] == "int" else 448)
    return scale.flatten() if args["strategy"] == "tensor" else scale


def compressed(weight: torch.Tensor, name: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What the compressed-tensors package stores for a weight, and what it reads back."""
    layout, args = SCHEMES[name]
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args), format=layout)
    compressor = BaseCompressor.get_value_from_registry(layout)
    parts = {"weight": weight, "weight_scale": scale_of(weight, args)}
    if not args.get("symmetric", True):
        generator = torch.Generator().manual_seed(0)
        parts["weight_zero_point"] = torch.randint(-8, 8, parts["weight_scale"].shape, generator=generator).to(
            torch.int8
        )
    stored = compressor.compress(parts, scheme)
    return stored, compressor.decompress(stored, scheme)["weight"]


def config_of(name: str, **modules: str) -> dict[str, Any]:
    """All linear layers as `name` says, but for some modules."""
    groups = {
        f"group_{i}": {"targets": [target], "format": SCHEMES[of][0], "weights": SCHEMES[of][1]}
        for i, (target, of) in enumerate({**modules, "Linear": name}.items())
    }
    return {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": groups}


def store(path: Path, modules: dict[str, str]) -> dict[str, torch.Tensor]:
    """A Llama checkpoint with these modules compressed; returns what each should read back as."""
    weights, expected = random_weights(LLAMA), {}
    for module, name in modules.items():
        stored, expected[module] = compressed(weights.pop(f"{module}.weight"), name)
        weights |= {f"{module}.{part}": tensor for part, tensor in stored.items()}
    config = LLAMA | {"quantization_config": config_of(next(iter(modules.values())), **modules)}
    write_checkpoint(path, config, weights)
    return expected


def test_compressed_tensors_reads_back_as_in_its_own_package(tmp_path: Path) -> None:
    modules = {
        "model.layers.0.mlp.gate_proj": "int4 group",  # 80 x 64
        "model.layers.0.mlp.up_proj": "int4 channel",
        "model.layers.0.mlp.down_proj": "fp8 block",  # 64 x 80: ragged both ways
        "model.layers.1.self_attn.q_proj": "fp8 channel",
    }
    expected = store(tmp_path, modules)
    checkpoint = Checkpoint.open(tmp_path)
    for module, weight in expected.items():
        name = f"{module}.weight"
        assert name in checkpoint
        assert checkpoint.shape(name) == weight.shape
        assert torch.equal(checkpoint.tensor(name), weight.float())
        quantized = checkpoint.quantized(module)
        assert quantized is not None
        assert torch.equal(quantized.dequantize(), weight.float())
    assert sorted(checkpoint.names()) == sorted(random_weights(LLAMA))
    assert checkpoint.quantized("model.layers.1.self_attn.k_proj") is None
    assert len(CausalLM.load(checkpoint).layers) == 2


@pytest.mark.parametrize("name", SCHEMES)
def test_each_format_alone(tmp_path: Path, name: str) -> None:
    module = "model.layers.0.mlp.up_proj" if name == "int3 group" else "model.layers.0.mlp.down_proj"
    expected = store(tmp_path, {module: name})[module]
    checkpoint = Checkpoint.open(tmp_path)
    weight, stored = checkpoint.quantized(module), checkpoint.parts(f"{module}.weight")
    assert weight is not None
    assert torch.equal(weight.dequantize(), expected.float())
    with (tmp_path / "model.safetensors").open("r+b") as file:  # no weight can be read any more
        file.truncate(min(each.offset for each in stored.values()))
    assert checkpoint.kind(f"{module}.weight") == weight.kind
    with pytest.raises(InputError):
        checkpoint.quantized(module)
    assert (
        weight.block
        == {
            "int4 group": (1, 16),
            "int4 asymmetric": (1, 16),
            "int4 channel": (1, 80),
            "int8 group": (1, 16),
            "int3 group": (1, 32),
            "int6 group": (1, 16),
            "int2 channel": (1, 80),
            "fp8 tensor": (64, 80),
            "fp8 channel": (1, 80),
            "fp8 naive": (1, 80),
            "fp8 block": (24, 48),
        }[name]
    )


def test_names_of_packed_tensors_have_one_home() -> None:
    """Whoever else wants them asks the format."""
    names = re.compile(r"\bweight_(packed|shape|zero_point|g_idx)\b")
    found = [path.name for path in sources(*ROOMS, "ci") if names.search(path.read_text(encoding="utf-8"))]
    assert sorted(found) == ["float4.py", "pack_quantized.py"]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("columns", [32, 64, 80, 7])
def test_packing_is_what_the_package_packs(bits: int, columns: int) -> None:
    limit = 1 << bits - 1
    codes = torch.randint(-limit, limit, (3, columns), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    assert torch.equal(pack(codes, bits), pack_to_int32(codes, bits))
    assert torch.equal(unpack(pack(codes, bits), bits, columns), codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_packing_stays_on_its_device(bits: int) -> None:
    """Plans pack tensors without memory."""
    packed = pack(torch.empty(5, 64, dtype=torch.int8, device="meta"), bits)
    assert (packed.device.type, packed.shape, packed.dtype) == ("meta", (5, 2 * bits), torch.int32)
    codes = unpack(packed, bits, 64)
    assert (codes.device.type, codes.shape, codes.dtype) == ("meta", (5, 64), torch.int8)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("symmetric", "dynamic_groups"), [(True, False), (False, False), (False, True)])
def test_gptq_layout_reads_back_as_it_was(
    tmp_path: Path, bits: int, symmetric: bool, dynamic_groups: bool, version: int
) -> None:
    """Against the formula, W = (code - zero) * scale of unsigned codes, spelled out from the words."""
    module, chosen = "model.layers.0.mlp.gate_proj", Integer(bits, 32, symmetric, dynamic_groups)
    weights = random_weights(LLAMA)
    plain = weights.pop(f"{module}.weight").float()
    hessian = torch.diag_embed(torch.rand(1, 64, generator=torch.Generator().manual_seed(1)) + 0.1)
    weight = solve(plain[None], hessian, chosen).weight()
    stored = GPTQ.encode(module, weight, chosen.spec)
    if version == 1:
        zeros = unpack(stored[f"{module}.qzeros"], weight.bits, 80).short() + (1 << weight.bits - 1) - 1
        zeros = (zeros % (1 << weight.bits)) - (1 << weight.bits - 1)
        stored[f"{module}.qzeros"] = pack(zeros.to(torch.int8), weight.bits)
    layout = {1: "gptq", 2: "gptq_v2"}[version]
    config = LLAMA | {"quantization_config": {"quant_method": "gptq", "bits": weight.bits, "checkpoint_format": layout}}
    write_checkpoint(tmp_path, config, weights | stored)
    checkpoint = Checkpoint.open(tmp_path)
    read = checkpoint.quantized(module)
    assert read is not None and read.kind == weight.kind
    assert torch.equal(read.qweight, weight.qweight)
    assert checkpoint.kind(f"{module}.weight") == read.kind
    torch.testing.assert_close(read.dequantize(), weight.dequantize(), rtol=1e-3, atol=1e-6)  # scales are float16
    words = stored[f"{module}.qweight"][:, 5].tolist()
    stream = sum((word & 0xFFFFFFFF) << 32 * i for i, word in enumerate(words))
    codes = [stream >> weight.bits * i & (1 << weight.bits) - 1 for i in range(64)]
    assert codes == (weight.qweight[5].short() + (1 << weight.bits - 1)).tolist()


def native_fp8(weight: torch.Tensor, size: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Codes and scales, and the product of each code with the scale of its block."""
    rows, columns = weight.shape
    scale = torch.rand(-(-rows // size), -(-columns // size)) + 0.01
    codes = weight.clamp(-400, 400).to(torch.float8_e4m3fn)
    row, column = torch.arange(rows)[:, None] // size, torch.arange(columns)[None] // size
    plain = codes.float() * scale[row, column]
    return {"weight": codes, "weight_scale_inv": scale}, plain


def test_native_fp8_with_ragged_edges_is_bit_exact(tmp_path: Path) -> None:
    weights, expected = random_weights(DEEPSEEK_V3), {}
    for name in [name for name in weights if "_proj" in name and "layers.0" in name]:
        module = name.removesuffix(".weight")
        stored, expected[name] = native_fp8(weights.pop(name), 16)
        weights |= {f"{module}.{part}": tensor for part, tensor in stored.items()}
    write_checkpoint(tmp_path, DEEPSEEK_V3 | {"quantization_config": NATIVE_FP8}, weights)
    checkpoint = Checkpoint.open(tmp_path)
    assert any(side % 16 for plain in expected.values() for side in plain.shape)
    for name, plain in expected.items():
        assert torch.equal(checkpoint.tensor(name), plain)
        assert torch.equal(checkpoint.tensor(name, torch.bfloat16), plain.bfloat16())


def test_native_fp8_reads_back_as_in_transformers(tmp_path: Path) -> None:
    """Whole blocks only: transformers 5 spreads the scales of ragged edges evenly over all rows."""
    config = LLAMA | {"hidden_size": 256, "intermediate_size": 384, "num_key_value_heads": 8}
    weights = random_weights(config)
    names = [name for name in weights if "_proj" in name]
    for name in names:
        codes, scale = native_fp8(weights[name], 128)[0].values()
        weights |= {name: codes, f"{name}_scale_inv": scale}
    quantization_config = NATIVE_FP8 | {"weight_block_size": [128, 128]}
    write_checkpoint(tmp_path, config | {"quantization_config": quantization_config}, weights)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        quantization_config=FineGrainedFP8Config(dequantize=True, weight_block_size=(128, 128)),
        dtype=torch.float32,
    ).state_dict()
    checkpoint = Checkpoint.open(tmp_path)
    assert len(names) == 14
    assert all(torch.equal(checkpoint.tensor(name), theirs[name]) for name in names)


def broken(change: Any) -> dict[str, Any]:
    config = copy.deepcopy(config_of("int4 group"))
    change(config["config_groups"]["group_0"])
    return config


UNREADABLE = {
    "another tool's": ({"quant_method": "quark", "bits": 4}, "'quark' cannot be read"),
    "7 bits": (
        broken(lambda g: g["weights"].update(num_bits=7)),
        "group_0.weights.num_bits` must be 4 or 8 or 3 or 2 or 5 or 6, not 7",
    ),
    "no targets": (broken(lambda g: g.pop("targets")), "group_0.targets` is missing"),
    "broken target": (broken(lambda g: g.update(targets=["re:("])), "group_0.targets`: '(' is no regular expression"),
    "layout": (
        broken(lambda g: g.update(format="mxfp6-pack-quantized")),
        "group_0.format` 'mxfp6-pack-quantized' cannot be read, of compressed-tensors' formats only pack-quantized",
    ),
    "layout of all": (
        broken(lambda g: g.pop("format", None)) | {"format": "int-quantized"},
        "format` 'int-quantized' cannot be read",
    ),
    "sparse": (
        config_of("int4 group") | {"sparsity_config": {"format": "sparse-24-bitmask"}},
        "sparsity_config.format` 'sparse-24-bitmask' cannot be read",
    ),
    "bitsandbytes": ({"load_in_4bit": True}, "'bitsandbytes' cannot be read"),
    "too many patterns": (broken(lambda g: g.update(targets=[f"re:{i}" for i in range(1001)])), "has 1,001 patterns"),
    "too many groups": (
        {"quant_method": "compressed-tensors", "config_groups": {f"g{i}": {} for i in range(257)}},
        "has 257 groups",
    ),
    "GPTQ, broken pattern": (
        {"quant_method": "gptq", "bits": 4, "dynamic": {"+:(": {"bits": 8}}},
        "dynamic.+:(`: '(' is no regular expression",
    ),
    "strategy": (
        broken(lambda g: g["weights"].update(strategy="tensor")),
        "strategy` must be 'group' or 'channel'",
    ),
    "block size": (
        NATIVE_FP8 | {"weight_block_size": [128]},
        "weight_block_size` must be two positive integers",
    ),
    "e5m2": (NATIVE_FP8 | {"fmt": "e5m2"}, "fmt` must be 'e4m3' or 'float8_e4m3fn', not 'e5m2'"),
    "static blocks": (
        NATIVE_FP8 | {"activation_scheme": "static"},
        "activation_scheme` must be 'dynamic', not 'static'",
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_formats_that_cannot_be_read_are_refused(tmp_path: Path, name: str) -> None:
    quantization_config, message = UNREADABLE[name]
    config = LLAMA | {"quantization_config": quantization_config}
    write_checkpoint(tmp_path, config, random_weights(LLAMA))
    with pytest.raises(InputError) as caught:
        Checkpoint.open(tmp_path)
    assert message in str(caught.value)
    assert "config.json: `quantization_config" in str(caught.value)


def part(name: str, tensor: torch.Tensor | None) -> Any:
    """Replaces (None: removes) one stored part of the quantized module."""

    def change(weights: dict[str, torch.Tensor]) -> None:
        weights.pop(f"model.layers.0.mlp.gate_proj.{name}", None)
        if tensor is not None:
            weights[f"model.layers.0.mlp.gate_proj.{name}"] = tensor

    return change


DAMAGED = {
    "no scale": ("int4 group", part("weight_scale", None), "has no weight_scale"),
    "scale of another shape": ("int4 group", part("weight_scale", torch.ones(80, 5)), "do not fit"),
    "integer scale": ("int4 group", part("weight_scale", torch.ones(80, 4).int()), "its scales I32"),
    "zero points": (
        "int4 group",
        part("weight_zero_point", torch.zeros(10, 4).int()),
        "`symmetric: true`, the tensors",
    ),
    "no zero points": ("int4 asymmetric", part("weight_zero_point", None), "`symmetric: false`, the tensors"),
    "zero points of another shape": (
        "int4 asymmetric",
        part("weight_zero_point", torch.zeros(9, 4).int()),
        "zero points [9, 4] do not fit scales [80, 4]",
    ),
    "act-order": ("int4 group", part("weight_g_idx", torch.zeros(63).int()), "weight_g_idx [63] does not fit 64"),
    "fp8 without scale": ("fp8 channel", part("weight_scale", None), "is F8_E4M3 with no scale"),
    "fp8 scale of another shape": ("fp8 channel", part("weight_scale", torch.ones(3, 1)), "does not fit"),
    "plain weight with scale": ("fp8 channel", part("weight", torch.ones(80, 64)), "no FP8 matrix"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_parts_that_do_not_fit_together_are_refused(tmp_path: Path, name: str) -> None:
    scheme, change, message = DAMAGED[name]
    weights = random_weights(LLAMA)
    stored, _ = compressed(weights.pop("model.layers.0.mlp.gate_proj.weight"), scheme)
    weights |= {f"model.layers.0.mlp.gate_proj.{part}": tensor for part, tensor in stored.items()}
    change(weights)
    write_checkpoint(tmp_path, LLAMA | {"quantization_config": config_of(scheme)}, weights)
    with pytest.raises(InputError) as caught:
        Checkpoint.open(tmp_path)
    assert message in str(caught.value)
    assert "model.layers.0.mlp.gate_proj" in str(caught.value)


SLOW = "(.*?[a-z0-9_.]){13}[A-Z]"  # tries all 20 million ways to choose 13 letters of a module's name


def test_patterns_that_do_not_end_are_refused(tmp_path: Path) -> None:
    module = "model.layers.0.mlp.gate_proj"
    store(tmp_path, {module: "int4 group"})
    config = json.loads((tmp_path / "config.json").read_text())
    for group in config["quantization_config"]["config_groups"].values():
        group["targets"] = [f"re:{SLOW}"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="takes too long to match"):
        Checkpoint.open(tmp_path)
    gptq = formats({"quantization_config": {"quant_method": "gptq", "bits": 4, "dynamic": {f"+:{SLOW}": {}}}})
    with pytest.raises(InputError, match="takes too long to match"):
        gptq[0].matches(module)


def test_patterns_look_ahead_as_published_ones_do() -> None:
    dynamic = {r"-:.*lm_head": {}, r"+:^(?!.*experts).*down_proj$": {"bits": 8}}
    exceptions = formats({"quantization_config": {"quant_method": "gptq", "bits": 4, "dynamic": dynamic}})
    assert exceptions[0].matches("model.layers.0.mlp.down_proj")
    assert not exceptions[0].matches("model.layers.0.mlp.experts.3.down_proj")


def test_quantized_tensors_without_a_quantization_config_are_refused(tmp_path: Path) -> None:
    store(tmp_path, {"model.layers.0.mlp.gate_proj": "int4 group"})
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace("quantization_c", "c"))
    with pytest.raises(InputError, match=r"gate_proj.weight is stored with weight_packed.* does not explain"):
        Checkpoint.open(tmp_path)
