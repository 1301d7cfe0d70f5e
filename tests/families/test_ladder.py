"""The ladder that every model line climbs: its configurations, and parity with transformers."""

from __future__ import annotations

import math

import pytest
from support.ladder import TOLERANCE, Climb, SmallModel, chunks, padded, parameters, published_parameters
from support.model_lines import LINES, ModelLine, published_config

from llmc.convert.families import family_of
from llmc.errors import InputError

every_line = pytest.mark.parametrize("line", LINES, ids=lambda line: line.name)


def accepted(climb: Climb, small: SmallModel) -> None:
    """Go on only with a line whose configuration is accepted and that transformers has a class for."""
    try:
        assert small.spec
    except InputError as error:
        climb.hole(error)
    if small.line.witness is None:
        climb.hole(f"transformers has no class for {small.config['architectures'][0]}")


@every_line
def test_spec(climb: Climb, line: ModelLine) -> None:
    """As many parameters as transformers' class has, to the last one, from each of the line's configurations.

    Layers for multi-token prediction are not counted, since that class leaves them out, nor is a vision tower.
    """
    refused, counts = [], []
    for name in (*line.configs, *line.additional):
        config = published_config(name)
        try:
            family_of(config).spec(config)
        except InputError as error:
            refused.append(f"{name}: {error}")
            continue
        counts.append(parameters(config))
        if line.witness is not None:
            assert counts[-1] == published_parameters(config | line.witness), name
    if not counts:
        climb.hole(refused[0].partition(": ")[2])
    climb.note(parameters=counts, refused=refused)


@every_line
def test_parity(climb: Climb, small: SmallModel) -> None:
    """float32 log-probabilities: in one go, in pieces through the cache, and of rows of unequal length."""
    accepted(climb, small)
    ids = small.texts()
    expected = small.expected(ids)
    whole = small.model.logits(small.model.hidden(ids)).log_softmax(-1)
    pieces = chunks(small.model, ids, (17, 29, *range(30, 44)))
    differences = [(expected - found).abs().max().item() for found in (whole, pieces)]
    batch = ids[:1].repeat(3, 1)
    rows = list(padded(batch, (ids.shape[1], 23, 1)))
    found = small.model.logits(small.model.hidden(batch)).log_softmax(-1)
    for row, length in rows:
        differences.append((expected[0, :length] - found[row, :length]).abs().max().item())
    climb.note(difference=max(differences))
    assert max(differences) < TOLERANCE
    assert math.isfinite(max(differences)) and expected.std() > 0.05
