"""What the JSON files of an artifact may say: its manifest, the descriptions of engines, the metadata of kernels.

They come with a model from somebody else, so each is held against its schema once, where it is read; what is behind
that may trust types and ranges. Imported when an artifact is opened, not with the runtime: pydantic takes its time.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from llmc.errors import InputError

_MOST_BYTES = 2**53
_RESERVED = re.compile(r'[\x00-\x1f\x7f-\x9f\\:*?"<>|\u2028\u2029\u202a-\u202e\u2066-\u2069]')


def file_name(name: str) -> str:
    """A file's name in an artifact: relative, with `/` between its parts, on every system the same file."""
    parts = name.split("/")
    if not name or len(name) > 1024 or _RESERVED.search(name) or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{name[:100]!r} is no name of a file inside the artifact")
    return name


def _bare(name: str) -> str:
    if "/" in file_name(name):
        raise ValueError(f"{name[:100]!r} is no bare name of a file")
    return name


Count = Annotated[int, Field(ge=0, lt=_MOST_BYTES)]
Size = Annotated[int, Field(ge=1, lt=2**31)]  # of an axis
Number = Annotated[float, Field(allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, AfterValidator(file_name)]
BareName = Annotated[str, AfterValidator(_bare)]


class Part(BaseModel):
    """Keys that are not named here are left alone: later releases may write more."""

    model_config = ConfigDict(strict=True, frozen=True)


Checked = TypeVar("Checked", bound=Part)


def checked(part: type[Checked], value: Any, what: str) -> Checked:
    """The value as a `part`; InputError, `what` first, with the place of the first thing that is wrong."""
    try:
        return part.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        said = ": ".join(each for each in (repr(place)[1:-1][:200], first["msg"].removeprefix("Value error, ")) if each)
        raise InputError(f"{what} ({said}); build or download the artifact again") from error


class File(Part):
    bytes: Count
    sha256: Sha256


class Target(Part):
    files: dict[str, str]  # names that the manifest's `files` must have, too


class Model(Part):
    max_position_embeddings: Size
    vocab_size: Size
    eos_token_ids: list[Count]
    bos_token_id: Count | None = None


class Check(Part):
    gates: dict[str, Number] | None = None


class Recipe(Part):
    check: Check | None = None


class Spoken(Part):
    add_bos: bool | None = None


class Manifest(Part):
    """What running it depends on."""

    format_version: Annotated[int, Field(ge=1)]
    files: dict[FileName, File]
    targets: dict[str, Target]
    model: Model
    recipe: Recipe
    tokenizer: Spoken | None = None
    reference: File | None = None  # where it is not among the files

    @model_validator(mode="after")
    def _lists_what_can_be_run(self) -> Manifest:
        named = {name for target in self.targets.values() for name in target.files.values()}
        if unlisted := named - self.files.keys():
            raise ValueError(f"files do not list {min(unlisted)!r}")
        return self


class Source(Part):
    id: str
    revision: str | None
    license: str | None


class DescribedModel(Part):
    family: str
    num_layers: Count
    num_mtp_layers: Count


class DescribedRecipe(Part):
    kv_cache: str = "bf16"


class Role(Part):
    quantized: Count
    schemes: list[str]


class Pruned(Part):
    method: str
    experts_before: Count
    experts_after: Count


class Gate(Part):
    name: str
    limit: Number
    value: Number
    passed: bool


class Checks(Part):
    """Of a comparison with the original."""

    tokens: Count
    ppl_original: Annotated[Number, Field(gt=0)]
    ppl_original_stderr: Number
    ppl: Number
    ppl_stderr: Number
    kl_mean: Number
    kl_median: Number
    kl_p99: Number
    kl_max: Number
    top1: Number
    mtp_acceptance: Number | None = None
    gates: list[Gate]


class DescribedTarget(Part):
    skipped: str | None = None
    files: dict[str, str]
    file_bytes: Count = 0


class Sizes(Part):
    original: Annotated[int, Field(ge=1, lt=_MOST_BYTES)]
    artifact: Count


class Nothing(Part):
    model_config = ConfigDict(extra="forbid")


class Described(Part):
    """What tables and the model card say of an artifact, besides."""

    source: Source
    model: DescribedModel
    recipe: DescribedRecipe
    quantized: dict[str, Role]
    pruned: Pruned | Nothing
    sizes: Sizes
    targets: dict[str, DescribedTarget]
    checks: Checks | Nothing


class Profile(Part):
    """tokens: the least and most of a step; window: the cache entries it looks at."""

    tokens: Annotated[list[Size], Field(min_length=2, max_length=2)]
    window: Size


class Value(Part):
    """An input or output; -1 in the shape: any size."""

    name: str
    dtype: Literal["bool", "int8", "int32", "int64", "float", "half", "bf16"]
    shape: Annotated[list[Annotated[int, Field(ge=-1, lt=2**31)]], Field(max_length=8)]

    @model_validator(mode="after")
    def _caches_have_four_axes(self) -> Value:
        if self.name.startswith("past.") and (len(self.shape) != 4 or min(self.shape[1:]) < 1):
            raise ValueError(f"the shape of {self.name!r} is {self.shape}; caches have four axes")
        return self


class Engine(Part):
    """The .json beside an engine. kernels, kernel_sets: of its plugins."""

    engine: BareName
    graph: Literal["main", "mtp"]
    sha256: Sha256
    release: str
    sm: Annotated[list[Count], Field(min_length=1)]
    context: Size
    batch: Size
    profiles: Annotated[list[Profile], Field(min_length=1)]
    plugins: list[str]
    kernels: BareName | None = None
    kernel_sets: list[str] = []
    inputs: list[Value]
    outputs: list[Value]

    @model_validator(mode="after")
    def _has_what_plugins_need(self) -> Engine:
        if self.plugins and self.kernels is None:
            raise ValueError("plugins without kernels")
        if missing := {"input_ids", "cache_position", "logits_index"} - {each.name for each in self.inputs}:
            raise ValueError(f"no input {min(missing)!r}")
        if "logits" not in {each.name for each in self.outputs}:
            raise ValueError("no output 'logits'")
        return self


class DescribedEngine(Engine):
    """What tables say of an engine, besides."""

    package: str
    bytes: Count
    text_bytes: Count
    weight_bytes: dict[str, Count]


class Argument(Part):
    name: str
    type: Annotated[str, Field(pattern=r"^(\*.*|i32|i64|fp32)$")]


class Kernel(Part):
    """See cubin.py."""

    name: str
    cubin: Sha256
    sm: Count
    threads: Annotated[int, Field(ge=1, le=1024)]
    shared_bytes: Annotated[int, Field(ge=0, lt=2**31)]
    alignment: Annotated[int, Field(ge=1, le=4096)]
    arguments: Annotated[list[Argument], Field(max_length=256)]
    null_pointers: Annotated[int, Field(ge=0, le=16)]
    registers: Count
    stack_bytes: Count


class CompiledFor(Part):
    layout: dict[str, Any]
    kernels: dict[str, Kernel]


class KernelSet(Part):
    """See kernel_set.py."""

    operation: str
    shape: dict[str, Any]
    sm: Annotated[dict[Annotated[str, Field(pattern=r"^[0-9]{2,4}$")], CompiledFor], Field(min_length=1)]


class KernelSets(Part):
    sets: list[KernelSet]
