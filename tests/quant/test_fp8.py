"""FP8 beyond weights: inputs that are rounded, by scales of calibration or their own, and the attention cache."""

import json

import pytest
import torch
from safetensors.torch import load_file
from support.layerwise_pass import random_ids, run_pass
from support.random_checkpoint import DEEPSEEK_V3, LLAMA, random_checkpoint

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import CausalLM
from llmc.convert.quantized_weight import Activations
from llmc.errors import InputError
from llmc.quant.assign import Rule
from llmc.quant.layerwise import QuantizeOptions

TEXT = random_ids(12, 32)


def run(source, directory, rules, options=QuantizeOptions()):  # noqa: B008  # immutable
    return run_pass(source, directory, rules, TEXT, TEXT[:2], options=options)


def stored(directory):
    files = sorted((directory / "out").glob("model-*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def first_inputs(model, module):
    """What a module of layer 0 reads."""
    seen = []
    handle = model.layers[0].get_submodule(module).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.hidden(TEXT)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("method", ["rtn", "gptaq"])
def test_static_scales_are_the_largest_input_over_448(tmp_path, method):
    source = random_checkpoint(tmp_path / "source", LLAMA)
    run(source, tmp_path, [Rule("attention", "fp8-tensor-static", method)])
    model, tensors = CausalLM.load(Checkpoint.open(source)), stored(tmp_path)
    peak = first_inputs(model, "self_attn.q_proj").abs().max() / 448
    for name in ("q_proj", "k_proj", "v_proj"):
        scale = tensors[f"model.layers.0.self_attn.{name}.input_scale"]
        assert scale.dtype == torch.float32 and scale.shape == (1,)
        torch.testing.assert_close(scale[0], peak, rtol=1e-5, atol=0)
        assert tensors[f"model.layers.0.self_attn.{name}.weight_scale"].shape == (1,)
    # o_proj reads what the rounded projections before it have made.
    seen = first_inputs(CausalLM.load(Checkpoint.open(tmp_path / "out")), "self_attn.o_proj").abs().max() / 448
    torch.testing.assert_close(tensors["model.layers.0.self_attn.o_proj.input_scale"][0], seen, rtol=1e-2, atol=0)


def test_static_experts_that_saw_no_token_have_a_scale_all_the_same(tmp_path):
    source = random_checkpoint(tmp_path / "source", DEEPSEEK_V3 | {"n_routed_experts": 64, "n_group": 8})
    result = run(source, tmp_path, [Rule("experts", "fp8-channel-static")])
    assert min(report.tokens or 0 for name, report in result.modules.items() if ".experts." in name) == 0
    scales = [tensor for name, tensor in stored(tmp_path).items() if name.endswith("input_scale")]
    assert len(scales) == 2 * 64 * 3 and all(0 < scale.item() < 1 for scale in scales)


@pytest.mark.parametrize(("per", "width"), [("token", 256), ("group", 128)])
def test_dynamic_scales_belong_to_a_token_or_to_128_channels_of_it(per, width):
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(1)) * torch.logspace(-2, 2, 5)[:, None]
    x[2, 128:] = 0
    rounded = Activations(per).rounded(x)
    for row, kept in zip(x, rounded, strict=True):
        for part, of_it in zip(row.split(width), kept.split(width), strict=True):
            scale = part.abs().max() / 448
            codes = (part / scale).to(torch.float8_e4m3fn).float() if scale else torch.zeros_like(part)
            torch.testing.assert_close(of_it, codes * scale)


def test_the_error_that_rounded_inputs_cost_is_in_the_report(tmp_path):
    source = random_checkpoint(tmp_path / "source", LLAMA)
    kl = {
        scheme: run(source, tmp_path / scheme, [Rule("attention", scheme)]).kl
        for scheme in ("fp8-channel", "fp8-channel-static", "fp8-channel-dynamic")
    }
    assert kl["fp8-channel"] < kl["fp8-channel-dynamic"] < 4 * kl["fp8-channel"]
    assert kl["fp8-channel"] < kl["fp8-channel-static"] < 4 * kl["fp8-channel"]


@pytest.mark.parametrize(("config", "kinds"), [(DEEPSEEK_V3, 1), (LLAMA, 2)])
def test_the_cache_has_scales_of_calibration(tmp_path, config, kinds):
    source = random_checkpoint(tmp_path / "source", config)
    result = run(source, tmp_path, [], QuantizeOptions(fp8_cache=True))
    checkpoint, tensors = Checkpoint.open(tmp_path / "out"), stored(tmp_path)
    scheme = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["kv_cache_scheme"]
    assert (scheme["num_bits"], scheme["type"], scheme["strategy"], scheme["dynamic"]) == (8, "float", "tensor", False)
    model = CausalLM.load(Checkpoint.open(source))
    attention, x = model.layers[0].self_attn, model.layers[0].get_submodule("input_layernorm")(model.embed(TEXT))
    entries = attention.entries(x, torch.arange(32).expand(12, -1))
    assert len(entries) == kinds
    for name, entry in entries.items():
        torch.testing.assert_close(
            tensors[f"model.layers.0.self_attn.{name}"], entry.abs().max()[None] / 448, rtol=1e-2, atol=0
        )
    names = [name for name in tensors if name.endswith(("k_scale", "v_scale"))]
    assert len(names) == 2 * checkpoint.spec.num_all_layers
    # It is heard, and the model that is read back says what the pass has measured.
    again = CausalLM.load(checkpoint)
    said = again.logits(again.hidden(TEXT[:2]))[:, :-1].log_softmax(-1)
    want = model.logits(model.hidden(TEXT[:2]))[:, :-1].log_softmax(-1)
    assert result.kl == pytest.approx((want.exp() * (want - said)).sum(-1).mean().item(), rel=1e-3)
    assert 1e-7 < result.kl < 0.05


def test_a_checkpoint_that_has_cache_scales_keeps_them(tmp_path):
    source = random_checkpoint(tmp_path / "source", LLAMA)
    run(source, tmp_path, [], QuantizeOptions(fp8_cache=True))
    run(tmp_path / "out", tmp_path / "again", [Rule("dense_mlp", "fp8-channel")])
    before, after = (Checkpoint.open(path / "out") for path in (tmp_path, tmp_path / "again"))
    assert after.spec.fp8_cache
    assert [before.cache_scales(layer) for layer in (0, 1)] == [after.cache_scales(layer) for layer in (0, 1)]


def test_what_has_no_input_cannot_round_it(tmp_path):
    source = random_checkpoint(tmp_path / "source", DEEPSEEK_V3)
    with pytest.raises(InputError, match="use fp8-channel for kv_b_proj"):
        run(source, tmp_path, [Rule("kv_b_proj", "fp8-channel-dynamic")])
    with pytest.raises(InputError, match="64 inputs, no multiple of 128; use fp8-channel-dynamic"):
        run(source, tmp_path, [Rule("attention", "fp8-block-dynamic")])
