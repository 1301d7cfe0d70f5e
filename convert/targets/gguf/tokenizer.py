"""A model's tokenizer and chat template as GGUF has them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf

from llmc.convert.folder import SIDECAR_LIMIT, read_json
from llmc.convert.gguf.pre_tokenizers import is_byte_level, name_of
from llmc.convert.spec import ModelSpec
from llmc.convert.tokenizer_files import CONFIG, TOKENIZER
from llmc.errors import InputError

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# transformers 4, with which models were trained, let these begin texts with bos_token unless told otherwise.
_BEGIN_BY_DEFAULT = ("LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "CodeLlamaTokenizerFast")


def write_tokenizer(writer: gguf.GGUFWriter, folder: Path, spec: ModelSpec, pre_tokenizer: str | None) -> list[str]:
    """Add what a checkpoint's files say of its tokenizer to a GGUF file.

    Args:
        writer: That has no file yet.
        folder: Of tokenizer.json and what lies beside it.
        spec: Of the model, for the number of its tokens.
        pre_tokenizer: llama.cpp's name of how texts are divided; None: found out.

    Returns:
        Notes on what llama.cpp does otherwise.

    Raises:
        InputError: for a kind of tokenizer that is not written
    """
    described = read_json(folder / TOKENIZER, SIDECAR_LIMIT)
    settings = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    model = described.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
        kind = model.get("type") if isinstance(model, dict) else None
        raise InputError(f"target gguf: a tokenizer of type {kind!r} cannot be written yet, only BPE; leave it out")
    tokens, kinds = _tokens(described, spec.vocab_size)
    special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=spec.vocab_size)
    special.add_special_token["bos"] = _begins_with_bos(described, settings)
    others = [token for token in spec.eos_token_ids if token != special.special_token_ids.get("eos")]
    if len(others) == 1 and "eot" not in special.special_token_ids:
        special.special_token_ids["eot"] = others[0]
    notes: list[str] = []
    if is_byte_level(described):
        writer.add_tokenizer_model("gpt2")
        if name := pre_tokenizer or name_of(described.get("pre_tokenizer")):
            writer.add_tokenizer_pre(name)
        else:
            notes.append(
                "llama.cpp has no pre-tokenizer that divides texts as this model's does, warns when it loads the file, "
                "and makes other tokens of some texts; token ids mean the same (option `pre_tokenizer` names one)"
            )
    else:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(_scores(tokens, special.merges))
        writer.add_add_space_prefix(_prepends_space(described))
        special.merges, special.load_merges = [], False
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    special.add_to_gguf(writer, quiet=True)
    return notes


def _tokens(described: dict[str, Any], count: int) -> tuple[list[str], list[gguf.TokenType]]:
    """All `count` tokens by number, and what each of them is."""
    numbers: dict[str, int] = described["model"]["vocab"]
    added = {each["id"]: each for each in described.get("added_tokens") or []}
    texts = {number: text for text, number in numbers.items()}
    texts |= {number: each["content"] for number, each in added.items()}
    byte_level, unknown = is_byte_level(described), described["model"].get("unk_token")
    tokens, kinds = [], []
    for number in range(count):
        text, kind = texts.get(number), gguf.TokenType.NORMAL
        if text is None:
            text, kind = f"[PAD{number}]", gguf.TokenType.UNUSED
        elif text == unknown and not byte_level:
            kind = gguf.TokenType.UNKNOWN
        elif number in added:
            kind = gguf.TokenType.CONTROL if added[number].get("special") else gguf.TokenType.USER_DEFINED
        elif not byte_level and _BYTE.fullmatch(text):
            kind = gguf.TokenType.BYTE
        tokens.append(text)
        kinds.append(kind)
    return tokens, kinds


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """What llama.cpp merges first has the highest score: the token that the earliest merge makes."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def _begins_with_bos(described: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether texts begin with bos_token: as tokenizer.json's post-processor has it, or tokenizer_config.json."""
    named = settings.get("bos_token")
    bos = named.get("content") if isinstance(named, dict) else named
    flag, by_default = settings.get("add_bos_token"), settings.get("tokenizer_class") in _BEGIN_BY_DEFAULT
    processor = described.get("post_processor") or {}
    for part in processor.get("processors", [processor]):
        single = part.get("single") or [{}]
        if bos is not None and single[0].get("SpecialToken", {}).get("id") == bos:
            return not (flag is False and by_default)
    return bool(flag) if flag is not None else by_default and bos is not None


def _prepends_space(described: dict[str, Any]) -> bool:
    parts = [described.get("normalizer") or {}, described.get("pre_tokenizer") or {}]
    flat = [each for part in parts for each in part.get("normalizers", part.get("pretokenizers", [part]))]
    return any(
        each.get("type") == "Prepend"
        or (each.get("type") == "Metaspace" and each.get("prepend_scheme", "always") != "never")
        for each in flat
    )
