"""How fast an artifact is here: reading a prompt, answering, with and without drafts of its MTP layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmc.errors import InputError
from llmc.runtime.drafts import Drafts, beginnings, drafts, run
from llmc.runtime.model import Model
from llmc.runtime.reference import read_reference


@dataclass(frozen=True)
class Speed:
    """Tokens per second of one greedy sequence; speculative is None without an MTP layer."""

    decode: float
    speculative: float | None


def peak_memory() -> int:
    """Bytes that this process has had in memory at most."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where ru_maxrss counts the process that started this one, too
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes, on macOS


def measure(model: Model, reference: Path | None = None) -> tuple[Speed, Drafts | None]:
    """Continues the beginnings of some check windows, with and without speculation, as far as the context goes.

    Args:
        reference: see `Model.check`.

    Returns the speeds, which vary from run to run, and the drafts that the model agreed to, which do not.
    """
    prompts, new_tokens = beginnings(read_reference(model.artifact, reference)["input_ids"], model.context)

    def tokens_per_second(draft_tokens: int) -> tuple[float, Drafts]:
        runs = [run(model, [prompt], new_tokens, draft_tokens) for prompt in prompts]
        speed = sum(len(run.answers[0].tokens) for run in runs) / sum(run.prefill + run.decode for run in runs)
        return speed, drafts(runs)

    plain, _ = tokens_per_second(0)
    if not model.draft_tokens:
        return Speed(plain, None), None
    try:
        speculative, accepted = tokens_per_second(model.draft_tokens)
    except InputError as error:  # the very same answers came without drafts
        raise InputError(
            f"drafts of the multi-token-prediction layer: {error}; set num_nextn_predict_layers to 0 in the original's "
            "config.json to go without that layer"
        ) from error
    return Speed(plain, speculative), accepted
