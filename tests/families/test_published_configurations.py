"""`llmc plan` on every published configuration: accepted with the right size, or refused for a reason that is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.headers_only import headers_only
from support.ladder import CONFIGURATION
from support.model_lines import DESCRIBED_BESIDE, LINES, published_config, published_names

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.families import family_of
from llmc.convert.formats import formats, has_fp8_cache
from llmc.convert.layer_modules import weight_shapes
from llmc.convert.quantization_config import with_quantization_config
from llmc.convert.spec import ModelSpec
from llmc.errors import InputError
from llmc.planning import plan
from llmc.recipe import Recipe

NAMES = published_names(additional=True)


def test_every_configuration_belongs_to_one_line() -> None:
    of_lines = [name for line in LINES for name in line.configs]
    assert sorted(of_lines) == published_names() and len(of_lines) == 119
    assert sorted([*of_lines, *(name for line in LINES for name in line.additional)]) == NAMES
    assert len({line.name for line in LINES}) == len(LINES) == 65


def accepted(name: str, folder: Path) -> ModelSpec:
    """What `llmc plan` asks config.json, and what lies beside it, before it looks at weights."""
    config = published_config(name)
    if name in DESCRIBED_BESIDE:
        said: dict[str, Any] = {
            "quant_algo": DESCRIBED_BESIDE[name],
            "kv_cache_quant_algo": "FP8",
            "exclude_modules": ["lm_head"],
        }
        said |= {"group_size": 16} if said["quant_algo"] == "NVFP4" else {}
        described = {"producer": {"name": "modelopt", "version": "0.31.0"}, "quantization": said}
        (folder / "hf_quant_config.json").write_text(json.dumps(described))
    config = with_quantization_config(folder, config)
    family = family_of(config)
    spec, text = family.spec(config), family.text_config(config)
    formats(text)
    has_fp8_cache(text, {})
    family.vision(config)
    return spec


@pytest.fixture(scope="module")
def sizes() -> dict[ModelSpec, dict[str, Any]]:
    """Of models that were planned, which many configurations share."""
    return {}


def planned(name: str, folder: Path, tokenizer: Path) -> dict[str, Any]:
    """Parameters, and bytes before and after a build by the default recipe."""
    path = headers_only(folder / "model", published_config(name), tokenizer)
    total = plan(Checkpoint.open(path, headers_only=True), Recipe(model=str(path)), folder / "out").total
    return {"parameters": total.before.parameters, "bytes": total.before.bytes, "built_bytes": total.after.bytes}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_plan(
    name: str,
    tmp_path: Path,
    embedded: Path,
    sizes: dict[ModelSpec, dict[str, Any]],
    record: dict[str, dict[str, Any]],
    recording: bool,
    request: pytest.FixtureRequest,
) -> None:
    """From headers in bfloat16. docs/models.json has what was found, to the reason."""
    try:
        spec = accepted(name, tmp_path)
    except InputError as error:
        found: dict[str, Any] = {"reason": " ".join(str(error).replace(f"{tmp_path}/", "").split())}
    else:
        shared = replace(spec, bos_token_id=None, eos_token_ids=())
        if shared not in sizes:
            sizes[shared] = planned(name, tmp_path, embedded)
        found = sizes[shared]
        assert found["parameters"] == sum(torch.Size(shape).numel() for shape in weight_shapes(spec).values())
        assert found["bytes"] == 2 * found["parameters"] > found["built_bytes"]
    request.node.user_properties.append((CONFIGURATION, {"name": name} | found))
    again = "pytest tests/families --ladder docs/models.json, then python ci/docs/models.py"
    assert recording or found == record["configurations"][name], f"docs/models.json is out of date; {again}"
