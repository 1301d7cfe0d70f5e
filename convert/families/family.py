"""What a model family is: config.json → `ModelSpec`, tensor name → role."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from llmc.convert.fields import MISSING, Fields
from llmc.convert.layer_modules import layer_modules
from llmc.convert.spec import GateSpec, ModelSpec, NormSpec, Role
from llmc.convert.stored_names import StoredNames
from llmc.convert.tensor_names import TensorName
from llmc.convert.vision import VisionSpec
from llmc.errors import InputError

MTP_COUNTS = ("num_nextn_predict_layers", "num_mtp_layers")  # names of one field; transformers reads both
_MODEL_ROLES: dict[str, Role] = {
    "model.embed_tokens.weight": "embedding",
    "model.norm.weight": "norm",
    "lm_head.weight": "lm_head",
}


class Published(Fields):
    """config.json as an architecture reads it. A field that is absent has the default of the published class, which is
    transformers' (their values stand in the families); one that is null does not: to that class null is another value.

    Attributes:
        defaults: those that are not read together with one; `config` has them where it has nothing else
    """

    def __init__(self, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        super().__init__({**defaults, **config})
        self.defaults = defaults

    def _get(self, name: str, default: Any) -> Any:
        usual = self.defaults.get(name, None if default is MISSING else default)
        if usual and name in self.config and self.config[name] is None:
            raise InputError(f"`{name}` is null; give it a value, or leave it out for the usual {usual!r}")
        return super()._get(name, default)


def published(base: Mapping[str, Any] | None = None, **fields: Any) -> Mapping[str, Any]:
    """Values that a published class has for fields that config.json leaves out: those of another, and its own."""
    return {**(base or {}), **fields}


class Family(ABC):
    name: str  # config.json's `model_type`
    other_names: tuple[str, ...] = ()  # that checkpoints of the same architecture give it, with code of their own
    architectures: tuple[str, ...]  # config.json's `architectures`
    defaults: Mapping[str, Any] = published()  # where config.json does not say
    kept_role: Role = "vision"  # of tensors that are kept as they are
    stored_names = StoredNames()  # how its checkpoints name tensors, where that is not as we do
    aliases: Mapping[str, str] = published()  # of fields: names in other versions of the published class → ours
    expert_count: str | None = None  # the field of config.json that counts experts

    @abstractmethod
    def spec(self, config: dict[str, Any]) -> ModelSpec:
        """InputError for a field that is missing, wrong, or asks for something llmc does not do."""

    def refuse_windows(self, fields: Fields) -> None:
        """InputError where a layer attends to the last tokens only."""
        self.refuse_layer_types(fields)
        if fields.has("sliding_window"):
            window, name = fields.config["sliding_window"], self.architectures[0]
            raise InputError(
                f"`sliding_window` is {window!r}, which {name} does not have; make it null if there is no window"
            )

    def refuse_layer_types(self, fields: Fields) -> None:
        if fields.has("layer_types"):
            for layer, kind in enumerate(fields.strings("layer_types")):
                if kind != "full_attention":
                    raise InputError(f"`layer_types` makes layer {layer} {kind!r}; only 'full_attention' is supported")

    def role(self, weight_name: str, spec: ModelSpec) -> Role:
        """The role of a tensor: `spec` tells which layers are MTP layers."""
        if weight_name in _MODEL_ROLES:
            return _MODEL_ROLES[weight_name]
        if weight_name.startswith(self.stored_names.kept):
            return self.kept_role
        module = TensorName.parse(weight_name).module
        if module.layer is not None:
            if spec.is_mtp(module.layer):
                return "mtp"
            if module.expert is not None:
                return "experts"
            found = layer_modules(spec, module.layer).get(module.inside)
            if isinstance(found, NormSpec):
                return "norm"
            if isinstance(found, GateSpec):
                return "router"
            if module.part_of_layer == "self_attn":
                return "kv_b_proj" if module.projection == "kv_b_proj" else "attention"
            if module.part_of_layer == "mlp":
                return "shared_experts" if module.block == "mlp.shared_experts" else "dense_mlp"
        raise InputError(f"{weight_name} is not a tensor of the {self.name} family")

    def redundant(self, weight_name: str, spec: ModelSpec) -> bool:
        """Whether a checkpoint may carry this tensor although the model does not need it: what is kept;
        copies, as long as they are some; and buffers that follow from the config.
        """
        kept = weight_name.startswith(self.stored_names.kept) or weight_name.endswith(".rotary_emb.inv_freq")
        return kept or self.original(weight_name, spec) is not None

    def original(self, weight_name: str, spec: ModelSpec) -> str | None:
        """The tensor that one of this name has to be a copy of: a tied head of the embedding; an MTP layer's own
        embedding and head of the main model's. None: it is a tensor of its own.
        """
        embedding = "model.embed_tokens.weight"
        head = embedding if spec.tie_word_embeddings else "lm_head.weight"
        if weight_name == "lm_head.weight":
            return embedding if spec.tie_word_embeddings else None
        match = re.fullmatch(r"model\.layers\.(\d+)\.(embed_tokens|shared_head\.head)\.weight", weight_name)
        if match is None or not spec.num_layers <= int(match[1]) < spec.num_all_layers:
            return None
        return embedding if match[2] == "embed_tokens" else head

    def text_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """What config.json says of the language model, and of how it is stored."""
        return config

    def vision(self, config: dict[str, Any]) -> VisionSpec | None:
        """The tower and projector that become a graph of their own; None: images are not taken."""
        return None

    def notes(self, config: dict[str, Any]) -> list[str]:
        """Lines for whoever plans a build: what of this model is not done, or kept as it is."""
        return []

    def obstacle(self, quantized: Collection[str]) -> str:
        """Why transformers, whatever the layout, does not load a checkpoint in which these roles are quantized, each
        weight by itself; empty: it does.

        As of transformers 5.24, which warns and goes on with random experts where it looks for a stack of them.
        """
        stacks = "experts" in quantized and self.stored_names.stacked is True
        return f"it takes the experts of {self.name} as plain stacks only" if stacks else ""

    def native_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """config.json by which transformers and vLLM find the architecture in themselves.

        Without `auto_map` and `custom_pipelines`: they name Python files of the checkpoint, which are not copied
        (artifacts hold no code), and nothing is lost with them, since only architectures that both programs have are
        read. With the `model_type` that they know, where the checkpoint's is one of its own or absent.
        """
        native = {key: value for key, value in config.items() if key not in ("auto_map", "custom_pipelines")}
        return native | {"architectures": [self.architectures[0]], "model_type": self.name}

    def without_mtp(self, config: dict[str, Any]) -> dict[str, Any]:
        """config.json of the same model without layers for multi-token prediction."""
        rest = {key: value for key, value in config.items() if key not in MTP_COUNTS}
        return rest | {MTP_COUNTS[0]: 0}

    def pruned_config(self, config: dict[str, Any], num_experts: int) -> dict[str, Any]:
        """config.json after pruning to `num_experts` routed experts in every layer."""
        if self.expert_count is None:
            raise InputError(f"the {self.name} family has no experts to prune; remove `prune` from the recipe")
        names = [name for name, ours in self.aliases.items() if ours == self.expert_count and name in config]
        return {**config, **dict.fromkeys(names or [self.expert_count], num_experts)}

    def fields(self, config: dict[str, Any]) -> Published:
        """config.json under the names that are read here, with the defaults of the published class."""
        return Published({self.aliases.get(name, name): config[name] for name in config}, self.defaults)


def windows_of(fields: Fields, kinds: Sequence[str], num_layers: int) -> list[int | None]:
    """How far each layer sees, by its `layer_types`, or by `kinds` where config.json has none; None: as far as there is
    text, also where the window is no smaller than the context.
    """
    kinds = kinds_of(fields, kinds, num_layers, ("full_attention", "sliding_attention"))
    window = fields.integer("sliding_window") if "sliding_attention" in kinds else None
    if window is not None and window >= fields.integer("max_position_embeddings"):
        window = None
    return [window if kind == "sliding_attention" else None for kind in kinds] + [None] * (num_layers - len(kinds))


def kinds_of(fields: Fields, kinds: Sequence[str], num_layers: int, known: Sequence[str]) -> Sequence[str]:
    """The `layer_types`, or `kinds` where config.json has none: one for each layer, MTP layers left out or not;
    InputError for others than are known.
    """
    if fields.has("layer_types"):
        kinds = fields.strings("layer_types")
    for layer, kind in enumerate(kinds):
        if kind not in known:
            raise InputError(f"`layer_types` makes layer {layer} {kind!r}; supported: {', '.join(known)}")
    if len(kinds) > num_layers or len(kinds) < fields.integer("num_hidden_layers"):
        raise InputError(f"`layer_types` has {len(kinds)} entries, and the model {num_layers} layers")
    return kinds
