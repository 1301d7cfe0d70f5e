"""Gated DeltaNet and Mamba-2 in chunks are what they are token by token, and pass on what they remember."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from llmc.convert.model import GatedDeltaNet, Mamba2, StateCache
from llmc.convert.model.gated_delta_net import gated_delta_rule
from llmc.convert.model.linear_attention import CHUNK
from llmc.convert.model.mamba2 import state_space
from llmc.convert.spec import GatedDeltaNetSpec, Mamba2Spec, StateSpec, state_bytes

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def inputs(length: int) -> Inputs:
    """Of two rows and three heads, in float64: query, key, value, decay, strength."""
    generator = torch.Generator().manual_seed(length)
    query, key = (torch.randn(2, 3, length, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    value = torch.randn(2, 3, length, 5, generator=generator, dtype=torch.float64)
    decay, strength = (torch.randn(2, 3, length, generator=generator, dtype=torch.float64) for _ in range(2))
    return query, nn.functional.normalize(key, dim=-1), value, -decay.exp(), strength.sigmoid()


def token_by_token(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, decay: torch.Tensor,
                   strength: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The definition: forget, replace what the key reads by part of the value, read."""
    state, read = torch.zeros(2, 3, 8, 5, dtype=torch.float64), []
    for t in range(query.shape[2]):
        state = state * decay[:, :, t, None, None].exp()
        known = torch.einsum("bhk,bhkv->bhv", key[:, :, t], state)
        news = strength[:, :, t, None] * (value[:, :, t] - known)
        state = state + torch.einsum("bhk,bhv->bhkv", key[:, :, t], news)
        read.append(torch.einsum("bhk,bhkv->bhv", query[:, :, t], state))
    return torch.stack(read, dim=2), state


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_chunks_are_the_recurrence(length: int) -> None:
    given = inputs(length)
    for found, expected in zip(gated_delta_rule(*given), token_by_token(*given), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_state_goes_on_where_the_text_was_cut() -> None:
    given = inputs(150)
    whole, last = gated_delta_rule(*given)
    first, state = gated_delta_rule(*(x[:, :, :90] for x in given))
    second, state = gated_delta_rule(*(x[:, :, 90:] for x in given), state)
    torch.testing.assert_close(torch.cat((first, second), dim=2), whole, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state, last, rtol=1e-10, atol=1e-10)


def test_what_is_forgotten_at_once_makes_no_infinity() -> None:
    query, key, value, _, strength = inputs(CHUNK)
    found, state = gated_delta_rule(query, key, value, torch.full(strength.shape, -500.0).double(), strength)
    alone = (query * key).sum(-1, keepdim=True) * strength[..., None] * value
    assert state.isfinite().all()
    torch.testing.assert_close(found, alone)


@pytest.mark.parametrize("length", [1, CHUNK, 2 * CHUNK + 5])
def test_chunks_of_a_state_space_are_the_recurrence(length: int) -> None:
    query, key, value, decay, _ = inputs(length)
    state, read = torch.zeros(2, 3, 8, 5, dtype=torch.float64), []
    for t in range(length):
        state = state * decay[:, :, t, None, None].exp() + key[:, :, t, :, None] * value[:, :, t, None]
        read.append(torch.einsum("bhk,bhkv->bhv", query[:, :, t], state))
    found, last = state_space(query, key, value, decay)
    torch.testing.assert_close(found, torch.stack(read, dim=2), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(last, state, rtol=1e-10, atol=1e-10)
    cut = length // 3
    _, between = state_space(*(x[:, :, :cut] for x in (query, key, value, decay))) if cut else (None, None)
    rest, _ = state_space(*(x[:, :, cut:] for x in (query, key, value, decay)), between)
    torch.testing.assert_close(rest, found[:, :, cut:], rtol=1e-10, atol=1e-10)


SPECS: list[StateSpec] = [GatedDeltaNetSpec(2, 4, 8, 6, 4, fused=fused, norm_eps=1e-6) for fused in (False, True)]
SPECS.append(Mamba2Spec(4, 6, 8, 2, 4, bias=True, conv_bias=True, least_step=1e-3, norm_eps=1e-6))


@pytest.mark.parametrize("spec", SPECS, ids=["four projections", "two", "Mamba-2"])
@pytest.mark.parametrize("cuts", [(1,), (2, 3), (70,), tuple(range(60, 80))])
@torch.no_grad()
def test_a_cache_is_what_is_remembered(spec: StateSpec, cuts: Sequence[int]) -> None:
    torch.manual_seed(0)
    block = (GatedDeltaNet(spec, 16) if isinstance(spec, GatedDeltaNetSpec) else Mamba2(spec, 16)).double()
    for parameter in block.parameters():
        parameter.copy_(0.5 * torch.randn(parameter.shape))
    x, places = torch.randn(2, 80, 16).double(), torch.arange(80).expand(2, -1)
    cache = StateCache(spec, 2, torch.float64)
    pieces = zip([0, *cuts], [*cuts, 80], strict=True)
    found = torch.cat([block(x[:, a:b], places[:, a:b], cache) for a, b in pieces], dim=1)
    torch.testing.assert_close(found, block(x, places), rtol=1e-4, atol=1e-5)  # states are float32
    assert cache.length == 80
    assert state_bytes(spec) == cache.state[0].nbytes + cache.convolved[0].numel() * 2


def test_memory_is_that_of_chunks() -> None:
    """No [S, S] matrix: the largest intermediate result of a text four times as long is not sixteen times as large."""
    largest: list[int] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            made = function(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor):
                largest[-1] = max(largest[-1], made.numel())
            return made

    for length in (4 * CHUNK, 16 * CHUNK):
        largest.append(0)
        given = inputs(length)
        with Watch():
            gated_delta_rule(*given)
    assert largest[1] <= 4 * largest[0]
