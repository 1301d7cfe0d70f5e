"""Recipes as files: those that ship with llmc, and new ones written for a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from llmc.convert.checkpoint import Checkpoint
from llmc.convert.spec import ModelSpec
from llmc.default_rules import GROUPS, default_role
from llmc.errors import InputError
from llmc.progress import size
from llmc.quant.assign import QUANTIZABLE, Rule, assign
from llmc.quant.prune import fractions, routers
from llmc.recipe import shipped
from llmc.registry import unknown
from llmc.sizes import Size, sizes_by_role
from llmc.source import locate_headers


def read_shipped(name: str) -> str:
    """Return the text of a recipe that ships with llmc.

    Raises:
        InputError: for a name that none of them has
    """
    files = shipped()
    if name not in files:
        raise InputError(unknown("recipe", name, files))
    return files[name].read_text(encoding="utf-8")


def first_comment(text: str) -> str:
    """The first sentence of a recipe's leading comment: what the recipe is for."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#") or line == "#":
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines).partition(". ")[0].rstrip(".")


def new_recipe(model: str) -> str:
    """Return the text of a recipe for a model, with a comment on every line that is worth a thought.

    Args:
        model: a folder, `builtin:NAME` or a hub id; only headers are read

    Raises:
        InputError: for a model that llmc does not read, or none of whose layers it can quantize
    """
    with locate_headers(model, Path()) as source:
        checkpoint = Checkpoint.open(source.path, headers_only=True)
        roles, spec = sizes_by_role(checkpoint), checkpoint.spec
        role = default_role(spec)
        scheme, obstacle = _scheme(checkpoint, role), spec.graph_obstacle
    return _TEMPLATE.format(
        about=_about(model, spec, roles),
        model=yaml.safe_dump(model, allow_unicode=True, width=10_000).removesuffix("...\n").strip(),
        prune=_prune(spec),
        role=role,
        scheme=scheme,
        length=min(2048, spec.max_position_embeddings),
        check_length=min(1024, spec.max_position_embeddings),
        targets=_targets(spec) if obstacle is None else f"targets: []  # {obstacle}\n",
        others=", ".join(each for each in roles if each in QUANTIZABLE and each != role),
    )


def _scheme(checkpoint: Checkpoint, role: str) -> str:
    """int4 with the widest groups that fit every layer of a role, or what fits every shape."""
    for group in GROUPS:
        try:
            assign(checkpoint, [Rule(role, f"int4-g{group}")])
        except InputError:
            continue
        return f"int4-g{group}"
    return "fp8-channel"


def _about(model: str, spec: ModelSpec, roles: Mapping[str, Size]) -> str:
    total = sum(each.parameters for each in roles.values())
    mtp = f" and {spec.num_mtp_layers} for multi-token prediction" if spec.num_mtp_layers else ""
    lines = [f"# {model}: {spec.family}, {spec.num_layers} layers{mtp}, {total:,} parameters:"]
    for role, found in roles.items():
        lines.append(f"#   {role:<15} {found.parameters / total:6.1%}  {size(found.bytes)}")
    return "\n".join(lines)


def _prune(spec: ModelSpec) -> str:
    if not (found := routers(spec.mlps)):
        return ""
    possible = ", ".join(f"{float(each):.6g}" for each in fractions(found[0]))
    return (
        "\n# Removes the experts that contribute least to the calibration text; every router group keeps the same\n"
        f"# number, so these shares are possible: {possible}. `llmc sweep` shows what each of them costs.\n"
        "# prune: {method: reap, keep: 0.75}\n"
    )


def _targets(spec: ModelSpec) -> str:
    context = min(8192, spec.max_position_embeddings)
    return (
        "targets:\n"
        "  - onnxruntime: {}                       # runs on every CPU; the check below runs on it\n"
        f"  # - tensorrt-rtx: {{sm: [80, 86, 89, 120], context: {context}}}\n"
    )


_TEMPLATE = """\
{about}

model: {model}

# The text that pruning and GPTQ measure activations on. Text like what the model will be asked is better: a text
# file, or JSON lines with `text` or `messages`, beside this recipe.
calibration: {{text: builtin:python-docs, samples: 128, length: {length}}}
{prune}
# The first rule that matches a module decides; what no rule matches keeps its precision. Other roles here:
# {others}.
quantize:
  - {{match: {role}, scheme: {scheme}}}

# Or say how large the result is to be; which module gets which scheme is then measured, and rules are constraints.
# size: 4GiB         # of the safetensors; or `bits: 4.0` per parameter, or `fit: 24GiB@32K` on a GPU with its cache

{targets}
# The build fails if the result is further from the original than this, and keeps it as OUTPUT.rejected.
check:
  text: builtin:python-docs
  tokens: 16384
  length: {check_length}
  gates: {{ppl_increase: 4%, kl_mean: 0.06, top1: 90%}}
"""
