"""What the files beside a tokenizer say: the names of its special tokens, and what begins and ends a text."""

from __future__ import annotations

from typing import Any, NamedTuple

from llmc.runtime.origin import Origin, read_json

CONFIG, SPECIAL_TOKENS_MAP, ADDED_TOKENS = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_MOST_BYTES = 1 << 24


class Added(NamedTuple):
    number: int
    text: str
    special: bool


def tokenizer_config(origin: Origin) -> dict[str, Any]:
    return read_json(origin, CONFIG, _MOST_BYTES)


def special_tokens(origin: Origin) -> dict[str, str]:
    """`bos_token`, `eos_token`, `image_token`, … → its text.

    As in transformers: special_tokens_map.json, which older checkpoints have, wins, unless tokenizer_config.json lists
    the added tokens; then it only fills in what is not named there.
    """
    config, older = tokenizer_config(origin), read_json(origin, SPECIAL_TOKENS_MAP, _MOST_BYTES)
    found = older | config if "added_tokens_decoder" in config else config | older
    for each in (older, config):
        more = each.get("extra_special_tokens")
        found |= more if isinstance(more, dict) else {}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in found.items()}
    return {name: text for name, text in texts.items() if name.endswith("_token") and isinstance(text, str)}


def added_tokens(origin: Origin) -> list[Added]:
    """Those that tokenizer_config.json lists, or in older checkpoints added_tokens.json, by number."""
    listed = tokenizer_config(origin).get("added_tokens_decoder")
    if isinstance(listed, dict):
        tokens = [(number, each) for number, each in listed.items() if isinstance(each, dict)]
        found = [
            Added(int(number), each["content"], each.get("special") is True)
            for number, each in tokens
            if number.isdecimal() and len(number) < 10 and isinstance(each.get("content"), str)
        ]
    else:
        special = set(special_tokens(origin).values())
        older = read_json(origin, ADDED_TOKENS, _MOST_BYTES)
        found = [Added(number, text, text in special) for text, number in older.items() if type(number) is int]
    return sorted(found)


def end_token_ids(origin: Origin) -> list[list[int]]:
    """`eos_token_id` of generation_config.json and of config.json; empty where one names none."""
    found = []
    for name in ("generation_config.json", "config.json"):
        said = read_json(origin, name, _MOST_BYTES)
        parts = [said, *(said.get(part) for part in ("text_config", "llm_config"))]  # models that see name them inside
        values = (part.get("eos_token_id") for part in parts if isinstance(part, dict))
        value = next((each for each in values if each is not None), None)
        ids = value if isinstance(value, list) else [value]
        found.append([token for token in ids if type(token) is int])
    return found
