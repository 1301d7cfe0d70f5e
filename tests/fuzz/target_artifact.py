"""An artifact of which one file is damaged: its manifest, or another one that its manifest vouches for all the same,
since a stranger writes both. Whatever the runtime, `check` and `inspect` read of it is read."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from damage import damaged_bytes, damaged_file, damaged_json
from harness import Case, Target
from hypothesis import strategies as st

from llmc.errors import LlmcError
from llmc.runtime import load
from llmc.runtime.artifact import REFERENCE, Artifact
from llmc.runtime.backends.built_engines import built_engines
from llmc.runtime.chat import ChatTemplate
from llmc.runtime.plugins import kernel_set
from llmc.runtime.plugins.tensorrt import operations
from llmc.runtime.reference import read_reference
from llmc.runtime.tokenizer import TOKENIZER, Tokenizer
from llmc.tables import inspect
from llmc.tensorrt_package import TENSORRT_RTX

HERE = Path(__file__).parent
LOADED = 40  # one case in so many starts ONNX Runtime
ENGINE, DESCRIPTION, KERNELS = "engines/a.engine", "engines/a.json", "engines/a.kernels.safetensors"
SPOKEN = ("tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "generation_config.json")
MESSAGES = [{"role": "user", "content": "Hi"}]
TEMPLATE = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ bos_token }}"
    "{% for message in messages %}<{{ message.role }}>{{ message.content | trim }}{% endfor %}{{ strftime_now('%Y') }}"
)
# The recipe of the artifact, in the folder of its model and text.
RECIPE = """
model: model
calibration: {text: words.txt, samples: 2, length: 16}
quantize: [{match: experts, scheme: int4-g32, method: rtn}]
check: {text: words.txt, tokens: 64, length: 16, gates: {kl_mean: 9.0, top1: 0.0001}}
"""


def target() -> Target:
    with tempfile.TemporaryDirectory() as base:
        subprocess.run([sys.executable, __file__, base], check=True)  # torch stays out of this process
        artifact = Path(base) / "artifact"
        contents = {path.relative_to(artifact).as_posix(): path.read_bytes() for path in files(artifact)}

    def damaged(name: str) -> st.SearchStrategy[Case]:
        data = contents[name]
        made = damaged_bytes(data)
        if name.endswith(".json"):
            made = damaged_file(data)
        elif name.endswith(".safetensors"):
            made = st.one_of(damaged_header(data), damaged_header(data), damaged_bytes(data))
        return made.map(lambda found: {name: found})

    often = ["llmc.json", "llmc.json", "reference.safetensors", DESCRIPTION, KERNELS, "tokenizer.json"]
    names = [*often, *sorted(contents.keys() & {"model.onnx", "mtp.onnx", *SPOKEN})]

    def run(folder: Path) -> None:
        changed = {path.relative_to(folder).as_posix() for path in files(folder)}
        for name, data in contents.items():
            if name not in changed:
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes(data)
        if "llmc.json" not in changed:
            vouch(folder, changed)
        use(folder, changed)

    return Target(st.sampled_from(names).flatmap(damaged), run)


def damaged_header(data: bytes) -> st.SearchStrategy[bytes]:
    """A safetensors file whose header is damaged as a tree, and with it what llmc keeps in its metadata."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    told = header.get("__metadata__", {}).get(kernel_set.METADATA)

    def pack(tree: Any) -> bytes:
        packed = json.dumps(tree).encode()
        return len(packed).to_bytes(8, "little") + packed + data[8 + length :]

    trees = damaged_json(header).map(pack)
    if told is None:
        return trees
    inner = damaged_json(json.loads(told)).map(
        lambda tree: pack(header | {"__metadata__": {kernel_set.METADATA: json.dumps(tree)}})
    )
    return st.one_of(trees, inner, inner)


def use(folder: Path, changed: set[str]) -> None:
    """All that anything reads of an artifact, as far as it depends on what was changed."""
    attempt(lambda: inspect(folder))
    for name in {ENGINE, DESCRIPTION, KERNELS} & changed:
        attempt(lambda name=name: inspect(folder / name))  # type: ignore[misc]
    artifact = Artifact.open(folder)
    attempt(artifact.verify)
    readers: dict[tuple[str, ...], Callable[[Artifact], Any]] = {
        (REFERENCE,): read_reference,
        (TOKENIZER,): tokenize,
        SPOKEN: lambda artifact: ChatTemplate(artifact).render(MESSAGES),
        (ENGINE, DESCRIPTION, KERNELS): engines,
        ("model.onnx", "mtp.onnx"): graphs,
    }
    for names, read in readers.items():
        if changed & {*names, "llmc.json"}:
            attempt(lambda read=read: read(artifact))  # type: ignore[misc]
    if int.from_bytes(hashlib.sha256((folder / "llmc.json").read_bytes()).digest()[:4]) % LOADED == 0:
        with load(folder, backend="onnxruntime", threads=1) as model:
            attempt(lambda: model.check())
            attempt(lambda: model.generate("ab", max_new_tokens=2))
            attempt(lambda: model.chat(MESSAGES, max_new_tokens=2))


def graphs(artifact: Artifact) -> None:
    for role in ("main", "mtp"):
        if name := artifact.target_file("onnxruntime", role):
            artifact.graph(name)


def tokenize(artifact: Artifact) -> None:
    tokenizer = Tokenizer(artifact, artifact.vocab_size, artifact.add_bos)
    tokenizer.decode(tokenizer.encode("The first two words. \u00e9\u4f60").ids)


