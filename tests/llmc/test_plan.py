"""The plan's numbers against numbers worked out by hand."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from support.architectures import EMBEDDED
from support.headers_only import headers_only
from support.model_lines import published_config
from support.random_checkpoint import DEEPSEEK_V3, LLAMA, random_checkpoint

from llmc import machine
from llmc.convert.checkpoint import Checkpoint
from llmc.errors import InputError, MachineError
from llmc.pipeline import build
from llmc.planning import Plan, plan
from llmc.quant.assign import Rule
from llmc.quant.layerwise import quantize
from llmc.recipe import Prune, Quantize, Recipe
from llmc.sizes import sizes_by_role


def planned(path: Path, memory: int | None = None, **recipe: object) -> Plan:
    return plan(Checkpoint.open(path), Recipe(model=str(path), **recipe), path / "out", memory)  # type: ignore[arg-type]


def test_mixture_of_experts_by_hand(tmp_path: Path) -> None:
    """Hidden 64; 8 experts of width 64 in two MoE layers and the MTP layer; float32 on disk."""
    path = random_checkpoint(
        tmp_path / "m", DEEPSEEK_V3, moe_intermediate_size=64, num_experts_per_tok=2, n_group=2, topk_group=1
    )
    found = planned(
        path,
        prune=Prune(keep=0.5),
        quantize=[Quantize(match="experts", scheme="int4-g32"), Quantize(match="attention", scheme="fp8-block")],
        calibration={"samples": 2, "length": 32},
        check={"tokens": 64, "length": 32},
    )
    assert found.experts == [8, 4]

    one = 3 * 64 * 64  # parameters of an expert: gate, up, down
    experts = found.roles["experts"]
    assert experts.before.parameters == 2 * 8 * one
    assert experts.before.bytes == 4 * 2 * 8 * one
    assert experts.after.parameters == 2 * 4 * one
    # Half a byte a weight, a bfloat16 scale for each 32, and a shape of two int64 for each matrix.
    assert experts.after.bytes == 2 * 4 * (one // 2 + one // 32 * 2 + 3 * 16)

    router = found.roles["router"]  # weight [8, 64] and bias [8]
    assert (router.before.parameters, router.after.parameters) == (2 * (8 * 64 + 8), 2 * (4 * 64 + 4))

    # q_a [24, 64], q_b [96, 24], kv_a [40, 64], o [64, 80]: 1, 1, 1 and 1 blocks of 128 x 128, float32 scales.
    # The norms inside attention have another role.
    attention = found.roles["attention"]
    linear = 24 * 64 + 96 * 24 + 40 * 64 + 64 * 80
    assert attention.before.parameters == 3 * linear
    assert attention.after.bytes == 3 * (linear + 4 * 4)

    # The MTP layer keeps its precision and loses half of its experts.
    mtp = found.roles["mtp"]
    assert mtp.before.parameters - mtp.after.parameters == 4 * one + 4 * 64 + 4
    assert mtp.after.bytes == 4 * mtp.after.parameters

    assert found.total.before.bytes == Checkpoint.open(path).nbytes()
    assert found.schemes == {"experts": {"int4-g32": 2 * 4 * one}, "attention": {"fp8-block": 3 * linear}}
    # Latent: (32 + 8) values in 4 layers. Expanded: 4 heads of 16 + 8 for keys and 20 for values.
    assert (found.cache_bytes, found.cache_bytes_expanded) == (2 * 4 * 40, 2 * 4 * 4 * 44)
    # float32 activations in two models: a layer's input and output and the input of the layer before it for 64 tokens
    # of check text, and for 64 of calibration text those, what the MLP reads, what the MTP layer joins with an
    # embedding, and what o_proj reads (80 wide). And the largest layer's new shard.
    activations = 4 * 64 * (2 * 3 * 64 + 2 * (5 * 64 + 80))
    assert found.work_disk - activations == mtp.after.bytes


def test_a_gpu_takes_what_the_host_is_spared(tmp_path: Path) -> None:
    path = random_checkpoint(tmp_path / "m", DEEPSEEK_V3)
    recipe = Recipe(model=str(path), quantize=[Quantize(match="experts", scheme="fp8-channel")])
    checkpoint = Checkpoint.open(path)
    plain = plan(checkpoint, recipe, tmp_path / "out")
    shared = plan(checkpoint, recipe, tmp_path / "out", gpu_memory=8 << 30)
    assert plain.gpu_memory is None and shared.gpu_memory is not None
    assert shared.memory <= plain.memory < shared.memory + shared.gpu_memory
    assert shared.fits_gpu and shared.hessian_memory < 8 << 30
    small = plan(checkpoint, recipe, tmp_path / "out", gpu_memory=1 << 20)
    assert not small.fits_gpu
    with pytest.raises(MachineError, match=r"GPU memory, more than the 1\.0 MB allowed; raise --gpu-memory"):
        small.require(tmp_path / "out", 0)


@pytest.mark.parametrize("gpu_memory", [48 << 30, 80 << 30])
def test_the_solver_takes_what_a_gpu_has(gpu_memory: int, tmp_path: Path) -> None:
    """DeepSeek-R1's Hessians of 7,168 inputs: on a larger GPU more matrices at once, on a smaller one fewer."""
    config = published_config("deepseek-ai--DeepSeek-R1")
    path = headers_only(tmp_path / "model", config, EMBEDDED)
    found = plan(Checkpoint.open(path), Recipe(model=str(path)), tmp_path / "out", gpu_memory=gpu_memory)
    assert found.gpu_memory is not None
    assert found.fits_gpu and 0.85 * gpu_memory < found.gpu_memory


