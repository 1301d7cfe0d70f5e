"""The recipe: what a user asks for, in YAML, validated as a whole before any work begins.

Every error is one line, `file:line: path.to.key: what is wrong`, and an unknown key is answered with the nearest
one that exists.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from llmc import plain_yaml
from llmc.budget_recipe import (
    AS_IS,
    KEYS,
    FitText,
    Size,
    canonical_choices,
    check_budget,
    check_choices,
    name_or_names,
)
from llmc.calibration_recipe import Calibration, Check, public_path, public_texts
from llmc.convert.other_folders import GGUF, refuse_file
from llmc.errors import InputError
from llmc.file_names import is_bare_file_name
from llmc.files import read_regular
from llmc.plain_yaml import Location
from llmc.publish_recipe import PublishTo
from llmc.recipe_section import PathOrId, Section, Share, as_value_error, at, explain, path_or_id, refuse_unknown_keys

_MAX_BYTES = 1 << 18  # of a recipe


def _folder_name(text: str) -> str:
    if not re.fullmatch(r"[\w.-]+", text) or len(text) > 100 or not is_bare_file_name(text):
        raise ValueError("must be the name of a folder, of letters, digits, _, - and . after the first")
    return text


class Prune(Section):
    """Removing experts of a mixture-of-experts model; every router group keeps the same number."""

    method: Literal["reap", "ean", "frequency"] = Field(
        default="reap",
        description="what experts are judged by: reap, mean of routing weight x output norm; ean, sum of output norms; "
        "frequency, tokens",
    )
    keep: Share = Field(gt=0, le=1, description="share of the experts that stays, such as 0.75 or 75%")


class Quantize(Section):
    """One rule; the first that matches a module decides, and modules that none matches stay as they are."""

    match: str = Field(description="a role (experts, shared_experts, dense_mlp, attention, …) or re:PATTERN")
    scheme: str | list[str] | None = Field(
        default=None,
        description="such as int4-g128, int8-channel, fp8-block, nvfp4; other programs' W4A16, W8A16, FP8, "
        "FP8_DYNAMIC, FP8_BLOCK, NVFP4 and MXFP4 are known, too; all but the first two round inputs as well: "
        "fp8-channel-dynamic, fp8-block-dynamic, nvfp4-static, mxfp4-dynamic. "
        "With a budget it may be a list to choose from, with as-is for the precision that a module has; without it all "
        "`candidates` are",
    )
    least: str | None = Field(
        default=None,
        description="in place of `scheme`, with a budget: this scheme, or candidates of as many bits, or as-is",
    )
    method: Literal["gptq", "gptaq", "yaqa", "rtn"] = Field(
        default="gptaq",
        description="gptaq approximates the original's outputs where gptq takes what the quantized layers before make "
        "of the text; it is closer to the original and takes twice the time; yaqa is gptaq that knows, from a pass "
        "back through the original, which errors of outputs change what the model says, closer for some models and not "
        "for others, in twice the time again (of lm_head it is gptaq); rtn rounds to nearest",
    )

    @field_validator("scheme", mode="before")
    @classmethod
    def _name_or_names(cls, given: object) -> object:
        return name_or_names(given)

    @field_validator("scheme", "least")
    @classmethod
    def _by_our_name(cls, names: str | list[str] | None) -> str | list[str] | None:
        return canonical_choices(names)

    @model_validator(mode="after")
    def _can_be_satisfied(self) -> Quantize:
        from llmc.quant.assign import check_match
        from llmc.quant.schemes import scheme

        if self.least is not None and self.scheme is not None:
            raise at(("least",), "`scheme` says what there is to choose from already: keep one of the two")
        if isinstance(self.scheme, list):
            check_choices(self.scheme, "scheme")
        for key, name in (("scheme", self.scheme), ("least", self.least)):
            if isinstance(name, str) and (key, name) != ("scheme", AS_IS):
                as_value_error(partial(scheme, name), key)
        as_value_error(lambda: check_match(self.match), "match")
        return self

    @property
    def only_scheme(self) -> str:
        """The one that it gives, where there is no budget to choose by."""
        assert isinstance(self.scheme, str)
        return self.scheme

    @property
    def schemes(self) -> list[str]:
        """Those that it names."""
        named = [self.scheme] if isinstance(self.scheme, str) else self.scheme or []
        return [name for name in [*named, self.least] if name is not None and name != AS_IS]


class Recipe(Section):
    """What becomes of a checkpoint."""

    name: Annotated[str, AfterValidator(_folder_name)] | None = Field(
        default=None, pattern=r"^[\w.-]+$", description="default: the recipe's file name; the output is build/NAME"
    )
    model: PathOrId = Field(description="a directory, builtin:tiny-deepseek-v3, or a hub id with optional @revision")
    add_bos: bool | None = Field(
        default=None,
        description="whether texts begin with the model's beginning-of-text token, in calibration, check and use; "
        "default: what the files of its tokenizer say",
    )
    calibration: Calibration = Field(default_factory=Calibration)
    prune: Prune | None = None
    quantize: list[Quantize] = Field(
        default=[],
        max_length=1000,
        description="default: experts, or the MLPs of a dense model, int4-g128 by GPTAQ; groups of 64 or 32 where "
        "inputs are no multiple of 128",
    )
    size: Size | None = Field(
        default=None,
        description="budget: what the safetensors may take on disk, such as 19GiB, all that is in them. Which module "
        "gets which scheme is then found by measurement, and the rules of `quantize` are constraints; see "
        "[Bits to a budget](budget.md)",
    )
    bits: float | None = Field(
        default=None,
        gt=0,
        le=32,
        allow_inf_nan=False,
        description="budget: mean bits per parameter, scales included, of the matrices that may be quantized",
    )
    fit: FitText | None = Field(
        default=None,
        description="budget: a GPU's memory, for weights, the cache of so many tokens and workspace, such as 24GiB@32K",
    )
    candidates: list[str] | None = Field(
        default=None,
        max_length=100,
        description="schemes that a budget chooses from, with as-is for the precision that modules have; default: "
        "integers of 2, 3 and 4 bits in groups of 32, 64 and 128, of 5, 6 and 8 in the widest that fit, fp8-block, "
        "as-is: all that layout and targets hold",
    )
    kv_cache: Literal["bf16", "fp8"] = Field(
        default="bf16", description="fp8: keys and values, or the latent, are rounded by one calibrated scale per layer"
    )
    layout: str = Field(
        default="compressed-tensors",
        description="of the safetensors: compressed-tensors; gptq, in version 2, for integers; native-fp8, DeepSeek's "
        "own, for fp8-block; modelopt, NVIDIA's, for nvfp4, nvfp4-static and fp8-tensor-static or what is there; "
        "mxfp4, gpt-oss's own, for experts in mxfp4 or what is there",
    )
    targets: list[dict[str, dict[str, Any] | None]] = Field(default=[{"onnxruntime": {}}], max_length=100)
    check: Check = Field(default_factory=Check)
    publish: PublishTo | None = Field(default=None, description="default: it stays here")

    @field_validator("targets", mode="before")
    @classmethod
    def _targets_are_a_list(cls, targets: object) -> object:
        if isinstance(targets, Mapping | str):
            first = next(iter(targets), "onnxruntime") if isinstance(targets, Mapping) else targets
            raise at((), f"must be a list: write `- {first}: {{}}` in a line of its own for each target")
        return targets

    @field_validator("targets")
    @classmethod
    def _known_targets(cls, targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        resolved: dict[str, Any] = {}
        for index, entry in enumerate(targets):
            if len(entry) != 1:
                raise at((index,), f"each target is one key with its options, not {len(entry)} keys")
            ((name, options),) = entry.items()
            if name in resolved:
                raise at((index, name), f"target {name} is named twice")
            resolved[name] = _target_options(index, name, options or {})
        return [{name: options} for name, options in resolved.items()]

    @field_validator("candidates")
    @classmethod
    def _known_candidates(cls, names: list[str] | None) -> list[str] | None:
        if names is not None:
            names = [*(canonical_choices(names) or [])]
            check_choices(names)
        return names

    @model_validator(mode="after")
    def _one_budget(self) -> Recipe:
        check_budget({key: getattr(self, key) for key in KEYS}, self.quantize, self.candidates)
        return self

    @model_validator(mode="after")
    def _layout_has_a_place(self) -> Recipe:
        from llmc.convert.formats import layout
        from llmc.quant.assign import Rule, check_layout

        chosen = as_value_error(lambda: layout(self.layout), "layout")
        as_value_error(lambda: check_layout((), chosen, self.kv_cache == "fp8"), "kv_cache")
        for index, given in enumerate(self.quantize):
            rules = [Rule(given.match, name) for name in given.schemes]
            as_value_error(partial(check_layout, rules, chosen), "quantize", index, "scheme")
        for index, name in enumerate(self.candidates or ()):
            if name != AS_IS:
                as_value_error(partial(check_layout, [Rule("", name)], chosen), "candidates", index)
        return self

    @property
    def budget(self) -> tuple[str, Any] | None:
        """The key of its budget, and what that says; None: it has none."""
        return next(((key, value) for key in KEYS if (value := getattr(self, key)) is not None), None)

    def public(self) -> dict[str, Any]:
        """As JSON for an artifact: absolute paths, which only tell where a build ran, are cut to their last part."""
        shown = self.model_dump(mode="json", exclude_none=True)
        shown["model"] = public_path(self.model)
        shown.pop("publish", None)  # the artifact is the same wherever it goes
        for part in (shown["calibration"], shown["check"]):
            part["text"] = public_texts(part["text"])
        return shown


RecipeLike: TypeAlias = "Recipe | Mapping[str, Any] | Path | str"


def load_recipe(given: RecipeLike, model: str | None = None) -> tuple[Recipe, Path]:
    """Return a recipe that has a name, and the folder that its relative paths start from.

    Args:
        given: a recipe; what a YAML file would hold; the path of such a file; the name of a recipe that ships with
            llmc; or a model, which gets the default recipe
        model: what the recipe is used for instead of its own `model`, and named after; a relative path starts from the
            current folder

    Raises:
        InputError: with the place of whatever is wrong with it
    """
    if model is not None:
        model = _from_here(model)
    if isinstance(given, Mapping):
        given = _validated({**given, **_instead(model)}, lambda _: "recipe")
    if isinstance(given, Recipe):
        given = given.model_copy(update=_instead(model))
        return given.model_copy(update={"name": given.name or _name_from(_last_part(given.model))}), Path()
    if not isinstance(given, (str, Path)):
        raise InputError(f"recipe is {type(given).__name__}; give a Recipe, a mapping, a path or a name")
    return _named(str(given), model)


def _from_here(model: str) -> str:
    """A model as the current folder knows it, for a recipe in another one."""
    try:
        path = Path(path_or_id(model)).expanduser()
    except ValueError as error:
        raise InputError(str(error)) from error
    return str(path.resolve()) if path.exists() else model


def _instead(model: str | None) -> dict[str, str]:
    """The keys of a recipe that is used for another model."""
    return {} if model is None else {"model": model, "name": _name_from(_last_part(model))}


def _named(argument: str, model: str | None) -> tuple[Recipe, Path]:
    """The recipe that a command line argument names, and its folder."""
    try:
        path = Path(path_or_id(argument))
    except ValueError as error:
        raise InputError(str(error)) from error
    files = shipped()
    by_name = not path.exists() and argument in files
    if by_name or (path.is_file() and path.suffix.lower() != GGUF):
        path = files[argument] if by_name else path
        recipe = read_recipe(path, model)
        # Paths in a recipe that is used by its name are those of who uses it.
        folder = Path() if by_name else path.parent
        return recipe.model_copy(update={"name": recipe.name or _name_from(path.stem)}), folder
    if path.suffix in (".yaml", ".yml") or (not path.exists() and re.fullmatch(r"[\w.-]+", argument)):
        raise InputError(
            f"{argument}: no such recipe or folder; `llmc recipe new MODEL` writes a recipe, and these ship with llmc: "
            f"{', '.join(files)}"
        )
    if model is not None:
        raise InputError(f"{argument}: a model, and {model} is another; name a recipe to use for the second one")
    name = path.stem if path.suffix.lower() == GGUF else _last_part(argument)
    return Recipe(name=_name_from(name), model=argument), Path()


def shipped() -> dict[str, Path]:
    """Name → file of the recipes that ship with llmc."""
    import llmc.recipes

    return {path.stem: path for path in sorted(Path(llmc.recipes.__file__).parent.glob("*.yaml"))}


def _last_part(model: str) -> str:
    path = Path(model)
    return path.name if path.name not in ("", "..") else path.resolve().name  # of `.`, and of what ends in `..`


def _name_from(text: str) -> str:
    """The nearest that an output folder may be called."""
    name = re.sub(r"[^\w.-]", "-", text).strip(".")[:100]
    return name if is_bare_file_name(name) else f"model-{name}".rstrip("-")


def read_recipe(path: Path, model: str | None = None) -> Recipe:
    """A recipe file, for its own model or another; InputError, with file, line and key, for whatever is wrong with
    it.
    """
    refuse_file(path)
    value, lines = _read_yaml(path)
    value |= _instead(model)

    def place(location: Location) -> str:
        line = next(lines[location[:end]] for end in range(len(location), -1, -1) if location[:end] in lines)
        return f"{path}:{line}"

    return _validated(value, place)


def _validated(value: Any, place: Callable[[Location], str]) -> Recipe:
    """The value as a recipe; InputError that begins with the place of what is wrong."""
    try:
        return Recipe.model_validate(value)
    except ValidationError as error:
        first, count = error.errors()[0], error.error_count()
        location, message = explain(first)
        more = f" (and {count - 1} more)" if count > 1 else ""
        where = f"{_dotted(location)}: " if location else ""
        raise InputError(f"{place(location)}: {where}{' '.join(message.split())}{more}") from error


def json_schema() -> dict[str, Any]:
    """JSON Schema of the recipe, for editors; schemes, layouts and targets are those that are installed."""
    from llmc.convert.formats import layouts
    from llmc.convert.targets import targets
    from llmc.quant.assign import QUANTIZABLE
    from llmc.quant.schemes import schemes
    from llmc.quant.schemes.names import PRESETS

    schema = Recipe.model_json_schema()
    rule = schema["$defs"]["Quantize"]["properties"]
    named = {"type": "string", "enum": [*sorted(schemes.all), *PRESETS]}
    chosen = {"type": "string", "enum": [*named["enum"], AS_IS]}
    rule["scheme"]["anyOf"] = [chosen, {"type": "array", "items": chosen, "minItems": 1}]
    rule["least"]["anyOf"] = [named]
    schema["properties"]["candidates"]["anyOf"] = [{"type": "array", "items": chosen, "minItems": 1}]
    schema["properties"]["layout"]["enum"] = sorted(layouts.all)
    rule["match"]["anyOf"] = [{"enum": list(QUANTIZABLE)}, {"pattern": "^re:"}]
    options = {}
    for name, target in targets.all.items():
        options[name] = {"anyOf": [target.Options.model_json_schema(), {"type": "null"}]}
    schema["properties"]["targets"]["items"] = {
        "type": "object",
        "properties": options,
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema | {"title": "llmc recipe"}


def _target_options(index: int, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    from llmc.convert.targets import targets

    model = as_value_error(lambda: targets.get(name), index, name).Options
    try:
        refuse_unknown_keys(model, options)
        return model.model_validate(options).model_dump(mode="json")
    except PydanticCustomError as error:
        raise at((index, name, *(error.context or {})["path"]), error.message()) from error
    except InputError as error:
        raise at((index, name), str(error)) from error
    except ValidationError as error:
        location, message = explain(error.errors()[0])
        raise at((index, name, *location), message) from error


def _dotted(location: Location) -> str:
    """quantize[0].scheme"""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    return "".join(parts).removeprefix(".")


def _read_yaml(path: Path) -> tuple[Any, dict[Location, int]]:
    """The value, and the line of every key and list entry in it."""
    data = read_regular(path, _MAX_BYTES)
    try:
        value, lines = plain_yaml.read(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8 text; save the recipe as UTF-8") from error
    except plain_yaml.Problem as error:
        where = f"{_dotted(error.location)}: " if error.location else ""
        raise InputError(f"{path}:{error.line}: {where}{error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}:1: a recipe is a mapping with the key `model`, not {type(value).__name__}")
    return value, lines
