"""Graphs with plugins against the torch blocks, the plugins' meaning spelled out; and the engines compiled of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from support.graph_comparison import WIDTHS, compare_narrow_steps, compare_with_torch, write_graphs
from support.plugin_functions import add_plugin_functions
from support.quantized_checkpoint import CASES, DEEPSEEK, quantized_checkpoint
from support.random_checkpoint import LLAMA, QWEN2

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.engines import plugins as plugin_nodes
from llmc.convert.engines.compiler import compile_engine
from llmc.convert.engines.latent_attention import widest_absorbed
from llmc.convert.engines.lowering import lower
from llmc.convert.engines.plugins import Plugins
from llmc.convert.families import family_of
from llmc.convert.graph.build import graphs
from llmc.convert.kernels.kernel_sets import KernelRequest, kernel_sets
from llmc.convert.spec import LatentAttentionSpec
from llmc.convert.targets import TargetResult, target
from llmc.errors import InputError, MissingPackageError
from llmc.quant.layerwise import QuantizeOptions
from llmc.recipe import read_recipe
from llmc.runtime.plugins import kernel_set
from llmc.runtime.plugins.latent_attention import LatentAttentionPlugin, LatentShape
from llmc.tensorrt_package import TENSORRT_RTX

pytestmark = pytest.mark.slow

pytest.importorskip("triton", reason="Triton, which comes with torch for NVIDIA GPUs, is not installed")

rtx = target("tensorrt-rtx")
# The others have FP8 in blocks for `llmc.Linear` alone.
NAMES = [name for name in CASES if "deepseek" in name] + ["qwen2, tied", "llama, dynamic inputs and an FP8 cache"]


def lowered(checkpoint: Checkpoint, absorbed: int | None = None) -> dict[str, ir.Model]:
    """With functions of standard operators in the place of plugins."""
    models, plugins = graphs(checkpoint, ir.DataType.FLOAT, 64), Plugins()
    for model in models.values():
        lower(
            model,
            checkpoint.spec,
            ir.DataType.FLOAT,
            {"int4", "int8", "float8_e4m3fn"},
            WIDTHS,
            2,
            plugins,
            absorbed=absorbed,
        )
        if isinstance(checkpoint.spec.attentions[0], LatentAttentionSpec):
            assert not {"Attention", "Softmax"} & {node.op_type for node in model.graph}
        add_plugin_functions(model, checkpoint.spec, plugins)
    return models


@pytest.mark.parametrize("name", NAMES)
def test_lowered_equals_torch(name: str, tmp_path: Path) -> None:
    checkpoint = quantized_checkpoint(tmp_path, *CASES[name])
    result = write_graphs(checkpoint, lowered(checkpoint))
    compare_with_torch(checkpoint, result)
    compare_narrow_steps(checkpoint, result)


@pytest.mark.parametrize("float8", [False, True], ids=["bf16", "fp8"])
def test_expanded_for_many_tokens_and_absorbed_for_few(float8: bool, tmp_path: Path) -> None:
    """Steps of up to four tokens, and of more."""
    options = QuantizeOptions(fp8_cache=float8)
    checkpoint = quantized_checkpoint(tmp_path, DEEPSEEK | {"num_hidden_layers": 2}, {"attention": "int4-g32"}, options)
    models = lowered(checkpoint, 4)
    for model in models.values():
        operations = [node.op_type for node in model.graph if node.op_type.endswith("LatentAttention")]
        assert operations == ["PhasedLatentAttention"] * (1 if model.graph.name == "mtp" else 2)
    result = write_graphs(checkpoint, models)
    compare_with_torch(checkpoint, result)
    compare_narrow_steps(checkpoint, result)


@pytest.mark.parametrize(
    ("sizes", "prefill", "context", "widest"),
    [
        ((512, 128, 64, 128), 512, 4096, 170),
        ((512, 128, 64, 128), 170, 4096, None),
        ((512, 128, 64, 128), 512, 1024, None),
        ((512, 192, 64, 256), 2048, 4096, 398),
        ((64, 32, 16, 32), 512, 4096, 128),
        ((64, 64, 16, 64), 512, 4096, None),
        ((512, 256, 64, 128), 512, 4096, None),
    ],
)
def test_steps_of_how_many_tokens_are_absorbed(
    sizes: tuple[int, int, int, int], prefill: int, context: int, widest: int | None
) -> None:
    """DeepSeek-R1's and GLM-4.7-Flash's, small ones, and those that there are no kernels for or that gain nothing."""
    names = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    config = DEEPSEEK | dict(zip(names, sizes, strict=True)) | {"head_dim": sizes[2]}
    assert widest_absorbed(family_of(config).spec(config), prefill, context) == widest
    assert widest_absorbed(family_of(LLAMA).spec(LLAMA), prefill, context) is None


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, TargetResult]:
    """Engines of a model with int4 and FP8 and an FP8 cache."""
    schemes = {"experts": "int4-g32", "attention": "fp8-block"}
    config = DEEPSEEK | {"num_hidden_layers": 2}
    checkpoint = quantized_checkpoint(
        tmp_path_factory.mktemp("engines"), config, schemes, QuantizeOptions(fp8_cache=True)
    )
    return checkpoint, rtx.build(checkpoint, rtx.Options(sm=[80, 121], context=32), checkpoint.path, lambda *_: None)


def description(built: tuple[Checkpoint, TargetResult], stem: str) -> dict[str, Any]:
    return json.loads((built[0].path / f"engines/{stem}.json").read_text())


@pytest.mark.parametrize("sm", [80, 121])
def test_engines_hold_plugins(built: tuple[Checkpoint, TargetResult], sm: int) -> None:
    for graph, layers in (("", 2), ("-mtp", 1)):
        said = description(built, f"rtx-sm{sm}{graph}")
        # Attention's FP8 is in single blocks, which TensorRT multiplies by, where there is FP8.
        products = 4 * layers if sm < 89 and not graph else 0
        linear = ["Linear"] if products else []
        operations = ("AppendFloat8", "GroupedTopK", "LatentAttention", *linear, "MixtureOfExperts")
        assert said["plugins"] == [f"llmc.{name}" for name in operations]
        assert said["kernels"] == f"rtx-sm{sm}.kernels.safetensors" in built[1].files
        # Cut where the cache is written: what lies between is a program of its own.
        assert [program["parts"] for program in said["programs"]] == [layers + 1] * 3
        assert all(program["kernels"]["custom_layer"] == layers + 2 + products for program in said["programs"])
        packed = {kind: count for kind, count in said["weight_bytes"].items() if kind == "int32"}
        assert bool(packed) != bool(graph) and all(program["plugin_bytes"] == packed for program in said["programs"])
        cache = {io["name"]: (io["dtype"], io["shape"]) for io in (*said["inputs"], *said["outputs"])}
        layer = 2 if graph else 1
        assert cache[f"past.{layer}.latent"] == cache[f"present.{layer}.latent"] == ("int8", [-1, 1, 32, 80])
        data = (built[0].path / f"engines/{said['engine']}").read_bytes()
        assert b"userRunTime" not in data  # no memory is asked for in a step
        sets = kernel_set.read(built[0].path / f"engines/{said['kernels']}")
        needed = {key: sets[key] for key in said["kernel_sets"]}
        assert {f"llmc.{each.operation}" for each in needed.values()} == set(said["plugins"])
        for key, each in needed.items():
            assert key.encode() in data  # that is how the engine finds them
            assert list(each.layouts) == [sm] and each.fitting(sm) == sm


SMALL = {"hidden_size": 128, "intermediate_size": 256}
QWEN3_MOE = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "moe_intermediate_size": 128}
FAMILIES = {
    "deepseek-v3": DEEPSEEK,
    "quickstart": DEEPSEEK,
    "llama-3.1-8b": LLAMA,
    "r1-distill-qwen-7b": QWEN2,
    "qwen3-30b-a3b": LLAMA | QWEN3_MOE | {"num_experts": 8, "num_experts_per_tok": 2, "head_dim": 32},
}
RECIPES = sorted(path.stem for path in (Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_shipped_recipe_compiles(name: str, tmp_path: Path) -> None:
    """A small model of its family, by its rules and for its GPUs."""
    recipe = read_recipe(Path(__file__).parents[2] / f"recipes/{name}.yaml")
    rules = {rule.match: rule.scheme for rule in recipe.quantize}
    config = FAMILIES[name] | SMALL | {"num_hidden_layers": 2}
    if "moe_intermediate_size" in config:
        config["moe_intermediate_size"] = 128
    checkpoint = quantized_checkpoint(tmp_path, config, rules)
    given = next((each["tensorrt-rtx"] for each in recipe.targets if "tensorrt-rtx" in each), {"sm": [89]})
    options = rtx.Options(**(given or {}) | {"context": 32})
    result = rtx.build(checkpoint, options, checkpoint.path, lambda *_: None)
    sms = [sm for each in result.details.values() for sm in each["sm"]]
    assert set(sms) == set(options.sm)
    for each in result.details.values():
        assert ("int4" in each["weight_bytes"]) or ("int32" in each["weight_bytes"]) or checkpoint.spec.num_mtp_layers


def test_a_kernel_file_that_was_changed_is_refused(built: tuple[Checkpoint, TargetResult], tmp_path: Path) -> None:
    file = built[0].path / "engines/rtx-sm80.kernels.safetensors"
    (attention,) = (each for each in kernel_set.read(file).values() if each.operation == "LatentAttention")
    damaged = tmp_path / "kernels.safetensors"
    data = bytearray(file.read_bytes())
    data[-100:] = bytes(100)
    damaged.write_bytes(data)
    digests = {
        kernel["cubin"]
        for each in kernel_set.read(damaged).values()
        for compiled in each.told["sm"].values()
        for kernel in compiled["kernels"].values()
    }
    refused = 0
    for digest in digests:
        try:
            kernel_set._cubin(damaged, digest)
        except InputError as error:
            assert "is not the kernel that was built; download it again" in str(error)
            refused += 1
    assert refused == 1
    damaged.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"kernels.safetensors: no kernels of llmc .*; build or download"):
        kernel_set.read(damaged)
    assert LatentAttentionPlugin(attention, 1.0).inputs[1].type == "i8"


@pytest.fixture(scope="module")
def attention_kernels(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Key and file."""
    file = tmp_path_factory.mktemp("kernels") / "rtx.kernels.safetensors"
    wanted = KernelRequest("LatentAttention", LatentShape(4, 32, 16, "bf16"))
    (made,) = kernel_sets([wanted], [89], lambda _: None)
    kernel_set.write(file, [made])
    return made.key, file


