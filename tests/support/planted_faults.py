"""Faults that are planted in a copy of an artifact, in files that its program reads and its manifest lists anew."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from support.listed_files import list_files

Fault = Callable[[Path], None]
_DTYPES = {
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.UINT8: np.dtype(np.uint8),
}


def planted(artifact: Path, fault: Fault, folder: Path) -> Path:
    """A copy, whose files are links to the artifact's until they are changed."""
    copy = shutil.copytree(artifact, folder, copy_function=os.link)
    _own(copy / "llmc.json")
    fault(copy)
    list_files(copy)
    return folder


def _own(file: Path) -> Path:
    """The file, as one that may be written to."""
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data)
    return file


class Weights:
    """The numbers that a graph reads, wherever they lie."""

    def __init__(self, artifact: Path, graph: str = "model.onnx") -> None:
        self.artifact = artifact
        found = onnx.load(artifact / graph, load_external_data=False).graph.initializer
        self.tensors = {each.name: each for each in found if each.external_data}

    def named(self, *parts: str) -> list[str]:
        return [name for name in self.tensors if all(part in name for part in parts)]

    def read(self, name: str) -> NDArray[np.generic]:
        file, offset, length, tensor = self._place(name)
        data = (self.artifact / file).read_bytes()[offset : offset + length]
        return np.frombuffer(data, _DTYPES[tensor.data_type]).reshape(tuple(tensor.dims)).copy()

    def write(self, name: str, values: NDArray[np.generic]) -> None:
        file, offset, length, tensor = self._place(name)
        data = values.astype(_DTYPES[tensor.data_type]).tobytes()
        assert len(data) == length
        with _own(self.artifact / file).open("r+b") as out:
            out.seek(offset)
            out.write(data)

    def _place(self, name: str) -> tuple[str, int, int, TensorProto]:
        tensor = self.tensors[name]
        found = {entry.key: entry.value for entry in tensor.external_data}
        return found["location"], int(found.get("offset", 0)), int(found["length"]), tensor


def _edited(change: Callable[[ModelProto, dict[str, NodeProto]], None]) -> Fault:
    """A fault of the main graph."""

    def fault(artifact: Path) -> None:
        file = artifact / "model.onnx"
        model = onnx.load(file, load_external_data=False)
        change(model, {node.name: node for node in model.graph.node})
        _own(file).write_bytes(model.SerializeToString())

    return fault


def experts_swapped(artifact: Path) -> None:
    """Two experts of a layer change places, and the router does not know."""
    weights = Weights(artifact)
    names = weights.named("layers.3.mlp.experts.0.")
    assert len(names) == 6  # codes and scales of three matrices, of all experts
    for name in names:
        values = weights.read(name)
        values[[0, 1]] = values[[1, 0]]
        weights.write(name, values)


def scale_wrong(artifact: Path) -> None:
    """One scale, of one group of weights of one expert, is too large by 5 %."""
    weights = Weights(artifact)
    (name,) = weights.named("layers.2.mlp.experts.0.down_proj.weight_scale")
    scales = weights.read(name).astype(np.float32)
    scales.reshape(-1)[5] *= 1.05
    weights.write(name, scales)


def shared_expert_dropped(artifact: Path) -> None:
    _edited(_without_shared_expert)(artifact)


def _without_shared_expert(model: ModelProto, nodes: dict[str, NodeProto]) -> None:
    total = nodes["model.layers.3.mlp/Add"]
    total.op_type = "Identity"
    del total.input[1]


def block_transposed(artifact: Path) -> None:
    """128 rows and columns of codes of a quantized matrix."""
    weights = Weights(artifact)
    (name,) = (each for each in weights.named("layers.1.self_attn.o_proj.weight") if not each.endswith("scales"))
    codes = weights.read(name)
    matrix = codes.reshape(len(codes), -1)
    matrix[:128, :128] = matrix[:128, :128].T.copy()
    weights.write(name, matrix.reshape(codes.shape))


def queries_rotated_too_far(artifact: Path) -> None:
    """RoPE of queries is that of the next position. If keys' were, too, nothing would be wrong."""
    _edited(lambda model, nodes: _rotated(model, nodes, keys=False))(artifact)


