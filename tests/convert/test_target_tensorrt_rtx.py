"""The graphs for TensorRT-RTX against the torch blocks, and the engines it compiles of them.

Compiling needs no GPU, running an engine does: that the numbers are right is seen in ONNX Runtime, on the same graphs
in float32; of the engines it is seen what they hold.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from support.graph_comparison import WIDTHS, compare_narrow_steps, compare_with_torch, write_graphs
from support.graph_session import GraphSession
from support.quantized_checkpoint import CASES, DEEPSEEK, EXACT, limit_of, quantized_checkpoint
from support.random_checkpoint import LLAMA, random_checkpoint

from llmc.contracts.engine import EngineDescription, EngineProgram, EngineTensor
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.engines import compiler, engine, lowering, weights
from llmc.convert.engines.compiler import CompiledEngine
from llmc.convert.engines.contents import INTEGERS
from llmc.convert.engines.lowering import lower
from llmc.convert.engines.program import READERS, ProgramText
from llmc.convert.engines.windows import windows
from llmc.convert.graph.build import graphs
from llmc.convert.graph.rewrite import Rewriter
from llmc.convert.quantized_weight import Activations, held_type
from llmc.convert.spec import LatentAttentionSpec
from llmc.convert.targets import TargetResult, target
from llmc.errors import InputError, MachineError, MissingPackageError
from llmc.quant.layerwise import QuantizeOptions
from llmc.recipe import read_recipe
from llmc.tensorrt_package import TENSORRT_RTX, TensorRTPackage

pytestmark = pytest.mark.slow

rtx = target("tensorrt-rtx")
INT4, BOTH = INTEGERS, INTEGERS | {"float8_e4m3fn"}
LOWERED = {name: given for name, given in CASES.items() if "dynamic" not in name} | {
    "deepseek, fp8-channel experts": (
        DEEPSEEK,
        {"experts": "fp8-channel", "dense_mlp": "fp8-block", "mtp": "int4-g64"},
    ),
    "deepseek, values longer than keys": (DEEPSEEK | {"v_head_dim": 64}, {"experts": "int4-g32"}),
    "deepseek, values as long as keys": (DEEPSEEK | {"v_head_dim": 48}, {}),
}


def lowered(checkpoint: Checkpoint, code_types: set[str], batch: int = 1) -> dict[str, ir.Model]:
    models = graphs(checkpoint, ir.DataType.FLOAT, 64)
    for model in models.values():
        lower(model, checkpoint.spec, ir.DataType.FLOAT, code_types, WIDTHS, batch)
    return models


def spell_out_attention(model: ir.Model) -> list[ir.Value]:
    """ONNX Runtime's Attention refuses a query of no tokens, which is what it gets in every step that decodes, so
    it becomes the standard ops it is made of. Returns the queries.
    """
    b, queries = Rewriter(model), []
    for node in b.nodes("Attention"):
        query, key, value, mask = node.inputs
        assert node.attributes.keys() == {"scale"}
        with b.before(node), b.at(f"{node.name}/spelled_out"):  # a path of its own, so that no name is taken
            scores = b.op("MatMul", query, b.transpose(key, 0, 1, 3, 2))
            scale = b.constant(node.attributes["scale"].as_float(), ir.DataType.FLOAT)
            weights = b.op("Softmax", b.op("Add", b.op("Mul", scores, scale), mask), axis=-1)
            b.replace(node, b.op("MatMul", weights, value))
        assert query is not None
        queries.append(query)
    return queries


def code_bytes(checkpoint: Checkpoint, role: str) -> dict[str, int]:
    """Of the codes that the checkpoint stores for a graph: {type as ONNX calls it: bytes}."""
    count: Counter[str] = Counter()
    for name in checkpoint.names():
        weight = checkpoint.quantized(name.removesuffix(".weight")) if name.endswith(".weight") else None
        is_mtp = name.startswith(f"model.layers.{checkpoint.spec.num_layers}.")
        if weight is not None and is_mtp == (role == "mtp"):
            held = held_type(weight.code_type)
            wide = held in ("int8", "float8_e4m3fn") and weight.block[1] < weight.shape[1]
            wide &= held == "int8" or ".experts." not in name  # whose chosen ones are decoded alone
            if weight.zero_points is not None or weight.g_idx is not None or wide or "kv_b_proj" in name:
                continue  # becomes a plain weight
            kind, bits = {"float8_e4m3fn": ("float8e4m3fn", 8), "int8": ("int8", 8)}.get(held, ("int4", 4))
            count[kind] += math.prod(checkpoint.shape(name)) * bits // 8
    return dict(count)


@pytest.fixture(scope="module", params=LOWERED)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return quantized_checkpoint(tmp_path_factory.mktemp("rtx"), *LOWERED[request.param])


@pytest.mark.parametrize("code_types", [INT4, BOTH], ids=["int4", "int4 and fp8"])
def test_lowered_equals_torch(case: Checkpoint, code_types: set[str]) -> None:
    models = lowered(case, code_types)
    for role, model in models.items():
        stored = {kind: n for kind, n in code_bytes(case, role).items() if code_types == BOTH or kind != "float8e4m3fn"}
        held = engine._weight_bytes(model)
        assert {kind: held[kind] for kind in held.keys() & {"int4", "int8", "float8e4m3fn"}} == stored  # each once
        if isinstance(case.spec.attentions[0], LatentAttentionSpec):
            assert spell_out_attention(model)
    if code_types == INT4 and limit_of(case) != EXACT:  # without the type nothing can be rounded to it
        assert not any(node.op_type == "QuantizeLinear" for model in models.values() for node in model.graph)
        return
    result = write_graphs(case, models)
    compare_with_torch(case, result)
    compare_narrow_steps(case, result)


@pytest.mark.parametrize("name", ["llama", "deepseek", "deepseek, static inputs and an FP8 cache"])
def test_a_window_cuts_nothing_off_that_counts(name: str, tmp_path: Path) -> None:
    checkpoint = quantized_checkpoint(tmp_path, *LOWERED[name])
    models = graphs(checkpoint, ir.DataType.FLOAT, 64)
    for model in models.values():
        lower(model, checkpoint.spec, ir.DataType.FLOAT, BOTH, WIDTHS, 1, windowed=True)
        if isinstance(checkpoint.spec.attentions[0], LatentAttentionSpec):
            spell_out_attention(model)
    result = write_graphs(checkpoint, models)
    graph = GraphSession(checkpoint.path / result.files["main"], batch=1)
    ids = torch.arange(20)[None]
    for start, window in ((0, 20), (0, 64), (10, 40)):
        graph.window = window
        logits, _ = graph.step(ids[:, start:], [start])
        if start == 0:
            whole = logits
    torch.testing.assert_close(logits, whole[:, 10:])
    assert all(cache.shape[2] == 64 for cache in graph.caches.values())
    graph.window = 5  # and what it cuts off is gone
    logits, _ = graph.step(ids[:, 10:], [10])
    assert (logits - whole[:, 10:]).abs().max() > 1e-3


def test_windows() -> None:
    assert [windows(*each) for each in ((4096, 512), (8192, 512), (32768, 512), (65536, 512), (16384, 4096))] == [
        (4096,), (1024, 8192), (4096, 32768), (1024, 8192, 65536), (16384,),
    ]  # fmt: skip


@pytest.mark.parametrize(("batch", "gathering"), [(1, [1, 2]), (2, [1]), (3, [])])
def test_every_step_takes_one_form(batch: int, gathering: list[int], tmp_path: Path) -> None:
    """Numbers alone would not tell: narrow steps absorb and gather, wide ones expand and compute all experts."""
    checkpoint = quantized_checkpoint(tmp_path, *LOWERED["deepseek"])
    model = lowered(checkpoint, BOTH, batch)["main"]
    expanded = spell_out_attention(model)
    gathers = [node for node in model.graph if node.op_type == "Gather" and "mlp" in str(node.name)]
    gathered = list(dict.fromkeys(x for node in gathers if (x := node.inputs[1]) is not None))
    assert (len(expanded), len(gathered)) == (3, 2 if gathering else 0)  # layers; those with experts
    watched = dict.fromkeys(expanded, ir.DataType.FLOAT) | dict.fromkeys(gathered, ir.DataType.INT64)
    for value, dtype in watched.items():
        value.type = ir.TensorType(dtype)
        model.graph.outputs.append(value)
    result = write_graphs(checkpoint, {"main": model})
    graph = GraphSession(checkpoint.path / result.files["main"], batch=batch)
    for width in (1, 2, 3, 8):
        feeds = graph.feeds(torch.arange(batch * width).reshape(batch, width), [5] * batch) | graph.caches
        shapes = [x.shape for x in graph.session.run([value.name for value in watched], feeds)]
        assert {shape[2] for shape in shapes[:3]} == {0 if width in WIDTHS else width}
        assert all(shape[0] == (batch * width if width in gathering else 0) for shape in shapes[3:])
    compare_narrow_steps(checkpoint, result)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, TargetResult]:
    """Real engines of a model with int4 and FP8."""
    schemes = dict.fromkeys(("experts", "shared_experts", "mtp"), "int4-g32") | {"attention": "fp8-block"}
    config = DEEPSEEK | {"num_hidden_layers": 2}
    checkpoint = quantized_checkpoint(tmp_path_factory.mktemp("engines"), config, schemes)
    return checkpoint, rtx.build(
        checkpoint, rtx.Options(sm=[89, 80], context=32, plugins=False), checkpoint.path, lambda *_: None
    )


def test_rounded_activations_and_an_fp8_cache_compile(tmp_path: Path) -> None:
    """Static scales are in the program; dynamic ones, which it cannot have, are left out, and that is said. GPUs
    without FP8 get an engine without any."""
    schemes = {"attention": "fp8-tensor-static", "dense_mlp": "fp8-channel-dynamic"}
    config = DEEPSEEK | {"num_hidden_layers": 1, "num_nextn_predict_layers": 0}
    checkpoint = quantized_checkpoint(tmp_path, config, schemes, QuantizeOptions(fp8_cache=True))
    result = rtx.build(
        checkpoint, rtx.Options(sm=[80, 89], context=32, plugins=False), checkpoint.path, lambda *_: None
    )
    assert result.details["rtx-sm89"]["weight_bytes"]["float8e4m3fn"] > 0
    assert "float8e4m3fn" not in result.details["rtx-sm80"]["weight_bytes"]
    assert any("dynamic activations stay" in note for note in result.notes)
    assert any("cache holds FP8's numbers" in note for note in result.notes)


def test_fp8_inputs_never_meet_fp8_blocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The compiler takes them, and multiplies wrongly."""
    config = LLAMA | {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    checkpoint = quantized_checkpoint(tmp_path, config, {"dense_mlp": "fp8-block"})
    monkeypatch.setattr(
        Checkpoint, "activations", lambda self, module: Activations("tensor", 0.1) if "mlp" in module else None
    )
    options = rtx.Options(sm=[89], context=32)
    result = rtx.build(checkpoint, options, checkpoint.path, lambda *_: None)
    assert "TensorRT multiplies no FP8 inputs with FP8 blocks: those inputs stay bfloat16" in result.notes
    monkeypatch.setattr(lowering, "in_groups", lambda weight: False)
    monkeypatch.setattr(weights, "_multiplied", lambda kind, rows, columns: True)
    with pytest.raises(MachineError, match=r"^rtx-sm89\.engine: .*mlp.* multiplies FP8 inputs with FP8 blocks, which"):
        rtx.build(checkpoint, options, checkpoint.path, lambda *_: None)


def test_a_long_context_has_windows(tmp_path: Path) -> None:
    """And more than TensorRT has attention kernels for; the plugins need none."""
    config = LLAMA | {"num_hidden_layers": 1, "max_position_embeddings": 32768, "intermediate_size": 96, "head_dim": 64}
    checkpoint = quantized_checkpoint(tmp_path, config, {"dense_mlp": "int4-g32"})
    options = rtx.Options(sm=[89], context=32768, plugins=False)
    rtx.build(checkpoint, options, checkpoint.path, lambda *_: None)
    said = json.loads((checkpoint.path / "engines/rtx-sm89.json").read_text())
    assert [(each["tokens"], each["window"]) for each in said["profiles"]] == [
        ([1, 1], 4096), ([1, 1], 32768), ([2, 512], 4096), ([2, 512], 32768),
    ]  # fmt: skip
    assert {"name": "window", "dtype": "int8", "shape": [-1]} in said["inputs"]


@pytest.mark.parametrize("name", ["llama", "longrope"])
def test_the_longest_context(name: str, tmp_path: Path) -> None:
    """128 K tokens of cache, with one set of frequencies and with two."""
    config = LLAMA | {"max_position_embeddings": 131072, "num_hidden_layers": 1}
    if name == "longrope":
        factors = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 16.0, 32.0]}
        config |= {"rope_scaling": factors | {"original_max_position_embeddings": 4096}}
    checkpoint = Checkpoint.open(random_checkpoint(tmp_path, config))
    result = rtx.build(checkpoint, rtx.Options(sm=[89], context=131072), checkpoint.path, lambda *_: None)
    said = EngineDescription.model_validate_json((tmp_path / "engines/rtx-sm89.json").read_text(encoding="utf-8"))
    assert said.context == 131072 and result.files
    assert {each.shape[2] for each in said.inputs if each.name.startswith("past.")} == {131072}
    assert max(profile.window for profile in said.profiles) == 131072


