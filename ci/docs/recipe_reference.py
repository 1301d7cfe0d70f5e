"""The page "Recipe": every key of a recipe, from its JSON Schema."""

from __future__ import annotations

import copy

from schema_tables import table, tables

from llmc.recipe import json_schema

INTRODUCTION = """# Recipe

A recipe is a YAML file. This page is generated from its JSON Schema, which `llmc recipe schema` prints for your editor.
Only `model` has to be there. Unknown keys are errors, and every error names file, line and key.
What the words mean is told in [Concepts](concepts.md); a walk through a recipe is [A model of your own](own-model.md).
"""


def page() -> str:
    """Return the page, as Markdown."""
    schema = copy.deepcopy(json_schema())
    target_options = schema["properties"]["targets"]["items"]["properties"]
    schema["properties"]["targets"] |= {
        "items": {"type": "object"},
        "description": "each is one key, a target of [those below](#targets), with its options: "
        "`- tensorrt-rtx: {sm: [89]}`",
    }
    rule = schema["$defs"]["Quantize"]["properties"]
    schemes = rule["scheme"]["anyOf"][0]["enum"]
    for value in (rule["scheme"], rule["least"], schema["properties"]["candidates"]):
        value["description"] = f"[of {len(schemes)}](#schemes); {value['description']}"
    lines = [INTRODUCTION, "## Top level\n", *tables("Recipe", schema), "## Targets\n"]
    for name, value in target_options.items():
        lines += [f"### {name}\n", *table(value["anyOf"][0])]
    return "\n".join([*lines, "## Schemes\n", ", ".join(f"`{name}`" for name in schemes), ""])