def engines(artifact: Artifact) -> None:
    for engine in built_engines(TENSORRT_RTX, artifact):
        if engine.kernels:
            file = artifact.verified(engine.kernels)
            for each in kernel_set.read(file).values():
                assert each.key and each.layouts
                attempt(lambda each=each: kernel_set.write(artifact.path / "again.safetensors", [each]))  # type: ignore[misc]


def attempt(call: Callable[[], Any]) -> None:
    with suppress(LlmcError):
        call()


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def vouch(folder: Path, names: set[str] | None = None) -> None:
    """The manifest lists these files, or all, as they are."""
    manifest = json.loads((folder / "llmc.json").read_text())
    for path in files(folder):
        name = path.relative_to(folder).as_posix()
        if name != "llmc.json" and (names is None or name in names):
            data = path.read_bytes()
            manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "llmc.json").write_text(json.dumps(manifest))


def make(base: Path) -> None:
    """base/artifact: a DeepSeek-V3 of a few parameters, quantized, with engines that are none."""
    from support.random_checkpoint import DEEPSEEK_V3, random_checkpoint
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers

    sizes = {
        "vocab_size": 260,
        "hidden_size": 32,
        "intermediate_size": 32,
        "moe_intermediate_size": 32,
        "q_lora_rank": 32,
    }
    sizes |= {"num_hidden_layers": 2, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1}
    model = random_checkpoint(base / "model", DEEPSEEK_V3, max_position_embeddings=64, **sizes)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<bos>", "<eos>", *alphabet, "th", "the"])}
    tokenizer = Library(models.BPE(vocab=vocabulary, merges=[("t", "h"), ("th", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<bos>", "<eos>"])
    tokenizer.save(str(model / "tokenizer.json"))
    named = {"bos_token": "<bos>", "eos_token": {"content": "<eos>"}, "extra_special_tokens": {"image_token": "<eos>"}}
    (model / "tokenizer_config.json").write_text(json.dumps(named))
    (model / "chat_template.jinja").write_text(TEMPLATE)
    (base / "words.txt").write_text("the three thousand others\n" * 2000)
    (base / "recipe.yaml").write_text(RECIPE)
    command = [sys.executable, "-m", "llmc.cli", "build", "recipe.yaml", "-o", "artifact"]
    subprocess.run(command, cwd=base, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    artifact = base / "artifact"
    if not (artifact / "chat_template.jinja").exists():
        shutil.copy(model / "chat_template.jinja", artifact)
    add_engine(artifact)
    vouch(artifact)


def add_engine(artifact: Path) -> None:
    (artifact / "engines").mkdir()
    (artifact / ENGINE).write_bytes(b"engine")
    told = [kernels(operation.name) for operation in operations.all.values()]
    sets = [kernel_set.KernelSet(each, lambda _: b"cubin") for each in told]
    kernel_set.write(artifact / KERNELS, sets)
    shape = [-1, 1, 64, 48]
    description = {
        "engine": Path(ENGINE).name, "graph": "main", "sm": [80, 86], "package": "tensorrt_rtx", "release": "1",
        "context": 64, "batch": 2, "plugins": ["llmc.LatentAttention"], "kernels": Path(KERNELS).name,
        "kernel_sets": [each.key for each in sets], "sha256": hashlib.sha256(b"engine").hexdigest(), "bytes": 6,
        "text_bytes": 1, "weight_bytes": {"int4": 5},
        "profiles": [{"tokens": [1, 1], "window": 64}, {"tokens": [2, 32], "window": 64}],
        "inputs": [
            {"name": "input_ids", "dtype": "int64", "shape": [-1, -1]},
            {"name": "position_ids", "dtype": "int64", "shape": [-1, -1]},
            {"name": "cache_position", "dtype": "int64", "shape": [-1]},
            {"name": "logits_index", "dtype": "int64", "shape": [-1, -1]},
            {"name": "past.0.latent", "dtype": "bf16", "shape": shape},
        ],
        "outputs": [
            {"name": "logits", "dtype": "float", "shape": [-1, -1, 260]},
            {"name": "present.0.latent", "dtype": "bf16", "shape": shape},
        ],
    }  # fmt: skip
    (artifact / DESCRIPTION).write_text(json.dumps(description))
    manifest = json.loads((artifact / "llmc.json").read_text())
    names = {Path(name).name: name for name in (ENGINE, DESCRIPTION, KERNELS)}
    manifest["targets"]["tensorrt-rtx"] = {"name": "tensorrt-rtx", "files": names, "file_bytes": 6, "notes": []}
    (artifact / "llmc.json").write_text(json.dumps(manifest))


def kernels(operation: str) -> dict[str, Any]:
    """A kernel set as `llmc.convert.kernels` makes them, but for its cubin."""
    kernel = {
        "name": "k", "sm": 80, "threads": 128, "shared_bytes": 1024, "alignment": 16, "null_pointers": 2,
        "registers": 40, "stack_bytes": 0, "cubin": hashlib.sha256(b"cubin").hexdigest(),
        "arguments": [{"name": "query", "type": "*bf16"}, {"name": "scale", "type": "fp32"}],
    }  # fmt: skip
    shape = {"heads": 2, "rank": 32, "rope": 16, "dtype": "bf16", "float8": False}
    layout = {"rows": 16, "entries": 32, "channels": 32}
    return {"operation": operation, "shape": shape, "sm": {"80": {"layout": layout, "kernels": {"whole": kernel}}}}


if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    make(Path(sys.argv[1]))
