"""What tests of quant share."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.layerwise_pass import PRUNABLE
from support.random_checkpoint import random_checkpoint


@pytest.fixture(scope="session")
def prunable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with experts that can be pruned and an MTP layer, to be read alone."""
    return random_checkpoint(tmp_path_factory.mktemp("prunable"), PRUNABLE)
