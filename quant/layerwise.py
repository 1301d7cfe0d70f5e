"""The single pass: every layer is loaded once, measured, pruned, calibrated, quantised, written and freed.

Two activations flow side by side, each through its own kind of layer: the original's (over the check text: they end in
the reference that every later check is held against) and the quantised model's (over calibration and check text:
what enters a layer is what the quantised layers before it made of the text, so errors are seen and compensated).
After each layer its shard, the next layer's inputs and a record are on disk; a killed pass goes on behind the last
record and ends in the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.model import (
    DecoderLayer,
    MixtureOfExperts,
    MultiTokenPrediction,
    load_embedding,
    load_final_norm,
    load_layer,
)
from llmc.convert.spec import MixtureOfExpertsSpec
from llmc.errors import InputError, LlmcError
from llmc.quant.assign import Assignment, Rule, assign, linear_modules
from llmc.quant.compressed_tensors import quantization_config
from llmc.quant.layer_solver import Solved, solve_layer
from llmc.quant.prune import ReapScores, kept_per_group, prune, routers, survivors
from llmc.quant.reference import write_reference
from llmc.quant.shard import scheme_of, shard_path, write_ends, write_index, write_json, write_layer
from llmc.quant.stream import Stream

DEFAULT_MEMORY_BUDGET = 4 << 30
MIN_TOKEN_SHARE = 0.005  # of all calibration tokens, for an expert to be calibrated on its own ones


class Progress(Protocol):
    def __call__(self, layer: int, layers: int, phase: str, done: int, total: int) -> None:
        """`done` of `total` tokens of a phase of a layer; layers count from 0 and include MTP layers."""


@dataclass
class QuantiseResult:
    """JSON-able; what was done to every module and what it cost.

    modules:  name → {scheme, method, output_error | weight_error, tokens, damping, fallback?}
    roles:    role → {expected, quantised (parameters), bytes}
    survivors: layer → original numbers of the experts that stayed; empty when nothing was pruned
    layer_errors: relative distance of the quantised model's check activations from the original's, after each layer
    expert_tokens: layer → calibration tokens per expert, before pruning
    ppl_original, ppl: perplexity of the check text, original and quantised model (torch, float32)
    """

    modules: dict[str, dict[str, Any]] = field(default_factory=dict)
    roles: dict[str, dict[str, int]] = field(default_factory=dict)
    survivors: dict[str, list[int]] = field(default_factory=dict)
    layer_errors: list[float] = field(default_factory=list)
    expert_tokens: dict[str, list[int]] = field(default_factory=dict)
    ppl_original: float = 0.0
    ppl: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def quantise(
    checkpoint: Checkpoint,
    rules: Sequence[Rule],
    keep: float | None,
    calibration_ids: torch.Tensor,
    check_ids: torch.Tensor,
    output_dir: Path,
    work_dir: Path,
    progress: Progress,
    memory_budget: int | None = None,
) -> QuantiseResult:
    """Prunes to the fraction `keep` of the experts (None: all), quantises by `rules`, writes a checkpoint.

    calibration_ids [N, L] and check_ids [M, L'] int64. `work_dir` belongs to this checkpoint, these rules and these
    texts alone: what an interrupted pass left there is taken up. Writes `model-*.safetensors` with index, config.json
    with `quantization_config`, and reference.safetensors into `output_dir`. InputError for rules that do not fit.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    work_dir.mkdir(parents=True, exist_ok=True)
    budget = memory_budget or DEFAULT_MEMORY_BUDGET
    return _Pass(checkpoint, rules, keep, calibration_ids, check_ids, output_dir, work_dir, budget, progress).run()


class _Pass:
    def __init__(
        self,
        checkpoint: Checkpoint,
        rules: Sequence[Rule],
        keep: float | None,
        calibration_ids: torch.Tensor,
        check_ids: torch.Tensor,
        output_dir: Path,
        work_dir: Path,
        budget: int,
        progress: Progress,
    ) -> None:
        self.checkpoint, self.spec = checkpoint, checkpoint.spec
        self.assigned = assign(checkpoint, rules)
        self.ids = {"calibration": calibration_ids, "check": check_ids, "original": check_ids}
        self.output_dir, self.work_dir = output_dir, work_dir
        self.budget, self.progress = budget, progress
        self.layers = self.spec.num_all_layers
        found = routers(self.spec.mlps)
        if keep is not None and not found:
            raise InputError(f"{checkpoint.path}: this model has no experts to prune; remove `prune` from the recipe")
        self.per_group = kept_per_group(found[0], keep) if keep is not None else None
        self.last_calibrated = self._last_calibrated()
        self.layer = 0  # the one at work, for progress

    def run(self) -> QuantiseResult:
        records = self._records()
        if not records:
            self._embed()
        for index in range(len(records), self.layers):
            self.layer = index
            record = self._one_layer(index)
            write_json(self.work_dir / f"layer-{index:05d}.json", record)
            self._forget(index)
            records.append(record)
        ends = shard_path(self.output_dir, 0, self.layers + 1)
        if not ends.exists():
            write_ends(self.checkpoint, ends)
        return self._finish(records)

    def _last_calibrated(self) -> int:
        """The last layer that the calibration text has to reach; -1: none."""
        gptq = [int(module.split(".")[2]) for module, given in self.assigned.items() if given.method == "gptq"]
        pruned = [i for i, mlp in enumerate(self.spec.mlps) if isinstance(mlp, MixtureOfExpertsSpec)]
        return max([-1, *gptq, *(pruned if self.per_group is not None else [])])

    def _records(self) -> list[dict[str, Any]]:
        """Records of the layers that are finished, first to last."""
        records = []
        for index in range(self.layers):
            path = self.work_dir / f"layer-{index:05d}.json"
            if not path.exists():
                break
            records.append(json.loads(path.read_text(encoding="utf-8")))
        return records

    def _stream(self, part: str, index: int) -> Stream:
        rows, length = self.ids[part].shape
        return Stream(self.work_dir, part, index, (rows, length, self.spec.hidden_size))

    def _forget(self, index: int) -> None:
        """Drops the inputs of a finished layer; the MTP layers still need those of the first of them."""
        if index < self.spec.num_layers:
            for part in self.ids:
                self._stream(part, index).delete()

    def _embed(self) -> None:
        embedding = load_embedding(self.checkpoint)
        for part, ids in self.ids.items():
            stream = self._stream(part, 0)
            stream.create()
            for row, tokens in enumerate(ids):
                stream.write(slice(row, row + 1), functional.embedding(tokens, embedding)[None])
            stream.flush()

    # One layer ---------------------------------------------------------------------------------------------------

    def _one_layer(self, index: int) -> dict[str, Any]:
        prefix = f"model.layers.{index}."
        mine = {m.removeprefix(prefix): a for m, a in self.assigned.items() if m.startswith(prefix)}
        is_mtp = self.spec.is_mtp(index)
        layer = load_layer(self.checkpoint, index)
        record: dict[str, Any] = {"reports": {}, "roles": {}}
        forward = self._mtp_forward(index) if is_mtp else self._decoder_forward
        if not is_mtp:
            self._advance(layer, "original", index)
        kept = None
        if self.per_group is not None and isinstance(layer.mlp, MixtureOfExperts):
            kept, tokens = self._prune(layer, lambda: self._run(layer, forward, index, "score experts"))
            record |= {"survivors": kept, "expert_tokens": tokens}
            mine = _renumber(mine, kept)
        as_stored = self._stored_alike(prefix, mine, kept)
        solved = Solved()
        if any(name not in as_stored for name in mine):
            todo = {name: a for name, a in mine.items() if name not in as_stored}
            calibrate = partial(self._run, layer, forward, index)
            solved = solve_layer(layer, todo, calibrate, self._few_tokens(index), self.budget)
        for name, weight in solved.weights.items():
            _linear(layer, name).weight.copy_(weight.dequantise())
        if not is_mtp:
            if index < self.last_calibrated:
                self._advance(layer, "calibration", index)
            self._advance(layer, "check", index)
            record["error"] = self._distance(index + 1)
        elif index < self.last_calibrated:
            self._advance_mtp(layer, index)
        path = shard_path(self.output_dir, index + 1, self.layers + 1)
        record["schemes"] = write_layer(self.checkpoint, index, layer, kept, solved.weights, path)
        record["reports"] = solved.reports | {name: {"method": "kept as stored"} for name in as_stored}
        record["roles"] = self._count(prefix, mine, record["schemes"], layer)
        return record

    def _few_tokens(self, index: int) -> Callable[[int], float]:
        """With fewer tokens than this, for a number of inputs, an expert's own Hessian says too little."""
        mlp, tokens = self.spec.mlps[index], self.ids["calibration"].numel()
        top_k = mlp.router.top_k if isinstance(mlp, MixtureOfExpertsSpec) else 1
        return lambda inputs: max(MIN_TOKEN_SHARE * tokens, 2 * inputs / top_k)

    def _run(self, layer: DecoderLayer, forward: Callable[..., Any], index: int, phase: str) -> None:
        """All calibration tokens through the layer, for the observers attached to it."""
        for rows, x in self._watched("calibration", index, phase):
            forward(layer, x, "calibration", rows)

    def _watched(self, part: str, index: int, phase: str) -> Iterator[tuple[slice, torch.Tensor]]:
        stream = self._stream(part, index)
        total = stream.shape[0] * stream.shape[1]
        for rows, x in stream.micro_batches():
            yield rows, x
            self.progress(self.layer, self.layers, phase, rows.stop * stream.shape[1], total)

    @torch.no_grad()
    def _decoder_forward(self, layer: DecoderLayer, x: torch.Tensor, part: str, rows: slice) -> torch.Tensor:
        return layer(x, torch.arange(x.shape[1]).expand(x.shape[0], -1))

    def _mtp_forward(self, index: int) -> Callable[..., torch.Tensor]:
        """Positions i get hidden_i and the embedding of token i + 1 + depth; the last ones have no such token."""
        depth = index - self.spec.num_layers
        embedding, norm = load_embedding(self.checkpoint), load_final_norm(self.checkpoint)

        @torch.no_grad()
        def forward(layer: MultiTokenPrediction, x: torch.Tensor, part: str, rows: slice) -> torch.Tensor:
            tokens = self.ids[part][rows, 1 + depth :]
            x = x[:, : tokens.shape[1]]
            hidden = norm(x) if depth == 0 else x
            positions = torch.arange(x.shape[1]).expand(x.shape[0], -1)
            return layer(functional.embedding(tokens, embedding), hidden, positions)

        return forward

    def _advance(self, layer: DecoderLayer, part: str, index: int) -> None:
        """One part's text through a decoder layer, into the next layer's input."""
        target = self._stream(part, index).following()
        for rows, x in self._watched(part, index, f"forward {part}"):
            target.write(rows, self._decoder_forward(layer, x, part, rows))
        target.flush()

    def _advance_mtp(self, layer: DecoderLayer, index: int) -> None:
        forward, target = self._mtp_forward(index), self._stream("calibration", index).following()
        for rows, x in self._watched("calibration", index, "forward calibration"):
            y = forward(layer, x, "calibration", rows)
            target.write(rows, functional.pad(y, (0, 0, 0, x.shape[1] - y.shape[1])))
        target.flush()

    def _prune(self, layer: DecoderLayer, calibrate: Callable[[], None]) -> tuple[list[int], list[int]]:
        moe = layer.mlp
        assert isinstance(moe, MixtureOfExperts) and self.per_group is not None
        scores, handles = ReapScores.attach(moe)
        calibrate()
        for handle in handles:
            handle.remove()
        kept = survivors(scores.mean(), moe.gate.spec.num_groups, self.per_group)
        prune(layer, kept)
        return kept, scores.tokens.tolist()

    def _stored_alike(self, prefix: str, mine: dict[str, Assignment], kept: list[int] | None) -> set[str]:
        """Modules that the checkpoint already stores in the scheme asked for: codes are kept, not rounded twice."""
        names = set()
        for name, assignment in mine.items():
            weight = self.checkpoint.quantised(prefix + _original(name, kept))
            if weight is not None and scheme_of(weight) is assignment.scheme:
                names.add(name)
        return names

    def _distance(self, index: int) -> float:
        """Relative distance between the two models' activations that enter layer `index`, over the check text."""
        apart = whole = 0.0
        quantised = self._stream("check", index)
        for rows, x in self._stream("original", index).micro_batches():
            apart += (quantised.read(rows) - x).double().square().sum().item()
            whole += x.double().square().sum().item()
        return (apart / whole) ** 0.5 if whole else 0.0

    def _count(
        self, prefix: str, mine: dict[str, Assignment], schemes: dict[str, str], layer: DecoderLayer
    ) -> dict[str, dict[str, int]]:
        """Parameters that were to be quantised and that are, per role."""
        roles: dict[str, dict[str, int]] = {}
        for name, assignment in mine.items():
            role = self.checkpoint.role(f"{prefix}{name}.weight")
            counts = roles.setdefault(role, {"expected": 0, "quantised": 0})
            size = _linear(layer, name).weight.numel()
            counts["expected"] += size
            counts["quantised"] += size if schemes.get(prefix + name) == assignment.scheme.name else 0
        return roles

    # The end -----------------------------------------------------------------------------------------------------

    def _finish(self, records: list[dict[str, Any]]) -> QuantiseResult:
        result = QuantiseResult()
        schemes: dict[str, str] = {}
        for index, record in enumerate(records):
            prefix = f"model.layers.{index}."
            schemes |= record["schemes"]
            for name, report in record["reports"].items():
                result.modules[prefix + name] = {"scheme": record["schemes"].get(prefix + name)} | report
            for role, counts in record["roles"].items():
                total = result.roles.setdefault(role, {"expected": 0, "quantised": 0})
                for key, count in counts.items():
                    total[key] += count
            if "survivors" in record:
                result.survivors[str(index)] = record["survivors"]
                result.expert_tokens[str(index)] = record["expert_tokens"]
            if "error" in record:
                result.layer_errors.append(record["error"])
        for role, counts in result.roles.items():
            if counts["expected"] != counts["quantised"]:
                raise LlmcError(
                    f"{role}: {counts['quantised']:,} of {counts['expected']:,} parameters were quantised; "
                    "this is a bug in llmc"
                )
        last = self.spec.num_layers
        result.ppl_original, result.ppl = write_reference(
            self.checkpoint,
            self.ids["check"],
            self._stream("original", last),
            self._stream("check", last),
            self.output_dir / "reference.safetensors",
            lambda done, total: self.progress(self.layers - 1, self.layers, "reference", done, total),
        )
        shards = [shard_path(self.output_dir, number, self.layers + 1) for number in range(self.layers + 1)]
        write_index(shards)
        config = {key: value for key, value in self.checkpoint.config.items() if key != "quantization_config"}
        if self.per_group is not None:
            experts = self.per_group * routers(self.spec.mlps)[0].num_groups
            config = self.checkpoint.family.pruned_config(config, experts)
        if schemes:
            config["quantization_config"] = quantization_config(schemes, self._surviving_modules(result))
        write_json(self.output_dir / "config.json", config)
        return result

    def _surviving_modules(self, result: QuantiseResult) -> list[str]:
        """All linear layers of the result."""
        modules = []
        for module in linear_modules(self.checkpoint):
            parts = module.split(".")
            kept = result.survivors.get(parts[2])
            if kept is None or "experts" not in parts or int(parts[parts.index("experts") + 1]) < len(kept):
                modules.append(module)
        return modules


def _linear(layer: DecoderLayer, name: str) -> nn.Linear:
    module = layer.get_submodule(name)
    assert isinstance(module, nn.Linear), name
    return module


def _original(name: str, kept: list[int] | None) -> str:
    """A module's name in the checkpoint, for its name after pruning."""
    parts = name.split(".")
    if kept is not None and "experts" in parts:
        at = parts.index("experts") + 1
        parts[at] = str(kept[int(parts[at])])
    return ".".join(parts)


def _renumber(assigned: dict[str, Assignment], kept: list[int]) -> dict[str, Assignment]:
    """The assignments of what survives, under the names it has after pruning."""
    numbers = {old: new for new, old in enumerate(kept)}
    result = {}
    for name, assignment in assigned.items():
        parts = name.split(".")
        if "experts" in parts:
            at = parts.index("experts") + 1
            if int(parts[at]) not in numbers:
                continue
            parts[at] = str(numbers[int(parts[at])])
        result[".".join(parts)] = assignment
    return result
