"""Images in prompts: tiles, what stands for them, and answers against the published model in torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.nvlm import ADDED, CONFIG, TILE, TOKEN, Nvlm, nvlm, recipe_of

import llmc
from llmc.contracts.images import ImagesRecord
from llmc.convert.families import family_of
from llmc.errors import InputError, MachineError
from llmc.runtime import Model, load
from llmc.runtime.images import grid, open_image, tiles

PLACEHOLDER = 256 + ADDED.index(TOKEN)
QUESTION = "What is this?"


def record(**changes: Any) -> ImagesRecord:
    vision = family_of(CONFIG).vision(CONFIG)
    assert vision is not None
    return vision.images.model_copy(update=changes)


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Smooth enough for a resized one to look like it."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height)))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> tuple[Nvlm, Path]:
    folder = tmp_path_factory.mktemp("nvlm")
    reference = nvlm(folder / "source")
    return reference, llmc.build(recipe_of(folder / "source", text_file), folder / "artifact").path


@pytest.fixture(scope="module")
def reference(built: tuple[Nvlm, Path]) -> Nvlm:
    """The published model with the artifact's weights."""
    from llmc.convert.checkpoint import Checkpoint

    published, path = built
    checkpoint = Checkpoint.open(path)
    with torch.no_grad():
        for name, parameter in published.text.named_parameters():
            parameter.copy_(checkpoint.tensor(name))
    return published


@pytest.fixture(scope="module")
def model(built: tuple[Nvlm, Path]) -> Any:
    with load(built[1]) as found:
        yield found


def expected_prompt(question: str, tiles: int) -> str:
    tags = [f"<tile_{number}>" for number in range(1, tiles)] + ["<tile_global_thumbnail>"]
    return f"<Image>{''.join(tag + TOKEN * 4 for tag in tags)}</Image>\n{question}"


def read(model: Model, text: str) -> list[int]:
    return model.tokenizer.encode(text).ids


@pytest.mark.parametrize(("width", "height", "count"), [(100, 100, 5), (30, 30, 1), (300, 100, 4), (60, 170, 4)])
def test_answer_is_the_published_models(model: Model, reference: Nvlm, width: int, height: int, count: int) -> None:
    image = picture(width, height)
    shown = torch.from_numpy(tiles(open_image(image), record()))
    assert len(shown) == count
    ids = read(model, expected_prompt(QUESTION, count))
    found = model.generate(QUESTION, images=[image], max_new_tokens=12, logprobs=0)
    assert found.token_ids == reference.answer(ids, shown, 12)
    assert found.prompt_tokens == len(ids)
    logits = reference.logits([*ids, *found.token_ids[:-1]], shown)[len(ids) - 1 :].log_softmax(-1)
    wanted = [float(row[token]) for row, token in zip(logits, found.token_ids, strict=True)]
    assert np.allclose([each.logprob for each in found.logprobs or []], wanted, atol=1e-4)


def test_other_images_other_answers(model: Model) -> None:
    answers = {tuple(model.generate(QUESTION, images=[picture(60, 60, seed)]).token_ids) for seed in range(3)}
    assert len(answers) == 3
    assert tuple(model.generate(QUESTION).token_ids) not in answers


def test_batch(model: Model) -> None:
    """Rows with images, more of them, or none, each as alone."""
    images = [[picture(60, 60)], [], [picture(60, 60, 1), picture(120, 60, 2)]]
    prompts = [QUESTION, "Text alone.", "One: <image> Two: <image>"]
    together = model.generate(prompts, images=images, max_new_tokens=6)
    alone = [model.generate(text, images=each, max_new_tokens=6) for text, each in zip(prompts, images, strict=True)]
    assert [each.token_ids for each in together] == [each.token_ids for each in alone]


