"""What rounding a module costs, predicted from gradients: against the definition, and against what it does cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.allocated import Allocated
from support.layerwise_pass import Stop
from support.random_checkpoint import LLAMA, random_checkpoint

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import CausalLM, Linear, MixtureOfExperts
from llmc.quant.assign import linear_modules
from llmc.quant.change import change
from llmc.quant.gptq import solve
from llmc.quant.gradients import Observed, backward, step_sizes
from llmc.quant.schemes import scheme
from llmc.quant.schemes.base import Scheme
from llmc.quant.sensitivity import evened_out, measure
from llmc.quant.solver_share import solver_share
from llmc.recipe import Calibration, Check
from llmc.text import read_texts

DRAWS, SEED = 2, 3
SCHEMES = [
    scheme(name) for name in ("int3-g32", "int4-g32-asym", "fp8-block", "fp8-channel-dynamic", "fp8-tensor-static")
]
PLAIN = SCHEMES[:3]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    changes = {"hidden_size": 160, "intermediate_size": 288, "num_attention_heads": 5, "num_key_value_heads": 5}
    return Checkpoint.open(random_checkpoint(tmp_path_factory.mktemp("model") / "tiny", LLAMA | changes))


def text(vocabulary: int, rows: int = 5, length: int = 24) -> torch.Tensor:
    return torch.randint(3, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))


def all_candidates(checkpoint: Checkpoint, schemes: Sequence[Scheme] = SCHEMES) -> dict[str, Sequence[Scheme]]:
    ends = ("lm_head", "model.embed_tokens")
    return {name: PLAIN if name in ends else schemes for name in (*linear_modules(checkpoint), *ends)}


def by_definition(
    checkpoint: Checkpoint, ids: torch.Tensor, work_dir: Path, candidates: Mapping[str, Sequence[Scheme]]
) -> dict[str, dict[str, float]]:
    """Half the mean of the squares, sequence by sequence, of what a token's output moves times its gradient; between
    the schemes of a module shared out as the squares of what their weights move are.
    """
    shown: dict[str, list[Observed]] = defaultdict(list)
    show = lambda one: shown[one.module].append(one)  # noqa: E731
    backward(checkpoint, ids, work_dir, show, draws=DRAWS, seed=SEED, with_embedding=True)
    losses: dict[str, dict[str, float]] = defaultdict(dict)
    for name, parts in shown.items():
        x = torch.cat([one.x for one in parts if one.draw == 0])
        weight, is_embedding = parts[0].weight.full(), name == "model.embed_tokens"
        importance = None if is_embedding else x.square().mean(0)
        drafted = name.startswith(f"model.layers.{checkpoint.spec.num_layers}.")
        tokens = len(ids) * (ids.shape[1] - drafted)

        def moved_by(y: torch.Tensor, parts: list[Observed] = parts) -> torch.Tensor:
            """[draws, sequences]"""
            sums = torch.zeros(DRAWS, len(ids))
            for draw in range(DRAWS):
                gradient = torch.cat([one.gradient for one in parts if one.draw == draw])
                sequence = torch.cat([one.sequence for one in parts if one.draw == draw])
                sums[draw].index_add_(0, sequence, (y * gradient).sum(-1))
            return sums

        mine = candidates.get(name, ())
        used, place = x.unique(return_inverse=True) if is_embedding else (None, None)
        changes = [change(weight if used is None else weight[used], each, importance) for each in mine]
        outputs = [moved[place] if is_embedding else x @ moved.mT for moved in changes]
        sums, lost = [moved_by(y) for y in outputs], [y.square().sum() for y in outputs]
        cost = sum(each.square().sum() / y for each, y in zip(sums, lost, strict=True)) / max(1, len(mine))
        for each, sum_, y in zip(mine, sums, lost, strict=True):
            sum_ *= (cost * y / sum_.square().sum()).sqrt()
            if each.activations is not None:
                sum_ += moved_by((each.activations.at(x.abs().max().item()).rounded(x) - x) @ weight.mT)
            losses[name][each.name] = sum_.square().sum().item() / 2 / DRAWS / tokens
    return losses


def test_losses_of_experts_and_drafts_are_those_of_the_definition(small_model: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(small_model)
    ids = text(260)
    candidates = dict.fromkeys(linear_modules(checkpoint), (scheme("int3-channel"), scheme("fp8-block")))
    expected = by_definition(checkpoint, ids, tmp_path / "shown", candidates)
    found = measure(checkpoint, candidates, ids, tmp_path / "measured", draws=DRAWS, seed=SEED)
    assert any(".experts." in name for name in found) and "model.layers.2.eh_proj" in found
    for name, losses in found.items():
        for each, loss in losses.items():
            assert loss == pytest.approx(expected.get(name, {}).get(each, 0.0), rel=1e-3), name


def test_losses_are_those_of_the_definition_whatever_the_memory(tiny: Checkpoint, tmp_path: Path) -> None:
    ids = text(96)
    for budget in (1 << 32, 1 << 20):
        # Where little fits, a scale of a whole matrix is one of 128 rows.
        candidates = all_candidates(tiny, SCHEMES if budget == 1 << 32 else SCHEMES[:-1])
        expected = by_definition(tiny, ids, tmp_path / f"shown {budget}", candidates)
        found = measure(tiny, candidates, ids, tmp_path / str(budget), draws=DRAWS, seed=SEED, memory_budget=budget)
        assert list(found) == list(candidates)
        for name in candidates.keys() - {"lm_head"}:
            assert found[name] == pytest.approx(expected[name], rel=1e-3), name
        # The head's is the divergence itself: no labels are drawn.
        assert found["lm_head"] == pytest.approx(head_divergence(tiny, ids), rel=1e-3)
        assert found["lm_head"]["int3-g32"] == pytest.approx(expected["lm_head"]["int3-g32"], rel=0.5)
    assert not (tmp_path / str(1 << 20) / "collected").exists()


def head_divergence(checkpoint: Checkpoint, ids: torch.Tensor) -> dict[str, float]:
    model = CausalLM.load(checkpoint)
    hidden = model.hidden(ids).flatten(0, 1)
    before, weight = model.logits(hidden).log_softmax(-1), model.lm_head
    losses = {}
    for each in PLAIN:
        model.lm_head = weight + change(weight, each, hidden.square().mean(0))
        after = model.logits(hidden).double().log_softmax(-1)
        losses[each.name] = (before.exp() * (before.double() - after)).sum(-1).mean().item()
    return losses


@pytest.mark.parametrize("stop", ["gradients, layer 2", "losses, model.layers.0.mlp.up_proj", "losses, lm_head"])
def test_an_interrupted_measurement_ends_in_the_same_numbers(tiny: Checkpoint, tmp_path: Path, stop: str) -> None:
    def progress(phase: str, done: float, total: float = 1.0, layer: int = 0, layers: int = 1) -> None:
        numbers.append(layer)
        if phase == stop and not finishing:
            raise Stop

    numbers: list[int] = []
    finishing = False

    candidates, ids = all_candidates(tiny), text(96)
    expected = measure(tiny, candidates, ids, tmp_path / "whole")
    with pytest.raises(Stop):
        measure(tiny, candidates, ids, tmp_path / "stopped", progress=progress)
    finishing = True
    assert measure(tiny, candidates, ids, tmp_path / "stopped", progress=progress) == expected
    assert numbers[-1] == len(step_sizes(tiny, with_embedding=True)) - 1


def test_what_is_in_memory_stays_within_the_budget(tmp_path: Path) -> None:
    """Beside the weights of one layer or end, as stored and as float32."""
    config = LLAMA | {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 512}
    checkpoint = Checkpoint.open(random_checkpoint(tmp_path / "model", config))
    weights, small, large = (2 + 4) * 3 * 512 * 256, 24 << 20, 1 << 30
    candidates = dict.fromkeys([*linear_modules(checkpoint), "lm_head", "model.embed_tokens"], PLAIN[:1])
    peaks = {}
    for budget in (small, large):
        with Allocated() as allocated:
            measure(checkpoint, candidates, text(512, 32, 64), tmp_path / str(budget), draws=1, memory_budget=budget)
        peaks[budget] = allocated.most
    assert peaks[small] < small + weights < peaks[large]


def test_a_solver_leaves_the_share_that_inputs_say() -> None:
    """Against GPTQ itself, of inputs that are alike and of such that have nothing to do with each other."""
    generator = torch.Generator().manual_seed(0)
    weight, int3 = torch.randn(64, 96, generator=generator), scheme("int3-g32")
    alike = torch.randn(3000, 24, generator=generator) @ torch.randn(24, 96, generator=generator)
    x = alike + torch.randn(3000, 96, generator=generator)
    shares = []
    for inputs in (x, torch.randn(3000, 96, generator=generator)):
        hessian = inputs.mT @ inputs
        solved = solve(weight[None], hessian[None], int3).weight().dequantize() - weight
        nearest = change(weight, int3, hessian.diagonal())
        lost, before = (((moved @ hessian) * moved).sum().item() for moved in (solved, nearest))
        shares.append(solver_share(inputs, 1 << 30))
        assert shares[-1] == pytest.approx(lost / before, rel=0.35)
    assert shares[0] < 0.5 < 0.9 < shares[1] <= 1
    assert solver_share(x[:40], 1 << 30) > 2 * shares[0]  # too few to know
    assert shares[0] < solver_share(x, 16 * 48**2) <= 1  # not all inputs fit
    assert 0 < solver_share(torch.zeros(5, 96), 1 << 30) <= 1


def test_chance_has_no_part_in_which_scheme_loses_more() -> None:
    moved = torch.randn(2, 60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lost = torch.tensor([4.0, 1.0, 0.0])
    moved = moved * lost.sqrt()
    even = evened_out(moved, lost).square().sum((0, 1))
    assert even[0] == pytest.approx(4 * even[1].item()) and even[2] == 0
    assert (even[:2] / lost[:2]).mean() == pytest.approx((moved.square().sum((0, 1))[:2] / lost[:2]).mean().item())
    noted = moved.square().sum((0, 1))
    assert abs(noted[0] / noted[1] - 4) > 0.1


def test_one_matrix_for_both_ends_is_rounded_as_it_is_solved(tmp_path: Path) -> None:
    """As a head: what that loses is a share, and what is looked up moves with scales that fit what the head reads."""
    checkpoint = Checkpoint.open(random_checkpoint(tmp_path / "tied", LLAMA, tie_word_embeddings=True))
    ids, ends = text(96), ["lm_head", "model.embed_tokens"]
    candidates = dict.fromkeys(ends, PLAIN[:1])
    nearest, solved = (
        measure(checkpoint, candidates, ids, tmp_path / str(len(given)), solved=given) for given in ((), ["lm_head"])
    )
    assert solved["lm_head"]["int3-g32"] < nearest["lm_head"]["int3-g32"]
    model = CausalLM.load(checkpoint)
    importance, seen = model.hidden(ids).flatten(0, 1).square().mean(0), model.embedding[ids.unique()]
    ratio = solved["model.embed_tokens"]["int3-g32"] / nearest["model.embed_tokens"]["int3-g32"]
    assert ratio != 1
    weighted, plain = (change(seen, PLAIN[0], given).square().sum().item() for given in (importance, None))
    assert ratio == pytest.approx(weighted / plain, rel=0.5)


def test_what_is_solved_loses_its_share(tiny: Checkpoint, tmp_path: Path) -> None:
    module, ids = "model.layers.0.mlp.down_proj", text(96)
    (nearest, solved) = (
        measure(tiny, {module: PLAIN, "lm_head": PLAIN}, ids, tmp_path / str(len(given)), solved=given)
        for given in ((), (module, "lm_head"))
    )
    for name, losses in nearest.items():
        shares = [solved[name][each] / loss for each, loss in losses.items()]
        assert 0 < shares[0] < 1 and shares == pytest.approx([shares[0]] * len(shares))


# What it does cost ---------------------------------------------------------------------------------------------------


class EmbeddedModel:
    """The embedded model, whose routing can be held: to which experts tokens go changes by leaps, which gradients do
    not see. For modules one by one that is a good part of what they cost, and for all at once a small one.
    """

    def __init__(self, path: Path, ids: torch.Tensor) -> None:
        self.checkpoint, self.ids = Checkpoint.open(path), ids
        self.model, self.chosen = CausalLM.load(self.checkpoint), dict[str, torch.Tensor]()
        for layer in self.model.layers:
            if isinstance(layer.mlp, MixtureOfExperts):
                layer.mlp.gate.register_forward_hook(self._hold(str(id(layer))))
        self.hold = True
        self.before = self._said()

    def _hold(self, name: str) -> Callable[..., Any]:
        def held(gate: Any, args: Any, routed: tuple[torch.Tensor, torch.Tensor]) -> Any:
            index = self.chosen.setdefault(name, routed[0])
            if not self.hold:
                return routed
            weight = torch.nn.functional.linear(args[0], gate.weight).sigmoid().gather(-1, index)
            return index, weight / weight.sum(-1, keepdim=True) * gate.spec.scaling_factor

        return held

    def _said(self) -> torch.Tensor:
        return self.model.logits(self.model.hidden(self.ids)).log_softmax(-1)

    def cost(self, modules: Sequence[str], each: Scheme, hold: bool = True) -> float:
        """KL divergence when they are rounded."""
        kept = {}
        for name in modules:
            _, _, layer, inside = name.split(".", 3)
            linear = self.model.layers[int(layer)].get_submodule(inside)
            assert isinstance(linear, Linear)
            weight = linear.weight
            kept[weight] = weight.clone()
            weight += change(weight, each)
        self.hold = hold
        after = self._said()
        for weight, value in kept.items():
            weight.copy_(value)
        return (self.before.exp() * (self.before - after)).sum(-1).mean().item()


def correlation(found: Sequence[float], expected: Sequence[float]) -> float:
    return torch.corrcoef(torch.tensor([found, expected]).log())[0, 1].item()


def test_the_embedded_model_loses_what_is_predicted(embedded: Path, tmp_path: Path) -> None:
    source = Calibration(text="builtin:python-docs", samples=16, length=64)
    check = Check(text="builtin:python-docs", tokens=256, length=64)
    texts = read_texts(source, check, Checkpoint.open(embedded), embedded)
    model = EmbeddedModel(embedded, torch.from_numpy(texts.check))
    last = model.checkpoint.spec.num_layers
    modules = [name for name in linear_modules(model.checkpoint) if int(name.split(".")[2]) < last]
    int3 = scheme("int3-g32")
    losses = measure(model.checkpoint, dict.fromkeys(modules, (int3,)), torch.from_numpy(texts.calibration), tmp_path)
    found = {name: each["int3-g32"] for name, each in losses.items()}
    some = [name for name in modules if ".experts." not in name][::2][:12]
    assert len(some) == 12
    predicted, measured = [found[name] for name in some], [model.cost([name], int3) for name in some]
    assert correlation(predicted, measured) > 0.9
    assert 0.5 < sum(predicted) / sum(measured) < 2
    assert 0.5 < sum(found.values()) / model.cost(modules, int3, hold=False) < 1.5
