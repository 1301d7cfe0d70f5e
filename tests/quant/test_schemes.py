import re

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import preset_name_to_scheme

from llmc.convert.formats.pack_quantized import PackQuantized
from llmc.convert.quantized_weight import bits_of
from llmc.errors import InputError
from llmc.quant.gptq import round_to_nearest
from llmc.quant.schemes import scheme, schemes


def test_unknown_name_lists_the_valid_ones_nearest_first():
    with pytest.raises(InputError, match=r"'int4-g129'; did you mean 'int4-g128'.*fp8-block"):
        scheme("int4-g129")


def test_int4_scales_are_bfloat16_and_clip_where_that_helps():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 128, generator=generator)
    weight[:, 3] *= 4  # one outlier in every group of 128
    scales = scheme("int4-g128").grid(weight).scales
    assert scales.dtype == torch.bfloat16 and scales.shape == (16, 1)
    assert (scales[:, 0].float() < weight.abs().amax(1) / 7).any()

    def error(chosen):
        codes = scheme("int4-g128").round_(weight / chosen)
        return (codes * chosen - weight).square().sum()

    assert error(scales.float()) < error((weight.abs().amax(1, keepdim=True) / 7).bfloat16().float())


@pytest.mark.parametrize("bits", [3, 4])
def test_a_scale_is_negative_where_the_largest_weights_are_positive(bits: int) -> None:
    """The code that has no positive counterpart is theirs then; weights and their negatives are rounded alike."""
    codes = scheme(f"int{bits}-g64")
    weight = torch.arange(1 - (1 << bits - 1), (1 << bits - 1) + 1).repeat(1, 64 >> bits).float()
    for sign in (1, -1):
        result = round_to_nearest(sign * weight, codes)
        assert torch.equal(result.dequantize(), sign * weight) and result.scales.sign().item() == -sign
    for other in (codes.positive, scheme("int8-g64"), scheme(f"int{bits}-g64-asym")):
        assert (other.grid(weight).scales > 0).all()
    assert codes.positive.name == codes.name and codes.positive is codes.positive


def test_importance_moves_the_scale_towards_channels_that_matter():
    weight = torch.randn(1, 64, generator=torch.Generator().manual_seed(3))
    importance = torch.ones(1, 64)
    loud = weight.abs().argmax()
    importance[0, loud] = 1e4
    codes = scheme("int4-g64")

    def loud_error(scale):
        return (codes.round_(weight / scale.float()) * scale.float() - weight)[0, loud].abs()

    assert loud_error(codes.grid(weight[None], importance).scales[0]) <= loud_error(codes.grid(weight).scales)


def test_packed_as_compressed_tensors_packs():
    weight = round_to_nearest(torch.randn(24, 64), scheme("int4-g32"))
    stored = PackQuantized.encode("m", weight, scheme("int4-g32").spec)
    assert list(stored) == ["m.weight_packed", "m.weight_scale", "m.weight_shape"]
    assert torch.equal(stored["m.weight_packed"], pack_to_int32(weight.qweight, 4))
    assert stored["m.weight_shape"].tolist() == [24, 64]


def test_fp8_blocks_with_ragged_edges():
    weight = torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
    result = round_to_nearest(weight, scheme("fp8-block"))
    assert result.scales.shape == (2, 3) and result.scales.dtype == torch.float32
    for row, rows in enumerate((slice(0, 128), slice(128, 200))):
        for column, columns in enumerate((slice(0, 128), slice(128, 256), slice(256, 300))):
            block = weight[rows, columns]
            scale = block.abs().max() / 448
            assert result.scales[row, column] == scale
            assert torch.equal(result.qweight[rows, columns].float(), (block / scale).to(torch.float8_e4m3fn).float())
    assert (result.dequantize() - weight).abs().max() < 0.07 * weight.abs().max()


def test_fp8_per_channel_and_zero_rows():
    weight = torch.randn(5, 64)
    weight[2] = 0
    result = round_to_nearest(weight, scheme("fp8-channel"))
    assert result.scales.shape == (5, 1)
    assert (result.dequantize()[2] == 0).all()


