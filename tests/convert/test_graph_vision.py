"""The graph of a vision tower, and the decoder's with features between its tokens, against torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from support.graph_session import GraphSession
from support.nvlm import ADDED, CONFIG, TILE, TOKEN, Nvlm, nvlm
from transformers import InternVLConfig, InternVLModel

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.graph.build import graphs
from llmc.convert.targets import TargetResult, target
from llmc.runtime.external_data import locations
from llmc.runtime.quiet_onnxruntime import onnxruntime as ort

PLAIN: dict[str, dict[str, Any]] = {"onnx": {}, "onnxruntime": {"accuracy_level": 1}}
PLACEHOLDER = 256 + ADDED.index(TOKEN)


def build(folder: Path, name: str = "onnxruntime", **changes: Any) -> tuple[Nvlm, Checkpoint, TargetResult]:
    reference = nvlm(folder / "source", **changes)
    checkpoint, chosen = Checkpoint.open(folder / "source"), target(name)
    return (
        reference,
        checkpoint,
        chosen.build(checkpoint, chosen.Options(**PLAIN[name]), checkpoint.path, lambda *_: None),
    )


def pixels(tiles: int) -> torch.Tensor:
    return torch.randn(tiles, 3, TILE, TILE, generator=torch.Generator().manual_seed(5))


def features(folder: Path, shown: torch.Tensor) -> torch.Tensor:
    session = ort.InferenceSession(str(folder), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["image_features"], {"pixels": shown.numpy()})[0])


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(
    ("outer", "tower", "heads"),
    [
        ({}, {}, 4),
        ({}, {}, 3),
        ({"ps_version": "v1"}, {"norm_type": "layer_norm"}, 3),
        ({"select_layer": -2}, {"qk_normalization": False}, 4),
    ],
    ids=["as published", "no heads of zeros", "InternVL's", "no norms of queries"],
)
def test_tower(name: str, outer: dict[str, Any], tower: dict[str, Any], heads: int, tmp_path: Path) -> None:
    vision = CONFIG["vision_config"] | tower
    reference, checkpoint, result = build(tmp_path, name, heads=heads, vision_config=vision, **outer)
    if "select_layer" in outer:
        reference.config = reference.config | {"vision_config": vision | {"num_hidden_layers": 1}}
    shown = pixels(3)
    expected = reference.features(shown).flatten(0, 1)
    found = features(checkpoint.path / result.files["vision"], shown)
    assert found.shape == expected.shape == (3 * 4, 64)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() < 1e-4


def internvl(reference: Nvlm) -> InternVLModel:
    """transformers' InternVL, whose tower is the same but for names, with the reference's tensors."""
    vision, text = reference.config["vision_config"], reference.config["llm_config"]
    tower = {key: value for key, value in vision.items() if key not in ("architectures", "model_type", "qkv_bias")}
    tower |= {"use_qk_norm": tower.pop("qk_normalization")}
    config = InternVLConfig(
        vision_config=tower, text_config=text, downsample_ratio=reference.config["downsample_ratio"]
    )
    model = InternVLModel._from_config(config, dtype=torch.float32).eval()
    found: dict[str, torch.Tensor] = {}
    for name, tensor in reference.tensors.items():
        if name.endswith("attn.qkv.weight"):
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                found[name.replace("attn.qkv", f"attn.{part}_proj")] = rows
        else:
            found[name] = tensor
    renamed = {_respelled(name): tensor for name, tensor in found.items()}
    wanted = {name: value for name, value in model.state_dict().items() if not name.startswith("language_model.")}
    for name in wanted.keys() - renamed.keys():  # biases that NVLM's projector does not have
        assert name.startswith("multi_modal_projector.linear_") and name.endswith("bias")
        renamed[name] = torch.zeros_like(wanted[name])
    model.load_state_dict({**model.state_dict(), **renamed})
    return model.requires_grad_(False)


_INTERNVL = {
    "vision_model.": "vision_tower.",
    "encoder.layers.": "encoder.layer.",
    ".attn.proj.": ".attention.projection_layer.",
    ".attn.": ".attention.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".ls": ".lambda_",
    "class_embedding": "cls_token",
    "position_embedding": "position_embeddings",
    "patch_embedding.": "patch_embeddings.projection.",
    "mlp1.0.": "multi_modal_projector.layer_norm.",
    "mlp1.1.": "multi_modal_projector.linear_1.",
    "mlp1.3.": "multi_modal_projector.linear_2.",
}


def _respelled(name: str) -> str:
    for ours, theirs in _INTERNVL.items():
        name = name.replace(ours, theirs)
    return name


def test_the_reference_is_internvls(tmp_path: Path) -> None:
    """Without heads of zeros, and with a projector as narrow as InternVL's, it is a model that transformers knows."""
    text = CONFIG["llm_config"] | {"intermediate_size": CONFIG["llm_config"]["hidden_size"]}
    reference = nvlm(tmp_path / "source", heads=3, llm_config=text)
    shown = pixels(2)
    theirs = internvl(reference).get_image_features(pixel_values=shown)
    expected = getattr(theirs, "pooler_output", theirs)
    assert (reference.features(shown) - expected.reshape(2, 4, 64)).abs().max() < 1e-5


def test_weights_are_the_checkpoints_own(tmp_path: Path) -> None:
    """Nothing of the tower is written a second time, but for what is too small to refer to."""
    _, checkpoint, result = build(tmp_path)
    file = checkpoint.path / "vision.onnx"
    assert locations(file.read_bytes()) == {"model.safetensors"}
    assert "data" not in result.files
    onnx.checker.check_model(file, full_check=False)
    kinds = {tensor.data_type for tensor in onnx.load(file, load_external_data=False).graph.initializer}
    assert kinds == {onnx.TensorProto.BFLOAT16}


@pytest.mark.parametrize("name", PLAIN)
def test_features_between_tokens(name: str, tmp_path: Path) -> None:
    """In a batch: an image, text alone; then steps without features."""
    reference, checkpoint, result = build(tmp_path, name)
    shown = pixels(2)
    rows = [[10, 11, *[PLACEHOLDER] * 8, 12, 13], [20, 21, *[22] * 8, 23, 24]]
    expected = torch.stack([reference.logits(rows[0], shown), reference.logits(rows[1])])
    graph = GraphSession(checkpoint.path / result.files["main"], batch=2)
    whole = torch.tensor(rows)
    found = []
    for start, stop in ((0, 6), (6, 11), (11, 12)):
        places = [place for place in range(start, stop) if 2 <= place < 10]
        made = reference.features(shown).flatten(0, 1)[[place - 2 for place in places]]
        at = torch.tensor([[0, place - start] for place in places], dtype=torch.int64).reshape(-1, 2)
        logits, _ = graph.step(whole[:, start:stop], [start, start], image_features=made, image_positions=at)
        found.append(logits)
    difference = (torch.cat(found, 1).log_softmax(-1) - expected.log_softmax(-1)).abs().max()
    assert difference < 1e-4
    blind = reference.logits(rows[0])
    assert (blind.log_softmax(-1) - expected[0].log_softmax(-1)).abs().max() > 0.1


def test_graphs_for_text_alone(tmp_path: Path) -> None:
    """Whoever does not ask for images gets a graph that knows nothing of them."""
    nvlm(tmp_path / "source")
    checkpoint = Checkpoint.open(tmp_path / "source")
    assert graphs(checkpoint).keys() == {"main"}
    assert not any(str(value.name).startswith("image_") for value in graphs(checkpoint)["main"].graph.inputs)
    assert graphs(checkpoint, images=True).keys() == {"main", "vision"}
