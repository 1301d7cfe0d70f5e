"""Two builds in different environments end in the same bytes, all of them; and who compares them sees what does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.source_files import REPOSITORY

pytestmark = pytest.mark.slow
SCRIPT = REPOSITORY / "ci" / "bench" / "reproduce.py"


def test_the_same_bytes_elsewhere(small_model: Path, text_file: Path, tmp_path: Path) -> None:
    recipe = {
        "model": str(small_model),
        "calibration": {"text": str(text_file), "samples": 4, "length": 32},
        "prune": {"keep": 0.75},
        "quantize": [{"match": "experts", "scheme": "int4-g32"}, {"match": "attention", "scheme": "fp8-block"}],
        "targets": [{"onnxruntime": {}}, {"onnx": {}}],
        "check": {"text": str(text_file), "tokens": 128, "length": 32, "gates": {"kl_mean": 9.0}},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, SCRIPT, tmp_path / "small.yaml", "--folder", tmp_path / "built"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told == {"files": told["files"], "differ": [], "differ as engines do": []} and told["files"] > 15


def test_a_byte_that_differs_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import reproduce

    for name, config in (("one", "{}"), ("other", "{ }")):
        (tmp_path / name / "engines").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text(config)
        (tmp_path / name / "llmc.json").write_text(config)
        (tmp_path / name / "same").write_text("")
    (tmp_path / "one" / "engines" / "rtx.engine").write_text("")
    found = reproduce.differences(tmp_path / "one", tmp_path / "other")
    assert found == ["config.json", "engines/rtx.engine", "llmc.json"]
    assert [reproduce.of_engines(name, reproduce.hashes(tmp_path / "one")) for name in found] == [False, True, True]
    assert not reproduce.of_engines("llmc.json", reproduce.hashes(tmp_path / "other"))
