"""Markdown tables of a JSON Schema's objects, for the pages that are generated from models."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

_MOST_VALUES = 12  # of an enumeration that a table's cell lists


def tables(name: str, schema: dict[str, Any], without: Collection[str] = ()) -> Iterator[str]:
    """Yield a table of an object's keys, then one of every object that it refers to, in the order of appearance.

    Args:
        name: The object's name, by which references to it are known.
        schema: Its JSON Schema; it is not changed.
        without: Names of definitions that get no tables of their own.
    """
    definitions = schema.get("$defs", {})
    seen, queue = {name, *without}, [(name, schema)]
    while queue:
        title, found = queue.pop(0)
        if title != name:
            yield f"### {title}\n"
        yield from table(found, definitions)
        for other in re.findall(r"#/\$defs/(\w+)", str(found["properties"])):
            if other not in seen:
                seen.add(other)
                queue.append((other, definitions[other]))


def table(schema: dict[str, Any], definitions: dict[str, Any] | None = None) -> Iterator[str]:
    """Yield an object's description and the table of its keys; one without a meaning takes its object's."""
    yield f"{' '.join(schema.get('description', '').split())}\n"
    if schema["properties"]:
        yield "| key | type | default | meaning |\n|---|---|---|---|"
    for key, value in schema["properties"].items():
        default = "" if key in schema.get("required", ()) else _default(value)
        meaning = (value.get("description") or _of_its_object(value, definitions or {})).replace("|", "\\|")
        yield f"| `{key}` | {kind(value)} | {default} | {meaning} |"
    yield ""


def kind(value: dict[str, Any]) -> str:
    """Return a JSON Schema's type in words, such as `list of integer`, `Checks or {}` or `object of File`."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return "`{}`" if name == "Nothing" else f"[{name}](#{name.lower()})"
    values = value.get("enum", [value["const"]] if "const" in value else [])
    if 0 < len(values) <= _MOST_VALUES:
        return " or ".join(f"`{each}`" for each in values)
    if "anyOf" in value and "type" not in value:
        return " or ".join(kind(each) for each in value["anyOf"])
    if "prefixItems" in value:
        return f"[{', '.join(kind(each) for each in value['prefixItems'])}]"
    if value.get("type") == "array":
        return f"list of {kind(value['items'])}"
    if value.get("type") == "object":
        inner = value.get("additionalProperties") or next(iter(value.get("patternProperties", {}).values()), None)
        return f"object of {kind(inner)}" if isinstance(inner, dict) else "object"
    return str(value.get("type", "any"))


def _of_its_object(value: dict[str, Any], definitions: dict[str, Any]) -> str:
    for name in re.findall(r"#/\$defs/(\w+)", str(value)):
        return " ".join(definitions[name]["description"].split())
    return ""


def _default(value: dict[str, Any]) -> str:
    default = value.get("default")
    if default is None or isinstance(default, dict):
        return "absent"
    return f"`{json.dumps(default)}`"