BF16, FP16, INT64 = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64


@pytest.mark.parametrize(
    ("query", "cache", "kind", "key", "message"),
    [
        ([1, 4, 2, 48], [1, 1, 64, 48], BF16, None, None),
        (
            [1, 4, 2, 40],
            [1, 1, 64, 48],
            BF16,
            None,
            r"LatentAttention: input 0 is bf16 \[1, 4, 2, 40\], not InputSpec\(",
        ),
        (
            [1, 4, 2, 48],
            [1, 2, 64, 48],
            BF16,
            None,
            r"LatentAttention: input 1 is bf16 \[1, 2, 64, 48\], not InputSpec\(",
        ),
        ([1, 4, 2, 48], [1, 1, 64, 48], FP16, None, r"LatentAttention: input 0 is fp16 .*, not InputSpec\(type='bf16'"),
        ([1, 4, 2, 48], [1, 1, 64, 48], BF16, "0" * 64, r"kernels '0+' of LatentAttention are not registered"),
    ],
    ids=["right", "channels", "heads of the cache", "type", "kernels"],
)
def test_plugins_look_at_what_they_are_given(
    attention_kernels: tuple[str, Path],
    query: list[int],
    cache: list[int],
    kind: int,
    key: str | None,
    message: str | None,
    tmp_path: Path,
) -> None:
    known, kernels = attention_kernels
    node = onnx.helper.make_node(
        "LatentAttention", ["q", "c", "p"], ["y"], "layer/LatentAttention", domain="llmc",
        kernels=key or known, scale=0.5, cache_scale=1.0,
    )  # fmt: skip
    value = onnx.helper.make_tensor_value_info
    inputs = [value("q", kind, query), value("c", kind, cache), value("p", INT64, [1])]
    graph = onnx.helper.make_graph([node], "main", inputs, [value("y", kind, [*query[:3], 32])])
    opsets = [onnx.helper.make_opsetid("", 24), onnx.helper.make_opsetid("llmc", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=11), tmp_path / "main.onnx")
    profile = {"q": [query] * 3, "c": [cache] * 3, "p": [[1]] * 3}
    given = TENSORRT_RTX, tmp_path / "main.onnx", tmp_path / "rtx.engine", [89], [profile], 60
    if message is None:
        said = compile_engine(*given, lambda _: None, kernels)
        assert [each.to_json() for each in said.outputs] == [{"name": "y", "dtype": "bf16", "shape": [1, 4, 2, 32]}]
        return
    with pytest.raises(InputError, match=rf"^TensorRT-RTX refuses rtx\.engine.*: .*{message}") as caught:
        compile_engine(*given, lambda _: None, kernels)
    assert "\n" not in str(caught.value)