def test_files_and_messages(model: Model, reference: Nvlm, tmp_path: Path) -> None:
    image = picture(90, 60)
    Image.fromarray(image).save(tmp_path / "photo.png")
    asked = [{"type": "image", "image": str(tmp_path / "photo.png")}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "system", "content": "Say."}, {"role": "user", "content": asked}]
    shown = torch.from_numpy(tiles(open_image(image), record()))
    text = f"<|im_start|>system\nSay.<|im_end|>\n<|im_start|>user\n{expected_prompt(QUESTION, len(shown))}<|im_end|>\n"
    ids = read(model, f"{text}<|im_start|>assistant\n")
    wanted = reference.answer(ids, shown, 8)
    assert model.generate(messages, max_new_tokens=8).token_ids == wanted
    assert model.chat(messages, max_new_tokens=8).token_ids == wanted
    stream = model.stream(QUESTION, images=[tmp_path / "photo.png"], max_new_tokens=8)
    assert "".join(stream) == model.generate(QUESTION, images=[image], max_new_tokens=8).text
    with pytest.raises(InputError, match="tokens alone do not hold"):
        model.chat_prompt(messages)


def test_session_tells_images_apart(model: Model) -> None:
    """What it has read of one image is not used for another whose tokens are the same; of the same one it is."""
    first, second = picture(60, 60, 3), picture(60, 60, 4)
    session = model.session()
    session.read(QUESTION, images=[first])
    assert session.tokens == read(model, expected_prompt(QUESTION, len(tiles(open_image(first), record()))))
    again = session.generate(QUESTION, images=[first], max_new_tokens=6)
    assert again.cached_tokens == again.prompt_tokens - 1
    other = session.generate(QUESTION, images=[second], max_new_tokens=6)
    assert other.cached_tokens == len("<Image><tile_global_thumbnail>")
    for found, image in ((again, first), (other, second)):
        assert found.token_ids == model.generate(QUESTION, images=[image], max_new_tokens=6).token_ids


def test_known_images_are_not_computed_again(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(60, 60, 9)
    wanted = model.generate(QUESTION, images=[image], max_new_tokens=4)
    monkeypatch.setattr(model.backend, "image_features", None)
    assert model.generate(QUESTION, images=[image], max_new_tokens=4) == wanted
    with pytest.raises(TypeError):
        model.generate(QUESTION, images=[picture(60, 60, 10)])


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (448, 448, (1, 1)),
        (1000, 1000, (2, 2)),  # the larger grid of that shape, for an image of many pixels
        (600, 600, (1, 1)),  # less than half of the pixels of four tiles
        (1920, 1080, (2, 1)),
        (800, 600, (3, 2)),
        (400, 1000, (1, 3)),
        (5000, 500, (6, 1)),
        (10, 1000, (1, 6)),
    ],
)
def test_grid(width: int, height: int, expected: tuple[int, int]) -> None:
    assert grid(width, height, record(tile_size=448)) == expected


