"""What the ladder that every model line climbs stands on: its small model, made once, and what is made of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import MtpModel

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.families import family_of
from llmc.convert.layer_modules import weight_shapes
from llmc.convert.model import CausalLM
from llmc.convert.safetensors_file import read_header
from llmc.convert.spec import MixtureOfExpertsSpec, ModelSpec
from llmc.convert.targets import TargetResult, target
from llmc.convert.tensor_names import module_of
from llmc.errors import InputError
from llmc.quant.assign import Rule
from llmc.quant.layerwise import quantize
from llmc.quant.prune import Pruning
from llmc.runtime import load
from support.artifact_in_transformers import as_transformers_decodes, loaded_by_transformers
from support.byte_tokenizer import byte_tokenizer
from support.graph_comparison import compare_with_torch
from support.mimo_mtp import reference_drafts
from support.model_lines import ModelLine, published_config
from support.runnable_artifact import lower
from support.small_config import small_config
from support.small_model import empty_witness, save, witness

# Log-probabilities; float32 leaves 1e-5 of them where attention or experts are summed in another order.
TOLERANCE = 1e-4
LENGTH = 60  # tokens, five times a window
# What of a published class is no part of the language model as llmc computes it: towers, and indexers that are kept.
_BESIDE = ("vision", "visual", "multi_modal_projector", "mm_projector", ".indexer.")
# Errors of every scheme would show; experts, whose stack transformers decodes, in int4.
_SCHEMES: dict[str, str] = {
    "experts": "int4-g32",
    "shared_experts": "int8-channel",
    "dense_mlp": "int4-g32",
    "attention": "fp8-channel",
    "kv_b_proj": "int8-channel",
    "mtp": "int4-g32",
}
_KEPT_EXPERTS = 0.75


RECORD = Path(__file__).parents[2] / "docs" / "models.json"
LINE, CONFIGURATION = "line on a rung", "configuration"  # properties of tests that are recorded there


def read_record(file: Path) -> dict[str, dict[str, Any]]:
    """What was found, by line and rung, and by configuration."""
    found: dict[str, dict[str, Any]] = {"lines": {}, "configurations": {}}
    return found | (json.loads(file.read_text(encoding="utf-8")) if file.exists() else {})


class Climb:
    """A line on one rung."""

    def __init__(self, line: ModelLine, rung: str, said: dict[str, Any], reached_before: bool) -> None:
        self.line, self._said, self._reached_before = line, said, reached_before
        said |= {"line": line.name, "rung": rung}

    def note(self, **facts: Any) -> None:
        """Facts that the page shows: `difference`, the largest; …"""
        self._said |= facts

    def accepted(self, small: SmallModel) -> None:
        """Go on only with a line whose configuration is accepted and that transformers has a class for."""
        try:
            assert small.spec
        except InputError as error:
            self.hole(error)
        if self.line.witness is None:
            self.hole(f"transformers has no class for {small.config['architectures'][0]}")

    def absent(self) -> NoReturn:
        """Say that the line has no such rung."""
        self._said["absent"] = True
        self.hole("the model has nothing of the kind")

    def hole(self, reason: object) -> NoReturn:
        """Say why the line does not reach this rung."""
        text = " ".join(str(reason).split())
        if self._reached_before:
            pytest.fail(f"{self.line.name} no longer reaches this rung: {text}", pytrace=False)
        pytest.skip(text)


class SmallModel:
    """A line's model at a small size, in transformers and on disk."""

    def __init__(self, line: ModelLine, folder: Path) -> None:
        self.line, self.folder = line, folder
        self.config = small_config(published_config(line.tested))

    @cached_property
    def spec(self) -> ModelSpec:
        return family_of(self.config).spec(self.config)

    @cached_property
    def witness(self) -> PreTrainedModel:
        return witness(self.line.known(self.config))

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint.open(save(self.witness, self.config, self.folder / "source", self.line.respelled))

    @cached_property
    def model(self) -> CausalLM:
        return CausalLM.load(self.checkpoint)

    @property
    def has_experts(self) -> bool:
        return any(isinstance(mlp, MixtureOfExpertsSpec) for mlp in self.spec.mlps)

    @cached_property
    def artifact(self) -> Checkpoint:
        """Quantized, with fewer experts where there are any, and what the runtime wants beside it."""
        return self._quantized("artifact", self._roles)

    @cached_property
    def artifact_for_transformers(self) -> Checkpoint:
        """The same, or one that is quantized as far as transformers loads it."""
        loaded = [role for role in self._roles if self.line.text_field or not self.checkpoint.family.obstacle([role])]
        return self.artifact if loaded == self._roles else self._quantized("artifact-for-transformers", loaded)

    @cached_property
    def _roles(self) -> list[str]:
        """Those that are quantized."""
        there = {self.checkpoint.role(name) for name in self.checkpoint.names()}
        return [role for role in _SCHEMES if role in there]

    def _quantized(self, name: str, roles: list[str]) -> Checkpoint:
        schemes = {role: _SCHEMES[role] for role in roles}
        rules = [Rule(role, scheme, "rtn" if "fp8" in scheme else "gptaq") for role, scheme in schemes.items()]
        text, folder = self.texts(8, 32), self.folder / name
        pruning = Pruning(_KEPT_EXPERTS) if self.has_experts else None
        quantize(self.checkpoint, rules, pruning, text, text[:2], folder, self.folder / f"{name}.work", lambda *_: None)
        byte_tokenizer(folder)
        return Checkpoint.open(folder)

    @cached_property
    def difference_in_transformers(self) -> float:
        """The largest of log-probabilities between the artifact in transformers and in llmc."""
        kind, artifact = type(self.witness), self.artifact_for_transformers
        folder = artifact.path
        if self.line.witness:  # a `model_type` that transformers does not know
            folder = self._with_config(folder, self.line.witness)
        theirs, ids = loaded_by_transformers(folder, kind), self.texts()
        with torch.no_grad():
            expected = theirs(input_ids=ids, use_cache=False).logits.log_softmax(-1)
        ours = as_transformers_decodes(artifact)
        return (expected - ours.logits(ours.hidden(ids)).log_softmax(-1)).abs().max().item()

    def _with_config(self, folder: Path, changes: dict[str, Any]) -> Path:
        """The same files beside another config.json."""
        other = self.folder / "renamed"
        other.mkdir()
        for file in folder.iterdir():
            (other / file.name).symlink_to(file)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (other / "config.json").unlink()
        (other / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
        return other

    @cached_property
    def difference_of_mtp(self) -> float:
        """The largest of log-probabilities between what transformers makes of the layer for multi-token prediction that
        it finds in the checkpoint, and what we do.
        """
        source, ids = self.checkpoint, self.texts()
        found = self.model.mtp(ids[:, 1:], self.model.hidden(ids, for_mtp=True)[:, :-1])
        drafts = self.model.logits(found).log_softmax(-1)
        if self.spec.wiring.mtp_hidden_first:  # no class of transformers has it so
            expected = reference_drafts(self.witness, source, ids).log_softmax(-1)
            return (expected - drafts).abs().max().item()
        main = type(self.witness).from_pretrained(source.path, dtype=torch.float32)
        # It finds them by the number of the published model's last layer.
        main._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{self.spec.num_layers}\.", r"mtp"]
        config = main.config.get_text_config()
        if not hasattr(config, "num_mtp_layers"):  # transformers knows how to make one, but not how many there are
            config.num_mtp_layers = self.spec.num_mtp_layers
        for name, of_mtp in (("layer_types", "mtp_layer_types"), ("mlp_layer_types", "mtp_mlp_layer_types")):
            if getattr(config, name, None) and not getattr(config, of_mtp, None):
                setattr(config, of_mtp, getattr(config, name)[-1:])
        drafter = MtpModel.from_pretrained(main)
        if "indexed_attention" in (getattr(config, "mtp_layer_types", None) or []):  # no mask of which it makes here
            causal = torch.full((ids.shape[1] - 1,) * 2, float("-inf")).triu(1)[None, None]
            drafter.create_masks_for_mtp_layer = lambda *_: {"attention_mask": causal}
        for layer in drafter.layers:  # GLM-5's return what an indexer chose, too
            layer.mtp_block.register_forward_hook(lambda *given: given[2][0] if isinstance(given[2], tuple) else None)
        with torch.no_grad():
            hidden = main(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-1]
            places = torch.arange(1, ids.shape[1]).expand(len(ids), -1)
            drafted = drafter.forward_layer(0, hidden[:, :-1], places, None, input_ids=ids[:, 1:])
            expected = drafter._project_to_logits(drafted).log_softmax(-1)
        return (expected - drafts).abs().max().item()

    def mtp_on_disk(self, checkpoint: Checkpoint) -> set[str]:
        """The modules of layers for multi-token prediction as files spell them, without their experts."""
        stored = (name for shard in checkpoint.shards for name in read_header(shard))
        own = re.compile(rf".*\bmtp.*|model\.layers\.{self.spec.num_layers}\..*")
        return {module_of(name) for name in stored if own.fullmatch(name) and ".experts." not in name}

    @cached_property
    def answers(self) -> list[tuple[tuple[int, ...], int]]:
        """A greedy answer of the runtime and how many tokens of it were drafted: without drafts, and with them."""
        folder = lower(self.artifact.path, 1)
        found = []
        for speculative in (False, True):
            with load(folder, threads=1, speculative=speculative) as model:
                answer = model.generate("The models people bring", max_new_tokens=24)
                found.append((tuple(answer.token_ids), answer.drafted))
        return found

    @cached_property
    def divergences(self) -> dict[str, float]:
        """The largest KL divergence, by target, between ONNX Runtime and torch."""
        found = {}
        for name, options in (("onnx", {}), ("onnxruntime", {"accuracy_level": 1})):
            result = self.lowered(name, **options)
            found[name] = compare_with_torch(self.artifact, result)
        return found

    @cached_property
    def engine_bytes(self) -> int:
        return self.lowered("tensorrt-rtx", sm=[89], context=64).file_bytes

    def lowered(self, name: str, **options: Any) -> TargetResult:
        """The artifact, built for a target; InputError where it does not take such a model."""
        chosen, checkpoint = target(name), self.artifact
        settings = chosen.Options.model_validate(options)
        chosen.check(checkpoint.spec, settings, {})
        return chosen.build(checkpoint, settings, checkpoint.path, lambda *_: None)

    def texts(self, rows: int = 2, length: int = LENGTH) -> torch.Tensor:
        """Random tokens [rows, length], none of them special."""
        vocabulary = self.spec.vocab_size - 1
        return torch.randint(3, vocabulary, (rows, length), generator=torch.Generator().manual_seed(1))

    def expected(self, ids: torch.Tensor) -> torch.Tensor:
        """What transformers says: log-probabilities [B, S, V]."""
        with torch.no_grad():
            return self.witness(input_ids=ids, use_cache=False).logits.log_softmax(-1)


def chunks(model: CausalLM, ids: torch.Tensor, cuts: Sequence[int]) -> torch.Tensor:
    """Log-probabilities of a text that goes through the cache piece by piece."""
    caches = model.new_cache(ids.shape[0], ids.shape[1])
    pieces = zip([0, *cuts], [*cuts, ids.shape[1]], strict=True)
    hidden = torch.cat([model.hidden(ids[:, start:stop], caches) for start, stop in pieces], dim=1)
    return model.logits(hidden).log_softmax(-1)


def padded(texts: torch.Tensor, lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Rows of `texts` overwritten by other tokens from their length on, as the runtime pads them: (row, length)."""
    for row, length in enumerate(lengths):
        texts[row, length:] = texts[row, 0]
        yield row, length


def parameters(config: dict[str, Any]) -> int:
    """Of the language model that a configuration describes, as llmc sees it: without layers for multi-token prediction
    and without a vision tower.
    """
    family = family_of(config)
    spec = family.spec(config)
    roles = {name: family.role(name, spec) for name in weight_shapes(spec)}
    shapes = weight_shapes(spec).items()
    return sum(torch.Size(shape).numel() for name, shape in shapes if roles[name] not in ("mtp", "vision"))


def published_parameters(config: dict[str, Any]) -> int:
    """The same, as transformers' class has it, with the buffers that are stored: a bias to select experts with."""
    model = empty_witness({key: value for key, value in config.items() if key != "quantization_config"})
    stored = model.state_dict().keys()
    tensors = [*model.named_parameters(), *((name, each) for name, each in model.named_buffers() if name in stored)]
    return sum(each.numel() for name, each in tensors if not any(part in name for part in _BESIDE))


def shared_key(line: ModelLine) -> str:
    """Equal for lines whose small models are the same."""
    return json.dumps([small_config(published_config(line.tested)), line.witness], sort_keys=True)


# Numbers that change no graph's and no file's form.
_NUMBERS = re.compile("theta|.*frequencies|attention_factor|.*eps|softmax_scale|max_position_embeddings|.*_token_ids?")


def architecture_key(small: SmallModel) -> str:
    """Equal for lines that differ in numbers alone: they share what takes long."""

    def form(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: form(each) for key, each in value.items() if not _NUMBERS.fullmatch(key)}
        return [form(each) for each in value] if isinstance(value, list | tuple) else value

    return json.dumps([form(asdict(small.spec)), small.line.witness, small.config["architectures"]], sort_keys=True)