def all_rotated_too_far(artifact: Path) -> None:
    """No fault: what attention sees of positions is their difference."""
    _edited(lambda model, nodes: _rotated(model, nodes, keys=True))(artifact)


def _rotated(model: ModelProto, nodes: dict[str, NodeProto], keys: bool) -> None:
    """Feeds rotations from positions that are one larger."""
    model.graph.initializer.append(helper.make_tensor("one", TensorProto.INT64, [], [1]))
    ahead = [helper.make_node("Add", ["position_ids", "one"], ["positions.ahead"])]
    made = {"position_ids": "positions.ahead"}
    for node in model.graph.node:
        if node.op_type in ("Cast", "Unsqueeze", "Mul", "Cos", "Sin") and made.keys() & set(node.input):
            copy = NodeProto.FromString(node.SerializeToString())
            copy.name += ".ahead"
            copy.input[:] = [made.get(each, each) for each in node.input]
            copy.output[:] = [f"{each}.ahead" for each in node.output]
            made |= dict(zip(node.output, copy.output, strict=True))
            ahead.append(copy)
    rotations = [node for node in nodes.values() if node.op_type == "RotaryEmbedding"]
    assert len(rotations) == 8
    for node in rotations:
        of_keys = nodes[node.name.rpartition("/")[0] + "/RotaryEmbedding"] is node  # made before that of queries
        if keys or not of_keys:
            node.input[1], node.input[2] = made[node.input[1]], made[node.input[2]]
    # Constants come first, where all that is new finds them.
    rest = [node for node in model.graph.node if node.op_type != "Constant"]
    constants = [node for node in model.graph.node if node.op_type == "Constant"]
    del model.graph.node[:]
    model.graph.node.extend([*constants, *ahead, *rest])


def cache_entry_stale(artifact: Path) -> None:
    """A step of one token writes its entry of one layer's cache over the last one, and reads what was there before."""
    _edited(_stale)(artifact)


def _stale(model: ModelProto, nodes: dict[str, NodeProto]) -> None:
    scatter = next(node for node in nodes.values() if node.op_type == "TensorScatter" and "layers.2." in node.name)
    model.graph.initializer.append(helper.make_tensor("stale.one", TensorProto.INT64, [1], [1]))
    made = [
        helper.make_node("Shape", ["input_ids"], ["stale.width"], start=1, end=2),
        helper.make_node("Equal", ["stale.width", "stale.one"], ["stale.single"]),
        helper.make_node("Cast", ["stale.single"], ["stale.back"], to=TensorProto.INT64),
        helper.make_node("Sub", [scatter.input[2], "stale.back"], ["stale.position"]),
    ]
    scatter.input[2] = "stale.position"
    place = list(model.graph.node).index(scatter)
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*rest[:place], *made, *rest[place:]])


def mtp_of_another_model(artifact: Path) -> None:
    """Its matrices are others, as large as before."""
    main, drafter = Weights(artifact), Weights(artifact, "mtp.onnx")
    generator = np.random.default_rng(0)
    for name in sorted(drafter.tensors.keys() - main.tensors.keys()):
        values = drafter.read(name).astype(np.float32)
        if values.ndim == 2:
            drafter.write(name, values.std() * generator.standard_normal(values.shape))


def template_of_another_model(artifact: Path) -> None:
    template = "{% for each in messages %}### {{ each.role }}:\n{{ each.content }}\n{% endfor %}### assistant:\n"
    _own(artifact / "chat_template.jinja").write_text(template)


def tokens_swapped(artifact: Path) -> None:
    """Two common words change numbers."""
    file = _own(artifact / "tokenizer.json")
    tokenizer = json.loads(file.read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["Ġif"], vocabulary["Ġthe"] = vocabulary["Ġthe"], vocabulary["Ġif"]
    file.write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")


FAULTS: dict[str, Fault] = {
    "one expert swapped with another": experts_swapped,
    "one scale 5 % wrong": scale_wrong,
    "RoPE of queries off by one": queries_rotated_too_far,
    "a stale cache entry": cache_entry_stale,
    "a dropped shared expert": shared_expert_dropped,
    "a transposed block": block_transposed,
    "MTP of another model": mtp_of_another_model,
    "a wrong chat template": template_of_another_model,
    "two tokens swapped": tokens_swapped,
}
