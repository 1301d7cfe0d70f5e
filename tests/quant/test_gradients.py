"""The way back layer by layer agrees with autograd through the whole model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.gpt_oss import gpt_oss_checkpoint
from support.layerwise_pass import Stop
from support.model_lines import published_config
from support.random_checkpoint import DEEPSEEK_V3, LLAMA, random_checkpoint, random_weights, write_checkpoint
from support.small_config import small_config
from support.small_model import save, witness

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import CausalLM, Linear, MixtureOfExperts, scaled_logits
from llmc.convert.quantized_weight import Activations, round_to_fp8
from llmc.errors import InputError
from llmc.quant.drawn_labels import drawn, uniform
from llmc.quant.gradients import Observed, backward, step_sizes
from llmc.quant.observed import ObservedLinear, Observer

ROWS, LENGTH, DRAWS, SEED = 3, 20, 2, 5
Seen = dict[tuple[str, int], list[torch.Tensor]]  # module and draw → x, gradient, sequence


def collect(checkpoint: Checkpoint, ids: torch.Tensor, work_dir: Path, **options: Any) -> Seen:
    seen: dict[tuple[str, int], list[tuple[torch.Tensor, ...]]] = defaultdict(list)

    def visit(one: Observed) -> None:
        if one.x.dim() > 1:
            assert (one.weight.out_features, one.weight.in_features) == (one.gradient.shape[1], one.x.shape[1])
        seen[one.module, one.draw].append((one.x, one.gradient, one.sequence))

    backward(checkpoint, ids, work_dir, visit, draws=DRAWS, seed=SEED, with_embedding=True, **options)
    return {key: [torch.cat(parts) for parts in zip(*found, strict=True)] for key, found in seen.items()}


class WholeModel:
    """The same by autograd, with all layers and rows in memory."""

    def __init__(self, checkpoint: Checkpoint, ids: torch.Tensor) -> None:
        self.model, self.ids, self.spec = CausalLM.load(checkpoint), ids, checkpoint.spec
        self.model.lm_head = self.model.lm_head.clone()  # not the leaf that the embedding is
        self.made: list[tuple[str, torch.Tensor, torch.Tensor]] = []
        self.rows: dict[str, torch.Tensor] = {}
        for index, layer in enumerate(self.model.layers):
            for name, module in layer.named_modules():
                if isinstance(module, Linear):
                    module.register_forward_hook(self._note(f"model.layers.{index}.{name}"))
                if isinstance(module, MixtureOfExperts):
                    module.gate.register_forward_hook(self._note_routing(f"model.layers.{index}.{name}"))

    def _note(self, name: str) -> Callable[..., None]:
        return lambda module, args, y: self.made.append((name, args[0], y))

    def _note_routing(self, name: str) -> Callable[..., None]:
        def note(module: Any, args: Any, routed: tuple[torch.Tensor, torch.Tensor]) -> None:
            tokens = len(routed[0]) // ROWS
            for expert in range(module.spec.num_experts):
                where = torch.where(routed[0] == expert)[0]
                parts = [f"{name}.experts.{expert}.{each}" for each in ("gate_proj", "up_proj", "down_proj")]
                self.rows |= dict.fromkeys(parts, where // tokens)

        return note

    def seen(self) -> Seen:
        x = self.model.embed(self.ids).requires_grad_()
        embedded, positions = x, torch.arange(LENGTH).expand(ROWS, -1)
        with torch.enable_grad():
            for index in range(self.spec.num_layers):
                x = self.model.layers[index](x, positions)
            said = self._said(self.model.norm(x), "lm_head")
            found = self._gradients(said, 0)
            for draw in range(DRAWS):
                scale = self.spec.embedding_scale
                found["model.embed_tokens", draw] = [self.ids.flatten(), self._of_said(said, 0, draw, embedded) * scale]
            self.made = []
            losses = []
            x = self.model.norm(x).detach() if self.spec.wiring.mtp_hidden_normed else x.detach()
            for depth in range(self.spec.num_mtp_layers):
                tokens = self.model.embed(self.ids[:, 1 + depth :])
                x = x[:, : tokens.shape[1]].requires_grad_()
                x = self.model.layers[self.spec.num_layers + depth](tokens, x, positions[:, : tokens.shape[1]])
                losses.append(self._said(x, ""))
            if losses:
                found |= self._gradients(losses[0], 1)
        return {key: [*parts, self._sequence(key[0], len(parts[0]))] for key, parts in found.items()}

    def _said(self, hidden: torch.Tensor, name: str) -> torch.Tensor:
        y = torch.nn.functional.linear(hidden, self.model.lm_head)
        if name:
            self.made.append((name, hidden, y))
        return scaled_logits(self.spec, y.clone()).log_softmax(-1)

    def _log_likelihood(self, said: torch.Tensor, kind: int, draw: int) -> torch.Tensor:
        numbers = [uniform(said.shape[1], (SEED, kind, draw, row)) for row in range(ROWS)]
        labels = torch.stack([drawn(each.detach(), u[:, None]) for each, u in zip(said, numbers, strict=True)])
        return said.gather(-1, labels).sum()

    def _of_said(self, said: torch.Tensor, kind: int, draw: int, y: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(self._log_likelihood(said, kind, draw), y, retain_graph=True)[0].flatten(0, -2)

    def _gradients(self, said: torch.Tensor, kind: int) -> Seen:
        return {
            (name, draw): [x.detach().flatten(0, -2), self._of_said(said, kind, draw, y)]
            for name, x, y in self.made
            for draw in range(DRAWS)
        }

    def _sequence(self, name: str, count: int) -> torch.Tensor:
        return self.rows[name] if name in self.rows else torch.arange(ROWS).repeat_interleave(count // ROWS)


def deepseek(folder: Path) -> Path:
    return random_checkpoint(folder, DEEPSEEK_V3)


def llama(folder: Path) -> Path:
    return random_checkpoint(folder, LLAMA | {"attention_bias": True, "tie_word_embeddings": True})


def published(name: str) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        config = small_config(published_config(name))
        return save(witness(config), config, folder)

    return made


MODELS: dict[str, Callable[[Path], Path]] = {
    "llama, tied": llama,
    "deepseek": deepseek,
    "gpt-oss": gpt_oss_checkpoint,
    "gemma2": published("google--gemma-2-9b-it"),
    "qwen3-next": published("Qwen--Qwen3-Next-80B-A3B.bridge"),
    "nemotron": published("nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_module_has_the_gradients_of_the_whole_model(name: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(MODELS[name](tmp_path / "model"))
    ids = torch.randint(3, checkpoint.spec.vocab_size, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    expected = WholeModel(checkpoint, ids).seen()
    found = collect(checkpoint, ids, tmp_path / "work")
    assert found.keys() == expected.keys()
    for key, parts in expected.items():
        x, gradient, sequence = found[key]
        torch.testing.assert_close(x, parts[0], rtol=1e-4, atol=1e-5)
        scale = parts[1].abs().max().item()
        torch.testing.assert_close(gradient, parts[1], rtol=0, atol=1e-5 * scale, msg=str(key))
        assert torch.equal(sequence, parts[2]), key


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(random_checkpoint(tmp_path_factory.mktemp("model") / "tiny", LLAMA))


def shown(
    checkpoint: Checkpoint, ids: torch.Tensor, work_dir: Path, stop: str = "", **options: Any
) -> dict[str, bytes]:
    """Every module → all that was shown of it; `stop`: the place in which the pass ends."""
    seen: dict[str, bytes] = defaultdict(bytes)

    def visit(one: Observed) -> None:
        seen[one.module] += b"".join(part.numpy().tobytes() for part in (one.x, one.gradient, one.sequence))

    def finish(place: str) -> list[Path]:
        if place == stop:
            raise Stop
        file = work_dir / f"{place}.result"
        file.write_bytes(b"".join(seen[name] for name in sorted(seen) if name.startswith(place)))
        return [file]

    if stop:
        with pytest.raises(Stop):
            backward(checkpoint, ids, work_dir, visit, finish=finish, **options)
    else:
        backward(checkpoint, ids, work_dir, visit, finish=finish, **options)
    return {path.name: path.read_bytes() for path in sorted(work_dir.glob("*.result"))}


@pytest.mark.parametrize(
    ("stop", "damaged"),
    [
        ("lm_head", None),
        ("model.layers.1", None),
        ("model.layers.0", None),
        ("lm_head", "inputs"),
        ("model.layers.1", "result"),
        ("model.layers.0", "newest"),
        ("model.layers.0", "inputs"),
    ],
)
def test_an_interrupted_pass_ends_in_the_same_bytes(
    tiny: Checkpoint, tmp_path: Path, stop: str, damaged: str | None
) -> None:
    ids = torch.randint(3, 96, (4, 12), generator=torch.Generator().manual_seed(0))
    expected = shown(tiny, ids, tmp_path / "whole")
    work = tmp_path / "stopped"
    before = shown(tiny, ids, work, stop)
    assert len(before) < len(expected)
    said: list[str] = []
    names = {"newest": "*gradient*.f32", "result": "*.result", "inputs": "calibration-original-0*.f32"}
    if damaged:
        for file in sorted(work.glob(names[damaged]))[-1:]:
            file.write_bytes(bytes(file.stat().st_size))
    phases: list[tuple[str, int]] = []

    def progress(phase: str, done: float, total: float = 1, layer: int = 0, layers: int = 1) -> None:
        phases.append((phase, layer))

    result = shown(tiny, ids, work, progress=progress, tell=said.append)
    assert result == expected
    if not damaged:
        names = {"lm_head": "gradients, head", "model.layers.1": "gradients, layer 2"}
        assert phases[0][0] == names.get(stop, "gradients, layer 1")
        assert not said
    numbers = [number for _, number in phases]
    assert numbers == sorted(numbers) and numbers[-1] == len(step_sizes(tiny)) - 1
    assert not list(work.glob("*.f32"))
    assert shown(tiny, ids, work, progress=lambda *_: pytest.fail("nothing is left to do")) == expected


def test_fewer_rows_at_a_time_show_the_same(tiny: Checkpoint, tmp_path: Path) -> None:
    ids = torch.randint(3, 96, (6, 32), generator=torch.Generator().manual_seed(0))
    seen: dict[int, list[Observed]] = {1 << 30: [], 1: []}
    for budget, mine in seen.items():
        backward(tiny, ids, tmp_path / str(budget), mine.append, memory_budget=budget)
    many, few = ([each for each in found if each.module != "lm_head"] for found in seen.values())
    assert len(few) > len(many)
    for name in {each.module for each in many}:
        for field in ("x", "gradient", "sequence"):
            found, expected = (
                torch.cat([getattr(each, field) for each in all_ if each.module == name]) for all_ in (few, many)
            )
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_labels_come_as_often_as_the_model_says() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0])
    numbers = uniform(20_000, (0, 1, 2))
    found = drawn(probabilities.log().expand(len(numbers), -1), numbers[:, None])[:, 0]
    assert torch.allclose(found.bincount(minlength=5) / len(found), probabilities, atol=0.015)
    assert not torch.equal(numbers, uniform(20_000, (0, 2, 1)))
    last = torch.tensor([[1 - 1e-15, 0.0]], dtype=torch.float64)
    assert torch.equal(drawn(probabilities.log()[None], last), torch.tensor([[3, 0]]))


def test_what_is_rounded_passes_gradients_on_and_is_shown_rounded() -> None:
    """Inputs of a layer that rounds them, and what goes through an FP8 cache."""
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    linear = Linear(8, 3, bias=False).requires_grad_(False)
    linear.activations = Activations("token")
    seen: list[Observed] = []
    observed = ObservedLinear(linear, "model.layers.0.mlp.up_proj", Observer(seen.append, slice(5, 7), 2))
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        y = observed(round_to_fp8(leaf, 0.01))
        assert torch.equal(y.detach(), linear(round_to_fp8(x, 0.01)))
        gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        y.backward(gradient)
    assert torch.equal(leaf.grad, gradient @ linear.weight)
    assert torch.equal(seen[0].x, linear.activations.rounded(round_to_fp8(x, 0.01)))
    assert torch.equal(seen[0].gradient, gradient)
    assert seen[0].sequence.tolist() == [5, 5, 6, 6]


def test_activations_that_outgrow_float32_are_explained(tmp_path: Path) -> None:
    weights = random_weights(LLAMA)
    weights["model.layers.1.mlp.up_proj.weight"] *= 1e38
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "model", LLAMA, weights))
    with pytest.raises(InputError, match=r"model.layers.1: the original model's activations .*1.mlp.up_proj.weight"):
        backward(checkpoint, torch.arange(12).view(1, 12), tmp_path / "work", lambda one: None)