@pytest.mark.parametrize("name", sorted(schemes.all))
def test_batched_scales_are_those_of_each_matrix(name):
    weight = torch.randn(3, 40, 256)
    batched = scheme(name).grid(weight).scales
    for expert in range(3):
        assert torch.equal(batched[expert], scheme(name).grid(weight[expert]).scales)


def test_a_group_size_that_does_not_divide_names_those_that_do():
    with pytest.raises(InputError, match=r"x\.weight has 96 inputs, no multiple of 128; use int4-g32"):
        scheme("int4-g128").check("x.weight", (64, 96))


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("int4", "int4-g128"),
        ("W4A16", "int4-g128"),
        ("w4a16_asym", "int4-g128-asym"),
        ("W8A16", "int8-g128"),
        ("FP8", "fp8-tensor-static"),
        ("FP8_DYNAMIC", "fp8-channel-dynamic"),
        ("FP8_BLOCK", "fp8-block-dynamic"),
        ("fp8-block", "fp8-block"),
        ("int3-g32-asym", "int3-g32-asym"),
        ("nvfp4", "nvfp4"),
        ("NVFP4A16", "nvfp4"),
        ("mxfp4", "mxfp4"),
        ("NVFP4", "nvfp4-static"),
        ("w4a4-nvfp4", "nvfp4-static"),
        ("MXFP4", "mxfp4-dynamic"),
    ],
)
def test_names_of_other_programs(name: str, ours: str) -> None:
    assert scheme(name).name == ours


@pytest.mark.parametrize(
    "preset",
    ["W4A16", "W4A16_ASYM", "W8A16", "FP8", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4", "NVFP4A16", "MXFP4", "MXFP4A16"],
)
def test_presets_are_those_of_compressed_tensors(preset: str) -> None:
    theirs = preset_name_to_scheme(preset, ["Linear"])
    ours = scheme(preset)
    assert theirs.weights is not None and ours.code_type.startswith(str(theirs.weights.type))
    assert theirs.weights.num_bits == bits_of(ours.code_type) and theirs.weights.symmetric == ours.symmetric
    shape = (256, 512)
    block = {"group": (1, theirs.weights.group_size), "channel": (1, 512), "tensor": shape, "block": (128, 128)}
    block["tensor_group"] = block["group"]
    assert ours.block(shape) == block[theirs.weights.strategy]
    inputs = theirs.input_activations
    assert (ours.activations is None) == (inputs is None)
    if inputs is not None and ours.activations is not None:
        kinds = {"tensor_group": "nvfp4", "group": "mxfp4"} if inputs.num_bits == 4 else {}
        assert ours.activations.per == kinds.get(inputs.strategy, inputs.strategy)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("awq", "is a method that llmc does not have"),
        ("mxfp8", "is not written by llmc; fp8-block takes its place"),
        ("gptq", "write `method: gptq`, and a scheme"),
        ("nf4", "bitsandbytes"),
        ("Q4_K_M", "llama.cpp"),
        ("IQ4_XS", "llama.cpp"),
        ("gguf", "llama.cpp"),
        ("nvfp4-dynamic", "is what nvfp4-static does, but for one scale"),
        ("mxfp4-static", "use mxfp4-dynamic"),
        ("W8A8", "rounds inputs to integers"),
        ("bf16", "what no rule matches keeps its precision"),
        ("int4-g12", "did you mean 'int4-g128'?"),
        ("int4-128", "did you mean 'int4-g128'?"),
        ("fp8_block", "did you mean 'fp8-block'?"),
        ("FP8-BLOCK", "did you mean 'fp8-block'?"),
        ("fp8-chanel", "did you mean 'fp8-channel'?"),
    ],
)
def test_what_is_no_scheme_is_explained(name: str, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        scheme(name)


@pytest.mark.parametrize("name", ["", "x", "quality", "4bit", "best"])
def test_nothing_is_guessed(name: str) -> None:
    with pytest.raises(InputError) as caught:
        scheme(name)
    assert "did you mean" not in str(caught.value) and "; known: int4-g32, " in str(caught.value)