ROUND_TRIP = """
import sys
from pathlib import Path
import numpy as np
import tensorrt_rtx as trt
from llmc.runtime.plugins import tensorrt as plugins

(key,) = plugins.register(trt, Path(sys.argv[1]))
(creator,) = (each for each in plugins._creators["tensorrt_rtx"] if each.name == "LatentAttention")
given = [trt.PluginField("kernels", np.frombuffer(key.encode(), np.int8), trt.PluginFieldType.CHAR)]
for name, value in (("scale", 0.25), ("cache_scale", 0.5)):
    given.append(trt.PluginField(name, np.array([value], np.float32), trt.PluginFieldType.FLOAT32))
made = creator.create_plugin("a", trt.PluginFieldCollection(given), trt.TensorRTPhase.BUILD)
again = creator.create_plugin("a", made.get_fields_to_serialize(), trt.TensorRTPhase.RUNTIME).clone()
for each in (made, again):
    operation = each.operation
    assert (operation.scale, operation.cache_scale, operation.kernels.key) == (0.25, 0.5, key), vars(operation)
assert (again.plugin_name, again.plugin_namespace, again.plugin_version) == ("LatentAttention", "llmc", "1")
assert plugins.register(trt, Path(sys.argv[1])) == {key}  # a second artifact in the same process
"""


