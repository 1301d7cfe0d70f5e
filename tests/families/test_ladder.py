"""The ladder that every model line climbs, up to a checkpoint: configurations, parity with transformers, artifact."""

from __future__ import annotations

import math
import re

import pytest
from support.ladder import TOLERANCE, Climb, SmallModel, chunks, padded, parameters, published_parameters
from support.model_lines import LINES, ModelLine, published_config

from llmc.convert.families import family_of
from llmc.convert.safetensors_file import read_header
from llmc.errors import InputError

every_line = pytest.mark.parametrize("line", LINES, ids=lambda line: line.name)


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
            assert counts[-1] == published_parameters(line.known(config)), name
    if not counts:
        climb.hole(refused[0].partition(": ")[2])
    climb.note(parameters=counts, refused=refused)


@every_line
def test_parity(climb: Climb, small: SmallModel) -> None:
    """float32 log-probabilities: in one go, in pieces through the cache, and of rows of unequal length."""
    climb.accepted(small)
    names = {re.sub(r"(?<=\.)\d+(?=\.)", "#", name) for shard in small.checkpoint.shards for name in read_header(shard)}
    assert names.issuperset(small.line.spelled)
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


@every_line
@pytest.mark.slow
def test_artifact(climb: Climb, architecture: SmallModel) -> None:
    """Quantized, and pruned where there are experts: transformers loads it, whole, and says the same as we do."""
    if climb.line.text_field:
        climb.hole(f"transformers has no class for {architecture.config['architectures'][0]}")
    if obstacle := architecture.checkpoint.family.obstacle(["experts"] if architecture.has_experts else []):
        climb.note(remark=f"with experts that stay as they are, since transformers does not load others: {obstacle}")
    climb.note(difference=architecture.difference_in_transformers)
    assert architecture.difference_in_transformers < TOLERANCE


@every_line
@pytest.mark.slow
def test_mtp(climb: Climb, architecture: SmallModel) -> None:
    """Layers for multi-token prediction: what transformers reads and computes of them, kept in their own spelling, and
    used for drafts that do not change a greedy answer.
    """
    if not architecture.spec.num_mtp_layers and climb.line.mtp_unused:
        climb.hole("the layers that its checkpoints have are kept as they are, and not used for drafts")
    if not architecture.spec.num_mtp_layers:
        climb.absent()
    climb.note(difference=architecture.difference_of_mtp)
    assert architecture.difference_of_mtp < TOLERANCE
    names = architecture.mtp_on_disk(architecture.checkpoint)
    assert names and names == architecture.mtp_on_disk(architecture.artifact)
    try:
        plain, drafting = architecture.answers
    except InputError as error:
        climb.hole(error)
    assert plain[0] == drafting[0] and drafting[1] > plain[1] == 0
