"""Every token of a tail is drawn as often as its probability says."""

import torch

from llmc.quant.tail_sample import tail_sample


def logprobs(rows: int, vocabulary: int, spread: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (spread * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)).log_softmax(-1)


def others(said: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    return said.exp().scatter(-1, top, 0.0)


def test_tokens_are_drawn_in_proportion_to_their_probabilities() -> None:
    said = logprobs(1, 300, 3.0)
    top = said.topk(20).indices
    repeats, count = 4000, 48
    offsets = (torch.arange(repeats, dtype=torch.float64) + 0.5) / repeats  # all that a comb can begin with
    drawn = tail_sample(said.expand(repeats, -1), others(said, top).expand(repeats, -1), offsets, count)
    assert drawn.shape == (repeats, count) and not torch.isin(drawn, top).any()
    tail = others(said, top)[0]
    wanted = count * tail / tail.sum()
    found = torch.bincount(drawn.flatten(), minlength=300) / repeats
    assert (found - wanted).abs().max() < 2 * count / repeats
    assert wanted.max() > 1, "one token is drawn more than once"


def test_a_draw_has_likely_and_unlikely_tokens_in_this_order() -> None:
    said = logprobs(8, 3000, 2.0)
    drawn = tail_sample(said, others(said, said.topk(64).indices), torch.full((8,), 0.5, dtype=torch.float64), 64)
    found = said.gather(-1, drawn)
    assert (found.diff() < 0.26).all(), "by quarters of a nat"
    assert (found[:, 0] - found[:, -1] > 2).all()


def test_what_has_no_probability_is_not_drawn() -> None:
    said = torch.full((1, 200), -1e3, dtype=torch.float64)
    said[0, :70] = torch.linspace(-1, -60, 70, dtype=torch.float64)
    said = said.log_softmax(-1)
    for offset in (0.0, 0.5, 1 - 2**-53):
        drawn = tail_sample(said, others(said, said.topk(64).indices), torch.tensor([offset], dtype=torch.float64), 64)
        assert ((drawn >= 64) & (drawn < 70)).all()
