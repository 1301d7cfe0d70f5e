"""Files in the folders of checkpoints: what is opened, what travels with the model, and how much of it is read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.random_checkpoint import DEEPSEEK_V3, LLAMA, random_checkpoint

from llmc.convert import folder
from llmc.convert.checkpoint import INDEX, Checkpoint
from llmc.errors import InputError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 12345\n" % (b"0" * 64)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return random_checkpoint(tmp_path / "model", LLAMA)


def put(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "model.safetensors", INDEX, "tokenizer.json"]
)
def test_fifos_and_devices_are_refused(model: Path, name: str) -> None:
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    with pytest.raises(InputError, match=f"{name}: is a FIFO, not a file"):
        Checkpoint.open(model)
    (model / name).unlink()
    (model / name).symlink_to("/dev/zero")
    with pytest.raises(InputError, match=f"{name}: (is a device|leads out)"):
        Checkpoint.open(model)


def test_weights_that_became_a_fifo_are_not_waited_for(model: Path) -> None:
    checkpoint = Checkpoint.open(model)
    (model / "model.safetensors").unlink()
    os.mkfifo(model / "model.safetensors")
    with pytest.raises(InputError, match="is a FIFO"):
        checkpoint.tensor("lm_head.weight")


def test_a_circle_of_links_is_refused(model: Path) -> None:
    (model / "LICENSE").symlink_to("LICENSE")
    with pytest.raises(InputError, match="LICENSE: leads out of the checkpoint's folder"):
        Checkpoint.open(model)


@pytest.mark.parametrize("name", ["LICENSE", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"])
def test_what_would_be_published_does_not_come_from_outside(model: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / ".netrc").write_text("machine example.org password hunter2")
    (model / name).symlink_to("../.netrc")
    with pytest.raises(
        InputError, match=rf"{name}: (leads out of the checkpoint's folder, to .*\.netrc|not valid JSON)"
    ):
        Checkpoint.open(model)
    (model / name).unlink()
    (model / name).symlink_to("nothing")
    if name != "generation_config.json":  # not there
        with pytest.raises(InputError, match="leads out"):
            Checkpoint.open(model)


def test_weights_may_be_links_to_another_disk(model: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.move(model / name, tmp_path / f"kept-{name}")
        (model / name).symlink_to(tmp_path / f"kept-{name}")
    (model / "LICENSE-2").write_text("free")
    (model / "LICENSE").symlink_to("LICENSE-2")
    assert Checkpoint.open(model).tensor("lm_head.weight").shape == (96, 64)


def test_a_folder_of_links_into_another_folder(model: Path, tmp_path: Path) -> None:
    (model / "tokenizer.json").write_text("{}")
    links = tmp_path / "links"
    links.mkdir()
    for file in model.iterdir():
        (links / file.name).symlink_to(file)
    assert links / "tokenizer.json" in Checkpoint.open(links).files()
    (tmp_path / "secret").write_text("hunter2")
    (links / "LICENSE").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="leads out"):
        Checkpoint.open(links)


def test_the_cache_of_a_hub(model: Path, tmp_path: Path) -> None:
    (model / "tokenizer.json").write_text("{}")
    place = tmp_path / "models--org--name"
    snapshot = place / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (place / "blobs").mkdir()
    for number, file in enumerate(sorted(model.iterdir())):
        blob = place / "blobs" / f"{number:064x}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    assert [file.name for file in Checkpoint.open(snapshot).files()] == [
        "config.json", "model.safetensors", "tokenizer.json"
    ]  # fmt: skip


def test_code_does_not_travel(model: Path) -> None:
    for name in ("tokenizer.py", "tokenizer.pkl", "LICENSE.sh", "LICENSE"):
        (model / name).write_text("x")
    assert [file.name for file in Checkpoint.open(model).files() if file.read_bytes() == b"x"] == ["LICENSE"]


def test_folders_do_not_travel(model: Path) -> None:
    (model / "tokenizer").mkdir()
    (model / "LICENSES").mkdir()
    assert [file.name for file in Checkpoint.open(model).files()] == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_pointers_and_web_pages_are_told_from_files(model: Path, name: str) -> None:
    put(model / name, POINTER)
    with pytest.raises(InputError, match=f"{name}: is a git-lfs pointer, not the file itself; run `git lfs pull`"):
        Checkpoint.open(model)
    put(model / name, b"\n<!DOCTYPE html>\n<html>")
    with pytest.raises(InputError, match=f"{name}: is a web page"):
        Checkpoint.open(model)


def test_files_without_end(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (model / "config.json").open("ab") as file:
        file.truncate(1 << 40)  # a hole
    with pytest.raises(InputError, match=r"config\.json: larger than the 16,777,216 bytes"):
        Checkpoint.open(model)
    put(model / "config.json", json.dumps(LLAMA).encode())
    monkeypatch.setattr(folder, "SIDECAR_LIMIT", 100)
    (model / "tokenizer.json").write_bytes(bytes(101))
    with pytest.raises(InputError, match=r"tokenizer\.json: larger than the 100 bytes"):
        Checkpoint.open(model)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", '{"architectures": [], "architectures": []}', "occurs twice"),
        ("config.json", '{"rope_theta": NaN}', "no finite number"),
        ("config.json", '{"rope_theta": 1e999}', "no finite number"),
        ("config.json", '{"hidden_size": %s}' % ("9" * 4301), "4,301 digits"),
        ("config.json", '{"model_type": "\\ud800"}', "half a character"),
        ("config.json", "[" * 100_000, "deep"),
        (INDEX, '{"weight_map": {"a": "x", "a": "x"}}', "occurs twice"),
    ],
)
def test_json_that_means_nothing_or_takes_long(model: Path, name: str, content: str, said: str) -> None:
    (model / name).write_text(content)
    with pytest.raises(InputError, match=f"{name}: not valid JSON .*{said}"):
        Checkpoint.open(model)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10_000, "n_routed_experts": 10_000},
        {"num_hidden_layers": 1, "n_routed_experts": 10_000},
        {"num_hidden_layers": 10_000, "first_k_dense_replace": 10_000},
        {"num_nextn_predict_layers": 10_000},
    ],
)
def test_a_config_of_more_weights_than_there_are_is_refused_before_modules_are_made(
    tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = random_checkpoint(tmp_path, DEEPSEEK_V3)
    (path / "config.json").write_text(json.dumps(DEEPSEEK_V3 | changes))
    monkeypatch.setattr("llmc.convert.model.causal_lm.DecoderLayer", None)
    monkeypatch.setattr("llmc.convert.model.causal_lm.MultiTokenPrediction", None)
    with pytest.raises(InputError, match=r"describes [\d,]+ layers with at least [\d,]+ weights, and 133 are there"):
        Checkpoint.open(path)