def test_an_engine_gives_plugins_what_it_was_told(attention_kernels: tuple[str, Path]) -> None:
    """Nothing but what is serialized, and the kernels."""
    command = [sys.executable, "-c", ROUND_TRIP, str(attention_kernels[1])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


REFUSED = """
import sys
from pathlib import Path
import numpy as np
import tensorrt_rtx as trt
from llmc.errors import MachineError
from llmc.runtime.plugins import tensorrt as plugins
from llmc.runtime.plugins.operation import Gpu

(key,) = plugins.register(trt, Path(sys.argv[1]))
(creator,) = (each for each in plugins._creators["tensorrt_rtx"] if each.name == "LatentAttention")
given = [trt.PluginField("kernels", np.frombuffer(key.encode(), np.int8), trt.PluginFieldType.CHAR)]
for name in ("scale", "cache_scale"):
    given.append(trt.PluginField(name, np.ones(1, np.float32), trt.PluginFieldType.FLOAT32))
made = creator.create_plugin("a", trt.PluginFieldCollection(given), trt.TensorRTPhase.RUNTIME)
asked = []
made.operation.launch = lambda *arguments: asked.append(arguments)
Gpu.current = classmethod(lambda kind: Gpu(sm=90, multiprocessors=132))
attached = made.attach_to_context(None).clone()
for _ in range(2):
    try:
        attached.enqueue([], [], [], [], 0, 0)
    except MachineError as error:
        print(error)
assert not asked and len(plugins.failures) == 2
Gpu.current = classmethod(lambda kind: Gpu(sm=89, multiprocessors=142))
made.operation.kernels.load = lambda sm, device: asked.append((sm, device))
attached, gpu = made.attach_to_context(None), Gpu(sm=89, multiprocessors=142)
Gpu.current = None  # is not asked for in a step
shapes = ((1, 4, 2, 48), (1, 1, 64, 48), (1,)), ((1, 4, 1, 48), (1, 1, 64, 48), (1,))
for shape in (shapes[0], shapes[0], shapes[1], shapes[0]):
    described = [trt.PluginTensorDesc() for _ in shape]
    for each, size in zip(described, shape):
        each.dims = trt.Dims(size)
    attached.enqueue(described, [], [256, 512, 768], [1024], 1280, 7)
assert asked[0] == (89, 0) and [(on, tuple(sizes)) for on, sizes, *_ in asked[1:]] == [(gpu, each) for each in shapes]
"""


def test_a_plugin_says_at_its_first_step_why_its_kernels_were_not_loaded(attention_kernels: tuple[str, Path]) -> None:
    """Where they were to be loaded, an exception would end the process."""
    done = subprocess.run([sys.executable, "-c", REFUSED, str(attention_kernels[1])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reason = "its kernels are for SM 89, this GPU is SM 90; build again with this SM"
    assert done.stdout.splitlines() == [f"LatentAttention: {reason}"] * 2


def test_without_triton(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = plugin_nodes.importlib.util.find_spec
    monkeypatch.setattr(
        plugin_nodes.importlib.util, "find_spec", lambda name, *a: None if name == "triton" else find(name, *a)
    )
    checkpoint = quantized_checkpoint(tmp_path, DEEPSEEK | {"num_hidden_layers": 1}, {})
    with pytest.raises(MissingPackageError, match=r"pip install .*\[build\]', or set `plugins: false`$"):
        rtx.build(checkpoint, rtx.Options(sm=[89], context=32), checkpoint.path, lambda *_: None)
