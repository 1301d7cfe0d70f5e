"""A model of the harness that remembers what it has answered: an audit that was interrupted goes on from there.

Answers lie in one file of JSON lines per kind of request, each under a hash of the task and of what was asked. Requests
are always put together in the same batches, since what shares a batch has a part in an answer's last digits.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from llmc.runtime.lm_eval import ArtifactLM

Tell = Callable[[int, int, float | None], None]  # answers that are there, of how many; seconds that are left
_BATCHES = 4  # asked before what they said is written down


class KeptAnswers(LM):
    """The harness asks it; it asks `lm` what is not in `folder` yet."""

    def __init__(self, lm: ArtifactLM, folder: Path, tell: Tell = lambda done, total, left: None) -> None:
        super().__init__()
        self.lm, self.folder, self.tell = lm, folder, tell

    @property
    def tokenizer_name(self) -> str:
        """For the harness."""
        return self.lm.tokenizer_name

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """As the model does."""
        return self.lm.apply_chat_template(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """As the model does."""
        return self.lm.chat_template(chat_template)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """As the model does."""
        found = self._answers("loglikelihood", requests, lambda some: self.lm.loglikelihood(some, disable_tqdm=True))
        return [(value, greedy) for value, greedy in found]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """As the model does."""
        return self._answers("rolling", requests, lambda some: self.lm.loglikelihood_rolling(some, disable_tqdm=True))

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """As the model does."""
        return self._answers("generated", requests, lambda some: self.lm.generate_until(some, disable_tqdm=True))

    def _answers(self, kind: str, requests: Sequence[Instance], ask: Callable[[list[Instance]], list[Any]]) -> Any:
        groups: dict[str, list[int]] = {}  # repeats of a request draw other numbers turn by turn: they stay together
        for place, request in enumerate(requests):
            groups.setdefault(_key(request), []).append(place)
        lengths = {
            key: len(groups[key]) * sum(len(str(each)) for each in requests[groups[key][0]].args) for key in groups
        }
        order = sorted(groups, key=lambda key: -lengths[key])  # texts of like length together, memory's most first
        file = self.folder / f"{kind}.jsonl"
        kept = _read(file)
        kept = {key: kept[key] for key in groups if len(kept.get(key, ())) == len(groups[key])}
        rest = sum(lengths[key] for key in groups if key not in kept)
        start, asked = time.monotonic(), 0
        for chunk in _chunks(order, groups, _BATCHES * self.lm.batch):
            if new := [key for key in chunk if key not in kept]:
                places = [place for key in new for place in groups[key]]
                answers = dict(zip(places, ask([requests[place] for place in places]), strict=True))
                kept |= {key: [answers[place] for place in groups[key]] for key in new}
                _append(file, [_line(key, requests[groups[key][0]], kept[key]) for key in new])
                asked += sum(lengths[key] for key in new)
            left = (time.monotonic() - start) / asked * (rest - asked) if asked else None
            self.tell(sum(len(kept[key]) for key in kept), len(requests), left)
        return [kept[key][groups[key].index(place)] for key, place in _in_order(groups)]


def _in_order(groups: dict[str, list[int]]) -> list[tuple[str, int]]:
    return sorted(((key, place) for key, places in groups.items() for place in places), key=lambda pair: pair[1])


def _chunks(order: Sequence[str], groups: dict[str, list[int]], most: int) -> list[list[str]]:
    """Of about `most` requests each, the same for the same requests."""
    chunks: list[list[str]] = [[]]
    for key in order:
        if chunks[-1] and sum(len(groups[each]) for each in chunks[-1]) + len(groups[key]) > most:
            chunks.append([])
        chunks[-1].append(key)
    return chunks


def _key(request: Instance) -> str:
    asked = json.dumps([request.task_name, request.args], sort_keys=True, default=str)
    return hashlib.sha256(asked.encode(errors="surrogatepass")).hexdigest()


def _line(key: str, request: Instance, answers: list[Any]) -> str:
    return json.dumps({"key": key, "task": request.task_name, "sample": request.doc_id, "answers": answers})


def _read(file: Path) -> dict[str, list[Any]]:
    """Every whole line; the last one of a run that was killed may be cut off."""
    found: dict[str, list[Any]] = {}
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        try:
            each = json.loads(line)
            found[each["key"]] = list(each["answers"])
        except (ValueError, LookupError, TypeError):
            continue
    return found


def _append(file: Path, lines: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        cut = out.tell() > 0 and not _ends_in_newline(file)
        out.write("\n" * cut + "".join(f"{line}\n" for line in lines))


def _ends_in_newline(file: Path) -> bool:
    with file.open("rb") as data:
        data.seek(-1, 2)
        return data.read() == b"\n"