def test_tiles_are_normalized_pieces_of_the_resized_image() -> None:
    image, spec = picture(170, 110), record()
    found = tiles(open_image(image), spec)
    resized = np.asarray(Image.fromarray(image).resize((3 * TILE, 2 * TILE), Image.Resampling.BICUBIC), np.float32)
    thumbnail = np.asarray(Image.fromarray(image).resize((TILE, TILE), Image.Resampling.BICUBIC), np.float32)
    pieces = [
        resized[row : row + TILE, column : column + TILE]
        for row in range(0, 2 * TILE, TILE)
        for column in range(0, 3 * TILE, TILE)
    ]
    expected = (np.stack([*pieces, thumbnail]) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.allclose(found, expected.transpose(0, 3, 1, 2), atol=1e-5)


def test_bad_images(model: Model, tmp_path: Path) -> None:
    (tmp_path / "words.png").write_text("no image")
    whole = tmp_path / "whole.png"
    Image.fromarray(picture(60, 60)).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:-40])
    Image.fromarray(picture(60, 60)).save(tmp_path / "gray.tiff")
    large, larger = tmp_path / "large.png", tmp_path / "larger.png"  # more than Pillow warns of, and refuses
    Image.new("1", (10000, 9000)).save(large)
    Image.new("1", (14000, 13000)).save(larger)
    wrong: list[tuple[Any, str]] = [
        (tmp_path / "words.png", "words.png: no image that can be read; give a PNG, JPEG, WEBP, BMP or GIF file"),
        (tmp_path / "cut.png", "cut.png: no image that can be read"),
        (tmp_path / "gray.tiff", "gray.tiff: no image that can be read"),
        (tmp_path / "none.png", "none.png"),
        (large, "large.png: has more than 89,478,485 pixels; make it smaller"),
        (larger, "larger.png: has more than 89,478,485 pixels; make it smaller"),
        (Image.new("1", (10000, 9000)), "an image: has more than"),
        (np.zeros((4, 4), np.uint8), r"array of uint8, 4 x 4; it has to be uint8 \[height, width, 3\]"),
        (np.zeros((4, 4, 3)), "array of float64, 4 x 4 x 3"),
        (7, "cannot be of type int"),
    ]
    for image, said in wrong:
        with pytest.raises(InputError, match=said):
            model.generate(QUESTION, images=[image])


def test_bad_prompts(model: Model) -> None:
    image = picture(60, 60)
    wrong: list[tuple[Any, Any, str]] = [
        ("<image> and <image>", [image], "2 places for images, written <image>, and 1 images"),
        (f"<image> {TOKEN}", [image], f"tokens {TOKEN.replace('|', '[|]')} for"),
        ([1, 2, 3], [image], "images are for a prompt of text"),
        (QUESTION, image, "images is .* a list of paths or arrays"),
        ([QUESTION, QUESTION], [[image]], "images is .* a list of 2 lists"),
        (QUESTION, [picture(560, 100)] * 20, "tokens, which do not fit the context of 512; show fewer"),
        (QUESTION, [picture(560, 100)] * 15, "do not fit the context of 512"),
        ([{"role": "user", "content": [{"type": "sound"}]}], None, "neither"),
    ]
    for prompt, images, said in wrong:
        with pytest.raises(InputError, match=said):
            model.generate(prompt, images=images)


def test_model_of_text_alone(built: tuple[Nvlm, Path], dense: Path) -> None:
    image = picture(60, 60)
    with load(dense) as blind:
        with pytest.raises(InputError, match="this model takes text alone"):
            blind.generate(QUESTION, images=[image])
        with pytest.raises(InputError, match="this model takes text alone"):
            blind.generate([{"role": "user", "content": [{"type": "image", "image": image}]}])


def test_backend_of_text_alone(built: tuple[Nvlm, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with load(built[1]) as blind:
        monkeypatch.setattr(blind.backend, "has_vision", False)
        with pytest.raises(InputError, match="takes text alone; load it with backend='onnxruntime'"):
            blind.generate(QUESTION, images=[picture(60, 60)])


def test_without_pillow(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(60, 60)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MachineError, match="images need Pillow, which is not installed; pip install"):
        model.generate(QUESTION, images=[image])


def test_artifact(built: tuple[Nvlm, Path]) -> None:
    """The tower is in the checkpoint's files as it was, and the manifest says how images are shown."""
    from llmc.convert.checkpoint import Checkpoint

    published, path = built
    manifest = json.loads((path / "llmc.json").read_text())
    assert manifest["model"]["images"]["tile_tokens"] == 4
    assert manifest["targets"]["onnxruntime"]["files"]["vision"] == "vision.onnx"
    assert manifest["quantized"]["vision"]["quantized"] == 0
    checkpoint = Checkpoint.open(path)
    for name, tensor in published.tensors.items():
        assert torch.equal(checkpoint.tensor(name), tensor), name
    assert "auto_map" not in checkpoint.config and checkpoint.config["vision_config"] == CONFIG["vision_config"]