def test_no_gpu_is_said_before_anything_is_done(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(MachineError, match="finds no CUDA GPU; leave the option out"):
        build("quickstart", tmp_path / "out", gpu_memory=8 << 30)
    assert not (tmp_path / "out.work").exists()


def test_dense_by_hand(tmp_path: Path) -> None:
    path = random_checkpoint(tmp_path / "m", LLAMA, intermediate_size=128, hidden_size=128)
    found = planned(path)  # the default recipe
    mlp = found.roles["dense_mlp"]
    assert found.experts == []
    assert mlp.before.parameters == mlp.after.parameters == 2 * 3 * 128 * 128
    assert mlp.after.bytes == 2 * 3 * (128 * 64 + 128 * 2 + 16)
    assert found.cache_bytes == found.cache_bytes_expanded == 2 * 2 * 2 * 2 * 16
    assert found.target_bytes == {"onnxruntime": 96 * 128 * 9 // 8}  # the head


def test_wrong_for_the_model(tmp_path: Path) -> None:
    path = random_checkpoint(tmp_path / "m", DEEPSEEK_V3, num_experts_per_tok=2, n_group=2, topk_group=1)
    with pytest.raises(InputError, match=r"use one of 0\.5, 0\.75, 1"):
        planned(path, prune=Prune(keep=0.7), quantize=[Quantize(match="attention", scheme="fp8-block")])
    with pytest.raises(InputError, match="48 inputs"):
        planned(path, quantize=[Quantize(match="experts", scheme="int4-g64")])


def test_says_what_does_not_fit(tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = [Quantize(match="experts", scheme="int4-g32")]
    found = planned(small_model, quantize=rules)
    assert found.fits_disk
    assert found.fits_memory
    found.require(tmp_path, 0)

    needed = found.work_disk + found.output_disk
    monkeypatch.setattr(machine, "free_disk", lambda path: needed - 1)
    short = planned(small_model, quantize=rules)
    assert not short.fits_disk
    with pytest.raises(MachineError, match="disk"):
        short.require(tmp_path, 0)
    short.require(tmp_path, 1)  # what is there already need not be free

    monkeypatch.undo()
    monkeypatch.setattr(machine, "memory", lambda: found.memory - 1)
    with pytest.raises(MachineError, match="memory"):
        planned(small_model, quantize=rules).require(tmp_path, 0)


def test_a_memory_limit_goes_to_the_hessians(small_model: Path, tmp_path: Path) -> None:
    rules = [Quantize(match="experts", scheme="int4-g32")]
    free = planned(small_model, quantize=rules)
    limited = planned(small_model, free.memory + 1000, quantize=rules)
    assert limited.hessian_memory < free.memory < free.hessian_memory
    assert limited.memory <= limited.memory_available == free.memory + 1000
    with pytest.raises(MachineError, match=r"only 1\.0 MB are free or allowed; .*raise --memory"):
        planned(small_model, 1_000_000, quantize=rules).require(tmp_path, 0)


def odd_model(small_model: Path, folder: Path, **changes: object) -> Path:
    """With another model's tokenizer: its text is not read."""
    model = random_checkpoint(folder / "odd", DEEPSEEK_V3, **changes)
    shutil.copy(small_model / "tokenizer.json", model)
    return model


@pytest.mark.parametrize(
    ("changes", "target", "said"),
    [
        ({}, {"tensorrt-rtx": {"context": 500}}, "target tensorrt-rtx: context is 500, but the model ends at 256"),
        ({}, {"tensorrt": {"context": 500}}, "target tensorrt: context is 500, but the model ends at 256"),
        ({"kv_lora_rank": 544}, {"tensorrt-rtx": {}}, "`kv_lora_rank` of at most 512"),
        ({"qk_rope_head_dim": 66}, {"tensorrt": {}}, "`qk_rope_head_dim` of at most 64, not 32 and 66"),
        ({"n_routed_experts": 96}, {"tensorrt-rtx": {"plugins": False}}, "computes all 96 experts"),
    ],
)
def test_what_a_target_would_refuse_in_the_end(
    llmc, recipe, small_model: Path, tmp_path: Path, changes, target, said: str
) -> None:
    """Headers and recipe tell it before anything is done."""
    model = odd_model(small_model, tmp_path, moe_intermediate_size=32, **changes)
    quantize = [{"match": "re:.*experts.*_proj", "scheme": "int4-g32"}]
    for command in ("plan", "build"):
        made = llmc(command, recipe(model=str(model), quantize=quantize, prune=None, targets=[target]))
        assert made.exit_code == 2, made.output
        assert said in made.stderr
        assert not Path("build").exists()


def test_pruning_comes_before_targets(llmc, recipe, small_model: Path, tmp_path: Path) -> None:
    """What is left of 96 experts an engine can compute without plugins."""
    model = odd_model(small_model, tmp_path, moe_intermediate_size=32, n_routed_experts=96)
    changes = {"quantize": [{"match": "experts", "scheme": "int4-g32"}], "prune": {"keep": 0.5}}
    made = llmc("plan", recipe(model=str(model), targets=[{"tensorrt-rtx": {"plugins": False}}], **changes))
    assert made.exit_code == 0, made.output


def test_gate_and_up_of_experts_apart(llmc, recipe, small_model: Path, tmp_path: Path) -> None:
    model = odd_model(small_model, tmp_path, moe_intermediate_size=32)
    changes = {"model": str(model), "quantize": [{"match": "re:.*gate_proj", "scheme": "int4-g32"}], "prune": None}
    assert llmc("plan", recipe(**changes)).exit_code == 0
    planned = llmc("plan", recipe(**changes, targets=[{"tensorrt-rtx": {}}]))
    assert planned.exit_code == 2
    assert "gate_proj is to become int4-g32, and up_proj is not" in planned.stderr


@pytest.mark.parametrize("tied", [False, True])
def test_embedding_and_head_are_counted_as_they_are_stored(tmp_path: Path, tied: bool) -> None:
    path = random_checkpoint(tmp_path / "m", LLAMA, tie_word_embeddings=tied)
    rules = [Quantize(match="lm_head", scheme="int4-g32", method="rtn")]
    rules += [] if tied else [Quantize(match="embedding", scheme="fp8-channel")]
    settings = {"calibration": {"samples": 2, "length": 32}, "check": {"tokens": 64, "length": 32}}
    found = planned(path, quantize=rules, **settings)
    text = torch.zeros(1, 32, dtype=torch.int64)
    given = [Rule(rule.match, rule.scheme, rule.method) for rule in rules]
    quantize(Checkpoint.open(path), given, None, text, text, tmp_path / "out", tmp_path / "work", lambda *_: None)
    sizes = sizes_by_role(Checkpoint.open(tmp_path / "out"))
    for role in ("embedding",) if tied else ("embedding", "lm_head"):
        assert found.roles[role].after == sizes[role]
        assert found.schemes[role]


def test_the_share_of_each_text(llmc, recipe, small_model: Path) -> None:
    texts = [{"text": "self", "weight": 3}, "builtin:python-docs"]
    calibration = {"text": texts, "samples": 4, "length": 32}
    made = llmc("plan", recipe(model=str(small_model), calibration=calibration), "--json")
    assert json.loads(made.stdout)["notes"][-2:] == [
        "calibration: 96 tokens of self",
        "calibration: 32 tokens of builtin:python-docs",
    ]