def test_many_experts_need_plugins(tmp_path: Path) -> None:
    config = DEEPSEEK | {"n_routed_experts": 96, "num_hidden_layers": 2, "num_nextn_predict_layers": 0}
    checkpoint = Checkpoint.open(random_checkpoint(tmp_path / "model", config))
    with pytest.raises(InputError, match=r"computes all 96 experts, 32 times .* leave out `plugins: false`$"):
        rtx.build(checkpoint, rtx.Options(sm=[89], plugins=False), tmp_path, lambda *_: None)


def description(built: tuple[Checkpoint, TargetResult], stem: str) -> dict[str, Any]:
    checkpoint, result = built
    return json.loads((checkpoint.path / result.files[f"{stem}.json"]).read_text())


STEMS = ["rtx-sm80", "rtx-sm80-mtp", "rtx-sm89", "rtx-sm89-mtp"]


@pytest.mark.parametrize("stem", STEMS)
def test_engine(built: tuple[Checkpoint, TargetResult], stem: str) -> None:
    said, data = description(built, stem), (built[0].path / built[1].files[f"{stem}.engine"]).read_bytes()
    assert (said["engine"], said["graph"]) == (f"{stem}.engine", "mtp" if "mtp" in stem else "main")
    assert (said["bytes"], said["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert (said["sm"], said["context"], said["batch"]) == ([int(stem[6:8])], 32, 2)

    # A token, two where a draft is verified, and everything wider up to the context, as `prefill` exceeds it.
    spans = [(1, 1), (2, 2), (3, 32)]
    assert [tuple(profile["tokens"]) for profile in said["profiles"]] == spans
    shapes = [profile["shapes"]["input_ids"] for profile in said["profiles"]]
    assert shapes == [[[1, least], [1, most], [2, most]] for least, most in spans]
    inputs, outputs = ({io["name"]: (io["dtype"], io["shape"]) for io in said[key]} for key in ("inputs", "outputs"))
    last = 2 if "mtp" in stem else 1
    assert inputs[f"past.{last}.latent"] == outputs[f"present.{last}.latent"] == ("bf16", [-1, 1, 32, 80])
    assert outputs["logits"] == ("float", [-1, -1, 96])

    stored = code_bytes(built[0], said["graph"])
    assert stored["int4"] and ("float8e4m3fn" in stored) == (said["graph"] == "main")
    fp8 = stored.get("float8e4m3fn", 0) if said["sm"] == [89] else 0
    assert (said["weight_bytes"]["int4"], said["weight_bytes"].get("float8e4m3fn", 0)) == (stored["int4"], fp8)
    assert len(said["programs"]) == len(spans)
    for program in said["programs"]:
        assert program["sm"] == said["sm"]
        assert program["constant_bytes"]["int4"] >= stored["int4"]
        assert program["constant_bytes"].get("fp8_e4m3", 0) == fp8
    reads = [
        {name: program[name]["int4"] for name in READERS if "int4" in program[name]} for program in said["programs"]
    ]
    assert all(sum(read.values()) == stored["int4"] for read in reads)
    assert ["gathered_bytes" in read for read in reads] == [True, True, False]
    assert not any(program["decoded"] for program in said["programs"])


def test_result(built: tuple[Checkpoint, TargetResult]) -> None:
    checkpoint, result = built
    files = {file.name: file.stat().st_size for file in (checkpoint.path / "engines").iterdir()}
    assert files.keys() == {f"{stem}.{kind}" for stem in STEMS for kind in ("engine", "json")}  # nothing else is left
    assert result.files == {name: f"engines/{name}" for name in files}
    assert result.file_bytes == sum(files.values())
    assert result.weight_bytes == sum(sum(description(built, stem)["weight_bytes"].values()) for stem in STEMS)
    assert result.notes == [
        "FP8 begins with SM 89: the engine for SM 80 computes in bfloat16 instead",
        "no plugins: steps of more than 2 tokens per row compute all 8 experts, 2.67 times the 3 chosen",
        "kv_b_proj is bfloat16: TensorRT multiplies no codes over heads, and would decode it in every step, "
        "4.5 bytes of traffic or more for a weight instead of 2",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["programs"][1]["constant_bytes"].update(int4=7), r"int4 weights only 7 .* for \[2, 2\] tokens"),
        (lambda d: d["programs"][2]["constant_bytes"].pop("int4"), r"int4 weights only 0 .* for \[3, 32\] tokens"),
        (lambda d: d["programs"][0]["constant_bytes"].update(fp8_e4m3=8), r"float8e4m3fn weights only 8 .* \[1, 1\]"),
        (lambda d: d.update(bytes=d["bytes"] + (2 << 20)), r"holds \d+ bytes for \d+ bytes of weights"),
    ],
)
def test_widened_codes_are_noticed(
    built: tuple[Checkpoint, TargetResult], change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    said = description(built, "rtx-sm89")

    def check() -> None:
        described = EngineDescription.model_validate(said)
        engine._check_codes("rtx-sm89.engine", described)
        engine._check_size("rtx-sm89.engine", described, TENSORRT_RTX.overhead)

    check()
    change(said)
    with pytest.raises(MachineError, match=rf"^rtx-sm89\.engine: .*{message}.*; the compiler widened"):
        check()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Nothing is compiled: {engine: the profiles it was to have}. Every program holds all codes there may be."""
    asked: dict[str, list[Any]] = {}

    def compile_engine(
        package: TensorRTPackage, onnx: Path, path: Path, sm: list[int], profiles: list[Any], *_: Any
    ) -> CompiledEngine:
        asked[path.name] = profiles
        path.write_bytes(b"")
        names = ("input_ids", "cache_position", "logits_index")
        inputs = [EngineTensor(name=name, dtype="int64", shape=[-1]) for name in names]
        return CompiledEngine("1", inputs, [EngineTensor(name="logits", dtype="float", shape=[-1])])

    def inspect(path: Path, profiles: int, weights: dict[str, str]) -> ProgramText:
        counts = dict.fromkeys(engine._CODES.values(), 1 << 40)
        holds = EngineProgram(sm=[], parts=1, constant_bytes=counts, kernels={}, multiplied_bytes=counts)
        return ProgramText(0, [holds] * profiles)

    monkeypatch.setattr(engine, "compile_engine", compile_engine)
    monkeypatch.setattr(engine, "inspect", inspect)
    return asked


def test_build_checks_the_codes(
    compiled: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkpoint = quantized_checkpoint(tmp_path, *CASES["llama"])
    empty = EngineProgram(sm=[], parts=1, constant_bytes={}, kernels={})
    monkeypatch.setattr(engine, "inspect", lambda *_: ProgramText(0, [empty] * 2))
    with pytest.raises(MachineError, match=r"^rtx-sm89\.engine: of \d+ bytes of int4 weights only 0 "):
        rtx.build(checkpoint, rtx.Options(sm=[89]), tmp_path, lambda *_: None)
    assert list(compiled) == ["rtx-sm89.engine"] and not (tmp_path / "engines/rtx-sm89.json").exists()


def test_old_gpus_get_no_fp8(compiled: dict[str, list[Any]], tmp_path: Path) -> None:
    """Even where only the multi-token-prediction layer has some."""
    checkpoint = quantized_checkpoint(tmp_path, DEEPSEEK | {"num_hidden_layers": 1}, {"mtp": "fp8-channel"})
    result = rtx.build(checkpoint, rtx.Options(sm=[80, 86, 89], plugins=False), checkpoint.path, lambda *_: None)
    fp8 = {n: "float8e4m3fn" in each["weight_bytes"] for each in result.details.values() for n in each["sm"]}
    assert fp8 == {80: False, 86: False, 89: True}


@pytest.mark.parametrize(("limit", "context", "got"), [(8192, None, 4096), (256, None, 256), (256, 64, 64)])
def test_context(compiled: dict[str, list[Any]], limit: int, context: int | None, got: int, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(random_checkpoint(tmp_path / "model", LLAMA, max_position_embeddings=limit))
    options = rtx.Options(sm=[120, 89, 120], context=context, batch=4, prefill=128)
    rtx.build(checkpoint, options, tmp_path, lambda *_: None)
    decode, prefill = compiled["rtx-sm89-sm120.engine"]
    assert "window" not in decode
    assert decode["past.1.key"] == [[1, 2, got, 8], [1, 2, got, 8], [4, 2, got, 8]]
    most = min(128, got)
    assert prefill["logits_index"] == [[1, 1], [1, 1], [4, most]]
    with pytest.raises(
        InputError, match=rf"^target tensorrt-rtx: context is {limit + 1}, but the model ends at {limit}$"
    ):
        rtx.build(checkpoint, rtx.Options(context=limit + 1), tmp_path / "beyond", lambda *_: None)
    assert not (tmp_path / "beyond").exists()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("sm: [89, 42]", "sm is [42]; it compiles for 80, 86, 89, 120, 121"),
        ("sm: []", "sm is []; it compiles for 80"),
        ("plugins: maybe", "plugins"),
        ("contex: 64", "did you mean 'context'?"),
        ("prefill: 8", "prefill"),
        ("timeout: 0", "timeout"),
    ],
)
def test_options_refused(options: str, part: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: x\ntargets:\n  - tensorrt-rtx: {{{options}}}")
    with pytest.raises(InputError) as caught:
        read_recipe(recipe)
    message = str(caught.value)
    assert message.startswith(f"{recipe}:3: ") and part in message and "\n" not in message


def test_package_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(random_checkpoint(tmp_path / "model", LLAMA))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "tensorrt_rtx" else find(name, *a)
    )
    with pytest.raises(MissingPackageError, match=r"not installed on this machine; pip install .*\[rtx\]'$"):
        rtx.build(checkpoint, rtx.Options(), tmp_path, lambda *_: None)
    assert not (tmp_path / "engines").exists()


PROFILE = {"x": ([1, 4], [2, 4], [3, 4])}


@pytest.mark.parametrize(
    ("node", "message"),
    [
        # Refused when read, and when compiled.
        (
            onnx.helper.make_node("Softmax", ["x"], ["y"], name="layers.0/Softmax", axis=7),
            r" at layers\.0/Softmax: .*[Aa]xis must be in the range",
        ),
        (
            onnx.helper.make_node("MatMul", ["x", "x"], ["y"], name="layers.0/MatMul"),
            r": .*layers\.0/MatMul: attempt to multiply two matrices with mismatching dimensions",
        ),
    ],
    ids=["parser", "compiler"],
)
def test_refused_graph(node: onnx.NodeProto, message: str, tmp_path: Path) -> None:
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 4]) for name in "xy")
    graph = onnx.helper.make_graph([node], "main", [x], [y])
    opset = onnx.helper.make_opsetid("", 24)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=11), tmp_path / "main.onnx")
    with pytest.raises(InputError, match=rf"^TensorRT-RTX refuses rtx\.engine{message}") as caught:
        compiler.compile_engine(
            TENSORRT_RTX, tmp_path / "main.onnx", tmp_path / "rtx.engine", [89], [PROFILE], 60, lambda _: None
        )
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["main.onnx"]


NEVER_READ = "sys.exit('no library')"  # as when it cannot be loaded


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("input(); os.abort()", r"the compiler crashed \(signal SIGABRT\); last output: none$"),
        (
            "input(); sys.stderr.write('so much\\nto do\\n\\n'); os.kill(os.getpid(), signal.SIGKILL)",
            r"the compiler crashed \(signal SIGKILL, as when memory runs out\); last output: to do$",
        ),
        (NEVER_READ, r"the compiler crashed \(exit code 1\); last output: no library$"),
        ("input(); time.sleep(600)", r"not done after 2 s; raise `timeout` of the target"),
    ],
    ids=["aborts", "is killed", "never reads", "hangs"],
)
def test_compiler_dies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, message: str) -> None:
    (tmp_path / "compiler_process.py").write_text(f"import os, signal, sys, time\n{script}")
    monkeypatch.setattr(compiler, "__file__", str(tmp_path / "compiler.py"))
    profiles = [PROFILE] * (10000 if script == NEVER_READ else 1)  # so many are more than a pipe holds
    timeout = 2 if "sleep" in script else 60
    with pytest.raises(MachineError, match=rf"^compiling rtx\.engine: {message}"):
        compiler.compile_engine(
            TENSORRT_RTX, tmp_path / "main.onnx", tmp_path / "rtx.engine", [89], profiles, timeout, lambda _: None
        )
