"""A Hugging Face checkpoint on disk: opened from its headers and read one tensor at a time.

Opening answers whether the checkpoint is whole: every tensor its config promises is there, inside its file,
with the right shape and a readable dtype. Work begun after that does not fail for want of a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from llmc.convert import copies
from llmc.convert.checkpoint_headers import INDEX, read_headers
from llmc.convert.families import families, family_of
from llmc.convert.families.family import Family
from llmc.convert.fields import Fields
from llmc.convert.folder import read_json, require_sidecars
from llmc.convert.formats import Format, Parts, formats, has_fp8_cache, part_names
from llmc.convert.formats.modelopt import cache_scales_renamed
from llmc.convert.gguf.folder import described, gguf_in
from llmc.convert.layer_modules import fewest_weights, weight_shapes
from llmc.convert.other_folders import (
    names_in,
    refuse_file,
    refuse_folder_above,
    refuse_other_kinds,
    refuse_other_tasks,
)
from llmc.convert.quantization_config import AWQ_CONFIG, MODELOPT_CONFIG, QUANTIZE_CONFIG, with_quantization_config
from llmc.convert.quantized_weight import Activations, QuantizedWeight, QuantSpec
from llmc.convert.safetensors_file import StoredTensor
from llmc.convert.spec import CACHE_SCALES, ModelSpec, Role
from llmc.convert.stored_names import StoredNames
from llmc.convert.tensor_names import TensorName, module_of, part_of
from llmc.convert.tokenizer_files import TOKENIZER, source_file
from llmc.convert.vision import LAYERS, PROJECTOR, TOWER, VisionSpec
from llmc.errors import InputError

# A quantized checkpoint has its own instead of a copy.
REWRITTEN = ("config.json", INDEX, QUANTIZE_CONFIG, MODELOPT_CONFIG, AWQ_CONFIG)
_MAX_MISSING = 10_000  # weights; of a model that lacks more, none is named
_FLOATS = ("BF16", "F16", "F32")
_NO_INPUTS = ".kv_b_proj.weight"  # of the layer that has none where attention works on the latent cache
_CODE = (".py", ".pyc", ".so", ".pkl", ".pickle", ".pt", ".pth", ".bin", ".sh")
# Files beside weights and config that travel with a model.
_SIDECARS = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template.*",
    "*processor_config.json",
    "additional_chat_templates/*.jinja",
    "LICENSE*",
)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    path: Path
    config: dict[str, Any]
    family: Family
    stored_names: StoredNames  # the family's, in this checkpoint's spelling
    spec: ModelSpec
    shards: tuple[Path, ...]
    _stored: dict[str, StoredTensor]  # by our names, in file order
    _parts: dict[str, dict[str, StoredTensor]]  # by logical name: last name component → stored tensor
    _formats: tuple[Format, ...]
    lost_mtp_layers: int = 0  # that its config.json counts, and `config` and `spec` do not
    ranks: int = 1  # GPUs that hold the model together; of more than one, this is a part (engines/tensor_parallel.py)

    def __repr__(self) -> str:
        layers = (
            f"{self.spec.num_layers}+{self.spec.num_mtp_layers}" if self.spec.num_mtp_layers else self.spec.num_layers
        )
        return f"Checkpoint({str(self.path)!r}, family={self.family.name!r}, layers={layers}, bytes={self.nbytes()})"

    @classmethod
    def open(cls, path: str | Path, headers_only: bool = False) -> Checkpoint:
        """Reads config and headers, no weights; InputError for everything that is wrong with them.

        What is said to be a copy of another tensor is compared with it, and so read, where there is such a one. With
        `headers_only` it is taken for one: enough to plan with, also where the weights are not there.
        """
        path = Path(path)
        if gguf := gguf_in(path):
            path = described(gguf)
        if not path.is_dir():
            refuse_file(path)
            raise InputError(f"{path}: no such folder; a checkpoint is one that holds config.json and safetensors")
        refuse_other_kinds(str(path), names_in(path))
        refuse_folder_above(path, names_in(path))
        config = with_quantization_config(path, read_json(path / "config.json", infinity=True))
        try:
            refuse_other_tasks(config, families.all.values())
            family = family_of(config)
            spec = family.spec(config)
            text = family.text_config(config)
            known_formats = formats(text)
            family.vision(config)  # what is wrong with it is told with the others
        except InputError as error:
            raise InputError(f"{path / 'config.json'}: {error}") from error
        if (path / "generation_config.json").exists():  # chat models list their end-of-turn tokens only there
            file = path / "generation_config.json"
            try:
                ends = Fields(read_json(file)).token_ids("eos_token_id")
            except InputError as error:
                raise InputError(f"{file}: {str(error).removeprefix(f'{file}: ')}") from error
            spec = replace(spec, eos_token_ids=ends or spec.eos_token_ids)
        headers = cache_scales_renamed(read_headers(path))
        try:
            spec = replace(spec, fp8_cache=has_fp8_cache(text, headers))
        except InputError as error:
            raise InputError(f"{path / 'config.json'}: {error}") from error
        stored_names = family.stored_names.spelled_as(headers, spec)
        stored = stored_names.read(headers, spec)
        parts: dict[str, dict[str, StoredTensor]] = {}
        of_formats = part_names()
        for name, tensor in stored.items():
            part = part_of(name)
            parts.setdefault(f"{module_of(name)}.weight" if part in of_formats else name, {})[part] = tensor
        shards = tuple(sorted({tensor.file for tensor in headers.values()}))
        checkpoint = cls(path, config, family, stored_names, spec, shards, stored, parts, known_formats)
        require_sidecars(
            path, (file for file in checkpoint.files() if file not in shards and file.name not in REWRITTEN)
        )
        checkpoint = checkpoint._without_lost_mtp()
        checkpoint._check_complete()
        return checkpoint if headers_only else checkpoint._with_copies_compared()

    def notes(self) -> list[str]:
        """Lines for whoever plans a build: what of this model is not there, not done, or kept as it is."""
        layers = f"{self.lost_mtp_layers} layer{'s' if self.lost_mtp_layers > 1 else ''}"
        lost = f"config.json counts {layers} for multi-token prediction, of which no tensor is there: left out"
        return [lost] * bool(self.lost_mtp_layers) + self.family.notes(self.config)

    def names(self) -> list[str]:
        """Logical tensor names in file order; what a quantized module stores counts as `<module>.weight`."""
        return list(self._parts)

    def names_of(self, layer: int | None) -> list[TensorName]:
        """Those of one layer; None: of the ends of the model."""
        return self._by_layer.get(layer, [])

    @cached_property
    def _by_layer(self) -> dict[int | None, list[TensorName]]:
        found: dict[int | None, list[TensorName]] = {}
        for name in map(TensorName.parse, self._parts):
            found.setdefault(name.module.layer, []).append(name)
        return found

    def __contains__(self, name: object) -> bool:
        """Whether there is a tensor of this name, logical or stored."""
        return name in self._parts or name in self._stored

    def role(self, name: str) -> Role:
        return self.family.role(name, self.spec)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape after dequantization, from headers; InputError for a missing or unreadable tensor."""
        if found := self.format_of(name):
            return found.shape(self._parts[name])
        tensor = self.stored(name)
        if tensor.dtype not in _FLOATS:
            raise InputError(
                f"{tensor.file}: {name} is {tensor.dtype} with no scale that quantization_config in "
                f"config.json explains; an unquantized weight must be {', '.join(_FLOATS)}"
            )
        return tensor.shape

    def tensor(self, name: str, dtype: torch.dtype | None = torch.float32) -> torch.Tensor:
        """A fresh tensor, dequantized, in `dtype` (None: as it is stored); InputError when it holds NaN or infinity."""
        if weight := self.quantized_tensor(name):
            return weight.dequantize(dtype or torch.float32)
        tensor = self.stored(name).read()
        self._refuse_nan(name, tensor)
        return tensor if dtype is None else tensor.to(dtype)

    def quantized(self, module: str) -> QuantizedWeight | None:
        """The codes and scales of `<module>.weight` as they are stored; None when it is stored plain."""
        return self.quantized_tensor(f"{module}.weight")

    def quantized_tensor(self, name: str) -> QuantizedWeight | None:
        """The same, by the name of the tensor; None also for what is no weight."""
        found = self.format_of(name)
        if found is None:
            return None
        weight = found.decode(self._parts[name])
        if name.endswith(_NO_INPUTS):
            weight = replace(weight, activations=None)
        self._refuse_nan(name, weight.scales)
        if weight.qweight.dtype.is_floating_point:
            self._refuse_nan(name, weight.qweight)
        return weight

    def kind(self, name: str) -> QuantSpec | None:
        """How a tensor is stored, without reading it; None: plain."""
        found = self.format_of(name)
        kind = found.kind(self._parts[name]) if found else None
        return kind._replace(activations=None) if kind is not None and name.endswith(_NO_INPUTS) else kind

    def activations(self, module: str) -> Activations | None:
        """How the inputs of a linear layer are rounded."""
        found = None if f"{module}.weight".endswith(_NO_INPUTS) else self.format_of(f"{module}.weight")
        return found.activations_of(self.parts(f"{module}.weight")) if found else None

    def cache_scales(self, layer: int) -> dict[str, float]:
        """By what an FP8 cache is scaled: `k_scale` of keys, or of the latent, and `v_scale` of values."""
        names = CACHE_SCALES if self.spec.fp8_cache and self.spec.is_cached(layer) else ()
        return {name: self.tensor(f"model.layers.{layer}.self_attn.{name}").item() for name in names}

    def stored(self, name: str) -> StoredTensor:
        """Where a tensor lies on disk, also of a part of a quantized one."""
        if name not in self._stored:
            raise InputError(f"{self.path}: tensor {self._its_name(name)} is missing")
        return self._stored[name]

    def used(self) -> list[StoredTensor]:
        """Where everything lies that the model is made of: redundant copies are left out."""
        needed = {**weight_shapes(self.spec), **self._vision_shapes}
        used = [each.whole or each for name, parts in self._parts.items() if name in needed for each in parts.values()]
        return list(dict.fromkeys(used))  # an input scale may be that of several

    @cached_property
    def vision(self) -> VisionSpec | None:
        """The vision tower and projector that are computed here, if the checkpoint has them."""
        spec = self.family.vision(self.config)
        return spec if spec is not None and any(name.startswith((TOWER, PROJECTOR)) for name in self._parts) else None

    @property
    def vision_heads(self) -> int:
        """Those that the tower's projections of queries, keys and values are stored with."""
        name = f"{LAYERS}.0.attn.qkv.weight"
        assert self.vision is not None
        return max(self.vision.num_heads, self.shape(name)[0] // 3 // self.vision.head_dim if name in self else 0)

    @cached_property
    def _vision_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self.vision.shapes(self.vision_heads) if self.vision else {}

    def parts(self, name: str) -> Parts:
        """What is stored for a logical tensor, by the last component of its names."""
        return self._parts[name]

    def nbytes(self, prefix: str = "") -> int:
        """Bytes on disk of all tensors whose stored name begins with `prefix`."""
        return sum(tensor.nbytes for name, tensor in self._stored.items() if name.startswith(prefix))

    def files(self) -> list[Path]:
        """Config, index, weights, tokenizer: every file that makes this checkpoint what it is."""
        found = {file for pattern in (*REWRITTEN, *_SIDECARS) for file in self.path.glob(pattern)}
        if not (self.path / TOKENIZER).exists() and (name := source_file(names_in(self.path))):
            found.add(self.path / name)
        # `tokenizer*` and `LICENSE*` are other programs' names, too; nothing that could be run goes along.
        return sorted({*self.shards, *(file for file in found if file.suffix not in _CODE and not file.is_dir())})

    def _its_name(self, name: str) -> str:
        """What a tensor is called in this checkpoint, for people."""
        return self.stored_names.stored(name)

    def format_of(self, name: str) -> Format | None:
        """The format that a quantized tensor is stored in, by its logical name; None: it is stored plain."""
        parts = self._parts.get(name, {})
        for known in self._formats:
            if known.key in parts and known.matches(self.stored_names.stored_module(module_of(name))):
                return known
        if extra := sorted(parts.keys() & part_names() - {"weight"}):
            raise InputError(
                f"{parts[extra[0]].file}: {name} is stored with {', '.join(extra)}, which config.json's "
                "quantization_config does not explain; restore the config.json it was saved with"
            )
        return None

    def _without_lost_mtp(self) -> Checkpoint:
        """This checkpoint, without layers for multi-token prediction where not one of their tensors is there: programs
        that have no such layers, as transformers, save the rest and let config.json count them.
        """
        spec, count = self.spec, self.spec.num_layers
        if not spec.num_mtp_layers or any(layer is not None and layer >= count for layer in self._by_layer):
            return self
        rest = replace(spec, num_mtp_layers=0, attentions=spec.attentions[:count], mlps=spec.mlps[:count])
        config = self.family.without_mtp(self.config)
        return replace(self, spec=rest, config=config, lost_mtp_layers=spec.num_mtp_layers)

    def _check_complete(self) -> None:
        fewest = fewest_weights(self.spec)
        if fewest > len(self._parts) + _MAX_MISSING:  # before a module is made for each of them
            raise InputError(
                f"{self.path}: config.json describes {len(self.spec.mlps):,} layers with at least {fewest:,} weights, "
                f"and {len(self._parts):,} are there; one of the two belongs to another model"
            )
        needed = weight_shapes(self.spec)
        if missing := [name for name in needed if name not in self]:
            raise InputError(
                f"{self.path}: tensor {self._its_name(missing[0])} is missing ({len(missing)} in all); download the "
                "checkpoint again"
            )
        if missing := [name for name in self._vision_shapes if name not in self]:
            raise InputError(
                f"{self.path}: tensor {missing[0]} of the vision tower is missing ({len(missing)} in all); download "
                "the checkpoint again, or correct `vision_config` in config.json"
            )
        needed = {**needed, **self._vision_shapes}
        for name in self.names():
            if name not in needed and not self.family.redundant(name, self.spec):
                raise InputError(
                    f"{self.path}: tensor {self._its_name(name)} has no place in a {self.family.name} model with this "
                    "config.json, and leaving it out would change the model; correct config.json"
                )
            shape, original = self.shape(name), self.family.original(name, self.spec)
            if original is not None and shape != needed[original]:
                raise InputError(
                    f"{self.path}: tensor {name} has shape {list(shape)}, but it should be a copy of {original}, "
                    f"which config.json makes {list(needed[original])}; correct config.json"
                )
            if shape != needed.get(name, shape):
                raise InputError(
                    f"{self.path}: tensor {self._its_name(name)} has shape {list(shape)}, but config.json asks for "
                    f"{list(needed[name])}; one of the two belongs to another model"
                )

    def _with_copies_compared(self) -> Checkpoint:
        """This checkpoint, with a head of its own where `tie_word_embeddings` is not true; transformers decides alike
        (`tie_weights`). InputError for an embedding or a head that an MTP layer has for itself.
        """
        head, embedding = "lm_head.weight", "model.embed_tokens.weight"
        checkpoint = self
        if self.spec.tie_word_embeddings and head in self._parts and not copies.equal(self, head, embedding):
            checkpoint = replace(self, spec=replace(self.spec, tie_word_embeddings=False))
        for name in self.names():
            original = checkpoint.family.original(name, checkpoint.spec)
            if original is not None and name != head and not copies.equal(checkpoint, name, original):
                raise InputError(
                    f"{self.path}: {name} differs from {original}; an MTP layer with an embedding or a head of its own "
                    "is not supported. To draft with the main model's, "
                    + (f"take the name out of {INDEX}" if (self.path / INDEX).exists() else "save the model without it")
                )
        return checkpoint

    def _refuse_nan(self, name: str, tensor: torch.Tensor) -> None:
        if tensor.dtype == torch.float8_e4m3fn:  # has NaN, as the largest code, but no infinity
            bad = (tensor.view(torch.uint8) & 0x7F).eq(0x7F).any()
        else:
            bad = tensor.isfinite().logical_not().any()
        if bad:
            raise InputError(f"{self.path}: tensor {name} holds NaN or infinity; download it again")
