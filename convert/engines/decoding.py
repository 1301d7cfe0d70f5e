"""Codes that a program decodes into memory in every step: none in steps that decode tokens, but for what is said here.

Where the compiler does not multiply by codes, `weights.held` has a plugin do it, or makes floats of them: both read
fewer bytes. What is left would be a loss that nobody sees.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from llmc.contracts.engine import EngineDescription, EngineProfile
from llmc.errors import MachineError

MOST_DECODED = 2  # tokens per row of a step that decodes: the one before, and a draft
LONGEST_ATTENTION = 16_384  # cache entries up to which TensorRT has a kernel for the attention of one token


@dataclass(frozen=True)
class Exemption:
    """Weights that may be decoded in every step, in some profiles, and why."""

    weights: re.Pattern[str]
    profiles: Callable[[EngineProfile], bool]
    reason: str


EXEMPTIONS = (
    Exemption(
        re.compile(r".*\.o_proj\.weight"),
        lambda profile: profile.window > LONGEST_ATTENTION,
        f"TensorRT takes attention to more than {LONGEST_ATTENTION:,} cache entries apart, and decodes the projection "
        "behind it in every such step",
    ),
)


def check_decoding(name: str, description: EngineDescription) -> None:
    """MachineError if a program that decodes tokens decodes weights, too, which are not exempt."""
    for profile, weights in _decoded(description):
        if profile.tokens[1] > MOST_DECODED:
            continue
        if left := [each for each in weights if not any(_covers(exempt, profile, each) for exempt in EXEMPTIONS)]:
            raise MachineError(
                f"{name}: its program for {profile.tokens} tokens decodes {left[0]}"
                f"{f' and {len(left) - 1} more' if left[1:] else ''} in every step; leave them as they are or quantize "
                "them differently"
            )


def decoding_notes(description: EngineDescription) -> list[str]:
    """What whoever chooses the engine should know."""
    notes, prompts = [], set()
    for profile, weights in _decoded(description):
        notes += [x.reason for x in EXEMPTIONS if any(_covers(x, profile, each) for each in weights)]
        if profile.tokens[1] > MOST_DECODED:
            prompts |= {each for each in weights if not any(_covers(x, profile, each) for x in EXEMPTIONS)}
    if prompts:
        name = description.engine
        notes.append(f"{name}: matrices that every step of a prompt decodes: {len(prompts)}, such as {min(prompts)}")
    return list(dict.fromkeys(notes))


def _decoded(description: EngineDescription) -> list[tuple[EngineProfile, list[str]]]:
    """By profile; nothing where programs cannot be read."""
    programs = description.programs
    return [
        (profile, program.decoded) for profile, program in zip(description.profiles, programs, strict=bool(programs))
    ]


def _covers(exemption: Exemption, profile: EngineProfile, weight: str) -> bool:
    return exemption.profiles(profile) and exemption.weights.fullmatch(weight) is not None
