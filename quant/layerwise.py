"""The single pass: every layer is loaded once, measured, pruned, calibrated, quantized, written and freed.

Two activations flow side by side, each through its own kind of layer: the original's (over the check text: they end in
the reference that every later check is held against) and the quantized model's (over calibration and check text:
what enters a layer is what the quantized layers before it made of the text, so errors are seen and compensated).
After each layer its shard, the next layer's inputs and a record are on disk; a killed pass goes on behind the last
record that everything agrees with (see `resume`) and ends in the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional

from llmc.contracts.layer_errors import LayerErrors, rounded
from llmc.contracts.layer_record import LayerRecord, ModuleReport, PrunedExperts, RoleCounts
from llmc.contracts.progress import ProgressFunction
from llmc.convert import dataflow
from llmc.convert.checkpoint import Checkpoint
from llmc.convert.formats import DEFAULT_LAYOUT, layout
from llmc.convert.layer_modules import BLOCKS, own_modules
from llmc.convert.model import (
    DecoderLayer,
    Linear,
    compute_in,
    load_final_norm,
    load_stored_layer,
    share_layer,
)
from llmc.convert.spec import MixtureOfExpertsSpec
from llmc.convert.tensor_names import ModuleName
from llmc.errors import InputError
from llmc.quant.activation_file import CPU, ActivationFile
from llmc.quant.assign import Assignment, Rule, assign, check_layout, linear_modules, stale_copies
from llmc.quant.durable import write_json
from llmc.quant.ends import EMBEDDING, HEAD, Ends
from llmc.quant.layer_calibration import LayerCalibration, calibration_dtype
from llmc.quant.layer_errors import chosen_experts, compare_routing, distance
from llmc.quant.layer_run import Flow, LayerRun
from llmc.quant.layer_solver import Solved, linears, round_modules
from llmc.quant.memory import release_memory
from llmc.quant.mlp_calibration import ExpertTokens, MLPCalibration
from llmc.quant.output_hessian_pass import OutputHessianPass
from llmc.quant.overflow import OverflowInModelError, explained
from llmc.quant.prune import Pruning, kept_per_group, original_name, renumber, routers
from llmc.quant.reference import write_reference
from llmc.quant.result import QuantizeResult
from llmc.quant.resume import finish_layer, finished_layers
from llmc.quant.scale_range import require_range
from llmc.quant.schemes import scheme
from llmc.quant.schemes.base import Scheme
from llmc.quant.shard import shard_path, write_ends, write_index, write_layer
from llmc.quant.streams import Streams
from llmc.quant.tied_head import TiedHead

DEFAULT_MEMORY_BUDGET = 4 << 30
MIN_TOKEN_SHARE = 0.005  # of all calibration tokens, for an expert to be calibrated on its own ones


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True)
class QuantizeOptions:
    """What a pass over a model is told beside the rules.

    Attributes:
        memory_budget: bytes that moments, the solver and what is kept of activations may take
        expert_tokens: whether experts are calibrated on the tokens routed to them or on all
        layout: of the safetensors, see `convert.formats`
        fp8_cache: whether the attention cache is to hold E4M3
        device: where layers are run and solved; activations between layers and results lie in the host's memory
        negative_scales: whether scales of symmetric integers may be of either sign
    """

    memory_budget: int = DEFAULT_MEMORY_BUDGET
    expert_tokens: ExpertTokens = "routed"
    layout: str = DEFAULT_LAYOUT
    fp8_cache: bool = False
    device: torch.device = CPU
    negative_scales: bool = True

    def taken(self, scheme: Scheme) -> Scheme:
        """A scheme as the targets take it."""
        return scheme if self.negative_scales else scheme.positive


def quantize(
    checkpoint: Checkpoint,
    rules: Sequence[Rule],
    pruning: Pruning | None,
    calibration_ids: torch.Tensor,
    check_ids: torch.Tensor,
    output_dir: Path,
    work_dir: Path,
    progress: ProgressFunction,
    options: QuantizeOptions = QuantizeOptions(),  # immutable
    unchanged: Callable[[], None] = _nothing,
    tell: Callable[[str], None] = _nothing,
) -> QuantizeResult:
    """Prunes experts (None: none), quantizes by `rules`, writes a checkpoint.

    calibration_ids [N, L] and check_ids [M, L'] int64. `work_dir` belongs to this checkpoint, these rules and these
    texts alone: what an interrupted pass left there is taken up. Writes `model-*.safetensors` with index, config.json
    with `quantization_config`, and reference.safetensors into `output_dir`. InputError for rules that do not fit.

    Args:
        unchanged: raises when the checkpoint's files are not what they were; called before what was made of them counts
        tell: is told in a line what of an interrupted pass is damaged and done again, and what a layout loses
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    work_dir.mkdir(parents=True, exist_ok=True)
    ids = {"calibration": calibration_ids, "check": check_ids, "original": check_ids}
    return _Pass(checkpoint, rules, pruning, ids, output_dir, work_dir, options, progress, unchanged, tell).run()


class _Pass:
    def __init__(
        self,
        checkpoint: Checkpoint,
        rules: Sequence[Rule],
        pruning: Pruning | None,
        ids: dict[str, torch.Tensor],
        output_dir: Path,
        work_dir: Path,
        options: QuantizeOptions,
        progress: ProgressFunction,
        unchanged: Callable[[], None],
        tell: Callable[[str], None],
    ) -> None:
        self.checkpoint, self.spec, self.layout = checkpoint, checkpoint.spec, layout(options.layout)
        self.fp8_cache = options.fp8_cache and not self.spec.fp8_cache  # a checkpoint that has scales keeps them
        check_layout(rules, self.layout, options.fp8_cache)
        if self.layout.name == "gptq" and checkpoint.stored_names.joined:
            raise InputError(
                f"layout gptq: {checkpoint.family.name} stores several modules as one, which is not read back from it; "
                f"use layout {DEFAULT_LAYOUT}"
            )
        self.assigned = {
            module: replace(given, scheme=options.taken(given.scheme))
            for module, given in assign(checkpoint, rules).items()
        }
        self.left_out = stale_copies(checkpoint, self.assigned)
        self.parsed = {ModuleName.parse(module): given for module, given in self.assigned.items()}
        self.ids, self.output_dir, self.work_dir = ids, output_dir, work_dir
        self.options, self.progress = options, progress
        self.unchanged, self.tell = unchanged, tell
        self.layers = self.spec.num_all_layers
        found = routers(self.spec.mlps)
        if pruning is not None and not found:
            raise InputError(f"{checkpoint.path}: this model has no experts to prune; remove `prune` from the recipe")
        self.pruning = pruning
        self.per_group = kept_per_group(found[0], pruning.keep) if pruning else 0
        self.calibration_parts = ["calibration"]
        if any(given.asymmetric for given in self.assigned.values()):
            self.calibration_parts.append("calibration-original")
            self.ids = ids | {"calibration-original": ids["calibration"]}
        self.streams = Streams(self.spec, work_dir, self.ids, options.device)
        tied = TiedHead(
            checkpoint, ids["calibration"], work_dir / "tied-head", options.device, self._report, unchanged, tell
        )
        self.ends = Ends.of(checkpoint, self.assigned, options.device, tied.inputs, options.memory_budget // 4)
        self.last_calibrated = self._last_calibrated()
        two_sided = [
            str(name) for name, given in self.parsed.items() if given.method == "yaqa" and name.layer is not None
        ]
        self.outputs = OutputHessianPass(checkpoint, frozenset(two_sided), work_dir / "gradients")
        self.layer = 0  # the one at work, for progress
        self.place: tuple[str, ...] = ("model.embed_tokens",)  # the modules at work, for errors

    def run(self) -> QuantizeResult:
        try:
            return self._run()
        except OverflowInModelError as error:
            raise explained(error, self.checkpoint, self.place) from error

    def _run(self) -> QuantizeResult:
        records = finished_layers(self.work_dir, self.output_dir, self.layers, self.spec.num_layers, self.tell)
        if not records:
            require_range(self.checkpoint, self.assigned, self.layout, self._report, self.tell)
        if len(records) < self.layers and self.outputs.modules:
            self._measure_outputs()
        if not records:
            self.streams.embed(self.ends)
        for index in range(len(records), self.layers):
            self.layer, self.place = index, (f"model.layers.{index}",)
            record = self._one_layer(index)
            self.unchanged()
            finished = finish_layer(self.work_dir, index, record, self._shard(index + 1), self._following(index))
            self.streams.forget(index - 1)
            records.append(finished)
            release_memory()
        self.layer = self.layers - 1
        result = self._finish(records)
        self.unchanged()
        return result

    def _measure_outputs(self) -> None:
        def report(phase: str, done: float, total: float = 1.0, layer: int = 0, layers: int = 1) -> None:
            self.progress(f"output Hessians, {phase}", done, total, 0, self.layers)  # before the first layer

        self.outputs.run(
            self.ids["calibration"],
            self.options.memory_budget,
            self.options.device,
            report,
            self.unchanged,
            self.tell,
        )

    def _report(self, phase: str, done: int, total: int) -> None:
        self.progress(phase, done, total, self.layer, self.layers)

    def _last_calibrated(self) -> int:
        """The last layer that the calibration text has to reach; -1: none."""
        if self.fp8_cache:
            return self.layers - 1
        gptq = [name.layer for name, given in self.parsed.items() if given.calibrated and name.layer is not None]
        pruned = [i for i, mlp in enumerate(self.spec.mlps) if isinstance(mlp, MixtureOfExpertsSpec)]
        return max([-1, *gptq, *(pruned if self.pruning else [])])

    def _goes_on(self, index: int) -> bool:
        """Whether somebody behind a layer reads what it makes of the calibration text."""
        return index < self.last_calibrated or (self.ends.calibrates_head and index < self.spec.num_layers)

    def _shard(self, number: int) -> Path:
        """That of the ends of the model, 0, or of layer `number - 1`."""
        return shard_path(self.output_dir, number, self.layers + 1)

    def _following(self, index: int) -> list[Path]:
        """What a layer leaves for those behind it."""
        parts = self.calibration_parts if self._goes_on(index) else []
        if index < self.spec.num_layers:
            parts = [*parts, "original", "check"]
        return [self.streams.entering(part, index + 1).path for part in parts]

    # One layer ---------------------------------------------------------------------------------------------------

    def _one_layer(self, index: int) -> LayerRecord:
        prefix = f"model.layers.{index}."
        mine = {name.inside: a for name, a in self.parsed.items() if name.layer == index}
        is_mtp = self.spec.is_mtp(index)
        layer = load_stored_layer(self.checkpoint, index).to(self.options.device)
        experts, errors, chosen = None, None, list[torch.Tensor]()
        if not is_mtp:
            with chosen_experts(layer) as chosen:
                self.streams.advance(layer, "original", index, self._report)
        as_stored: set[str] = set()

        def begin(part: str) -> dict[str, Assignment]:
            """What of a part of the layer is to be calibrated; what needs no calibration is quantized."""
            kept = calibration.mlp_calibration.kept
            surviving = mine if kept is None else renumber(mine, kept)
            assigned = {name: a for name, a in surviving.items() if ModuleName.parse(name).part_of_layer == part}
            stored = self._stored_alike(prefix, assigned, kept)
            as_stored.update(stored)
            todo = {name: given for name, given in assigned.items() if name not in stored}
            round_modules(linears(layer), todo, calibration.solved)
            return todo

        calibration = self._calibration(layer, index, begin)
        if index > self.last_calibrated and not self._goes_on(index):
            for part in (*own_modules(self.spec, index), *BLOCKS):
                begin(part)
        elif is_mtp:
            self._calibrate_mtp(calibration, index)
        else:
            dataflow.decoder_layer(calibration, calibration.entrance(), self.spec.wiring, self.spec.blocks(index))
            calibration.finish()
        scores, kept = calibration.mlp_calibration.scores, calibration.mlp_calibration.kept
        if scores is not None and kept is not None:
            experts = PrunedExperts(survivors=kept, tokens=scores.tokens.tolist(), super_experts=scores.protected())
            mine = renumber(mine, kept)
        if not is_mtp:
            compute_in(layer, None)
            with chosen_experts(layer) as chosen_now:
                self.streams.advance(layer, "check", index, self._report)
            errors = self._errors(index, chosen, chosen_now, kept)
        weights = calibration.solved.weights
        schemes = write_layer(
            self.checkpoint,
            index,
            layer,
            kept,
            weights,
            {name: given.scheme for name, given in mine.items()},
            self._shard(index + 1),
            self.layout,
            self.left_out,
        )
        reports = calibration.solved.reports
        reports |= {name: ModuleReport(method="kept as stored") for name in sorted(as_stored)}
        roles = self._count(prefix, mine, schemes, layer)
        return LayerRecord(reports=reports, roles=roles, schemes=schemes, experts=experts, errors=errors)

    def _errors(
        self, index: int, before: list[torch.Tensor], after: list[torch.Tensor], kept: list[int] | None
    ) -> LayerErrors:
        """Of a layer that both models are through; before, after: the experts that each has chosen."""
        apart, cosine = distance(
            self.streams.entering("original", index + 1), self.streams.entering("check", index + 1)
        )
        mlp = self.spec.mlps[index]
        experts = mlp.router.num_experts if isinstance(mlp, MixtureOfExpertsSpec) else 0
        routing = compare_routing(before, after, experts, kept)
        made = LayerErrors(layer=index, error=apart, cosine=rounded(cosine))
        return made if routing is None else made.model_copy(update={"routing": routing})

    def _calibration(
        self, layer: DecoderLayer, index: int, begin: Callable[[str], dict[str, Assignment]]
    ) -> LayerCalibration:
        runs = []
        for part in self.calibration_parts:
            mine, entry = layer, self.streams.entering(part, index)
            if part != "calibration":
                mine = share_layer(self.spec, index, layer)
            compute_in(mine, calibration_dtype(self.options.device))
            x, out = entry, entry.following
            if self.spec.is_mtp(index):
                depth = index - self.spec.num_layers
                shape = (entry.shape[0], entry.shape[1] - 1 - depth, entry.shape[2])
                x = ActivationFile(self.work_dir, f"{part}-mtp", index, shape, self.options.device)
                out = x.beside(f"{part}-mtp-out").create
            reached = index <= self.last_calibrated or self._goes_on(index)
            runs.append(LayerRun(mine, entry, x, out() if reached else x))

        mlp = MLPCalibration(
            runs,
            begin,
            self._report,
            self._goes_on(index),
            self._few_tokens(index),
            self.options.memory_budget,
            self.options.expert_tokens,
            (self.pruning.method, self.per_group) if self.pruning else None,
            Solved(self.outputs.of(index) if self.outputs.modules else None),
        )
        return LayerCalibration(runs, begin, self._report, mlp, self.fp8_cache)

    def _calibrate_mtp(self, calibration: LayerCalibration, index: int) -> None:
        """Position i joins its hidden state with the embedding of token i + 1 + depth; the next MTP layer goes on from
        what this one makes of them.
        """
        depth = index - self.spec.num_layers
        norm = load_final_norm(self.checkpoint).to(self.options.device)
        table = self.ends.embedding()
        original = self.ends.embedding(original=True) if EMBEDDING in self.ends.assigned else table

        def embedded(run: LayerRun, rows: slice) -> torch.Tensor:
            tokens = self.ids["calibration"][rows, 1 + depth :]
            mine = original if "original" in run.entry.part else table
            return functional.embedding(tokens, mine).to(self.options.device)

        def hidden(run: LayerRun, rows: slice) -> torch.Tensor:
            x = run.entry.read(rows)[:, : run.x.shape[1]]
            return norm(x) if depth == 0 and self.spec.wiring.mtp_hidden_normed else x

        with torch.no_grad():
            predicted = dataflow.multi_token_prediction(calibration, Flow(embedded), Flow(hidden), self.spec.wiring)
            calibration.finish()
            for run in calibration.runs:
                if index < self.last_calibrated:
                    target = run.entry.following()
                    for rows in run.out.micro_batches():
                        y = predicted.read(run, rows)
                        target.write(rows, functional.pad(y, (0, 0, 0, target.shape[1] - y.shape[1])))
                    target.flush()
                run.x.delete()
                run.out.delete()

    def _few_tokens(self, index: int) -> Callable[[int], float]:
        """With fewer tokens than this, for a number of inputs, an expert's own Hessian says too little."""
        mlp, tokens = self.spec.mlps[index], self.ids["calibration"].numel()
        top_k = mlp.router.top_k if isinstance(mlp, MixtureOfExpertsSpec) else 1
        return lambda inputs: max(MIN_TOKEN_SHARE * tokens, 2 * inputs / top_k)

    def _stored_alike(self, prefix: str, mine: dict[str, Assignment], kept: list[int] | None) -> set[str]:
        """Modules that the checkpoint already stores in the scheme asked for: codes are kept, not rounded twice."""
        names = set()
        for name, assignment in mine.items():
            weight = self.checkpoint.quantized(prefix + original_name(name, kept))
            if weight is not None and assignment.scheme.stores(weight):
                names.add(name)
        return names

    def _count(
        self, prefix: str, mine: dict[str, Assignment], schemes: dict[str, str], layer: DecoderLayer
    ) -> dict[str, RoleCounts]:
        """Parameters that were to be quantized and that are, per role."""
        roles: dict[str, RoleCounts] = {}
        for name, assignment in mine.items():
            role = self.checkpoint.role(f"{prefix}{name}.weight")
            linear = layer.get_submodule(name)
            assert isinstance(linear, Linear)
            size = linear.in_features * linear.out_features
            done = size if schemes.get(prefix + name) == assignment.scheme.name else 0
            roles[role] = roles.get(role, RoleCounts()) + RoleCounts(expected=size, quantized=done)
        return roles

    # The end -----------------------------------------------------------------------------------------------------

    def _finish(self, records: list[LayerRecord]) -> QuantizeResult:
        last = self.spec.num_layers
        self.place = ("model.norm", EMBEDDING if self.spec.tie_word_embeddings else HEAD)
        self._finish_ends()
        result = QuantizeResult.of(records, self.ends.finished(), self.ends.roles())
        schemes = {module: name for record in records for module, name in record.schemes.items()} | self.ends.schemes
        distance = write_reference(
            self.checkpoint,
            self.ids["check"],
            self.streams.entering("original", last),
            self.streams.entering("check", last),
            self.ends.quantized_head(),
            self.output_dir / "reference.safetensors",
            partial(self._report, "reference"),
        )
        result.ppl_original, result.ppl, result.kl = distance.ppl_original, distance.ppl, distance.kl
        result.answers = distance.answers
        write_index([self._shard(number) for number in range(self.layers + 1)])
        config = self.checkpoint.family.native_config(self.checkpoint.config)
        config.pop("quantization_config", None)
        if config.get("tie_word_embeddings") and not self.spec.tie_word_embeddings:  # the head is another matrix
            config["tie_word_embeddings"] = False
        if self.pruning:
            experts = self.per_group * routers(self.spec.mlps)[0].num_groups
            config = self.checkpoint.family.pruned_config(config, experts)
        fp8_cache = self.options.fp8_cache or self.spec.fp8_cache
        if schemes or fp8_cache:
            stored = self.checkpoint.stored_names.stored_module
            modules = dict.fromkeys(map(stored, self._surviving_modules(result)))
            named = {stored(module): scheme(name) for module, name in schemes.items()}
            config["quantization_config"] = self.layout.config(named, modules, fp8_cache)
            for name, content in self.layout.beside(config["quantization_config"]).items():
                write_json(self.output_dir / name, content)
        write_json(self.output_dir / "config.json", config)
        return result

    def _finish_ends(self) -> None:
        """Quantizes head and embedding, if they are to be, and writes them."""
        last = self.spec.num_layers
        asymmetric = HEAD in self.assigned and self.assigned[HEAD].method == "gptaq"
        self.ends.finish(
            self.streams.entering("calibration", last),
            self.streams.entering("calibration-original", last) if asymmetric else None,
            self._report,
        )
        wanted = {module: given.scheme for module, given in self.ends.assigned.items()}
        write_ends(self.checkpoint, self._shard(0), self.layout, self.ends.weights, wanted)

    def _surviving_modules(self, result: QuantizeResult) -> list[str]:
        """All linear layers of the result."""
        modules = []
        for module in linear_modules(self.checkpoint):
            name = ModuleName.parse(module)
            pruned = result.experts.get(str(name.layer))
            if pruned is None or name.expert is None or name.expert < len(pruned.survivors):
                modules.append(module)
        return modules
