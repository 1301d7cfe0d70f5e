"""EleutherAI's lm-evaluation-harness on an artifact: all of its tasks, with this runtime. Needs the extra `eval`.

    python -m llmc.runtime.lm_eval run --model llmc --model_args artifact=build/quickstart --tasks hellaswag,gsm8k

That is the harness's own command line (`--help` explains it) with one model more. In a program:

    lm_eval.simple_evaluate(model=ArtifactLM("build/quickstart"), tasks=["hellaswag"])
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llmc.extras import missing

try:
    from lm_eval.api.instance import Instance
except ImportError as error:
    raise missing(error) or error from error
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, warning_once
from tqdm import tqdm

from llmc.errors import InputError
from llmc.registry import unknown
from llmc.runtime import arguments
from llmc.runtime.model import Model, load
from llmc.runtime.sampling import SamplingParams

Pair = tuple[tuple[str, str], list[int], list[int]]  # texts; tokens of the context and of what follows
_LOG = logging.getLogger(__name__)
_SAMPLING = ("top_k", "top_p", "min_p", "repetition_penalty", "seed")  # called alike here
# What other models of the harness can be asked for, and the value that asks for nothing.
_NOTHING = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "typical_p": 1,
    "length_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "no_repeat_ngram_size": 0,
    "use_cache": True,
}


@register_model("llmc")
class ArtifactLM(TemplateLM):
    """artifact: a directory that `llmc build` made, or a model that is loaded already

    Attributes:
        batch_size: rows at a time; at most, and by default, what the backend takes
        max_gen_toks: of an answer, unless the task says otherwise

    options: of `llmc.runtime.load`
    """

    def __init__(
        self, artifact: str | Model, batch_size: int | str | None = None, max_gen_toks: int = 256, **options: Any
    ) -> None:
        super().__init__()
        options.pop("max_batch_size", None), options.pop("device", None)  # the harness gives these to every model
        known = [] if isinstance(artifact, Model) else [*inspect.signature(load).parameters][1:]
        known = [name for name in known if name != "device"]
        if others := options.keys() - set(known):
            raise InputError(unknown("option", min(others), ["batch_size", "max_gen_toks", *known]))
        self.model = artifact if isinstance(artifact, Model) else load(artifact, **options)
        self.batch = self.model.backend.batch
        if batch_size is not None and not str(batch_size).startswith("auto"):
            number = int(batch_size) if str(batch_size).isdecimal() else batch_size
            self.batch = min(self.batch, arguments.whole("batch_size", number, 1))
        self.max_gen_toks = arguments.whole("max_gen_toks", max_gen_toks, 1)

    @property
    def eot_token_id(self) -> int:
        return min(self.model.artifact.eos_token_ids, default=self.prefix_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands in front of a text without context: the beginning of text, if the model has such a token, or the
        end of another text, or of a line.
        """
        first = self.model.artifact.manifest.model.bos_token_id
        for token in (first, self.model.tokenizer.bos_token_id, *sorted(self.model.artifact.eos_token_ids)):
            if token is not None:
                return int(token)
        return self.model.encode("\n")[-1]

    @property
    def tokenizer_name(self) -> str:
        """For the harness's cache of requests."""
        return str(self.model.artifact.path.resolve()).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """A beginning-of-text token that a chat template wrote is not doubled."""
        return self.model.tokenizer.encode(string, add_special_tokens is not False).ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Without a generation prompt the last message is the beginning of the answer, and stays open."""
        template, go_on = self.model._chat_template, not add_generation_prompt
        try:
            return template.render(chat_history, add_generation_prompt, continue_final_message=go_on)
        except InputError as error:
            others = [message for message in chat_history if message["role"] != "system"]
            if len(others) == len(chat_history):
                raise
            warning_once(_LOG, f"{error}; it is given them without the system message, as the harness does elsewhere")
            return template.render(others, add_generation_prompt, continue_final_message=go_on)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """What identifies the template in the harness's results."""
        return self.model._chat_template.source if chat_template else None

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Sum of the log-probabilities of what follows, and whether each token of it is the most likely one. Contexts
        that are too long lose their beginning.
        """
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        texts = [(context + following)[-self.model.context :] for _, context, following in requests]
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))  # the longest first: memory runs out at once
        progress = tqdm(total=len(texts), disable=disable_tqdm, desc="log-likelihoods")
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            firsts = [max(1, len(texts[i]) - len(requests[i][2])) for i in rows]
            for row, tokens in zip(rows, self.model.score([texts[i] for i in rows], firsts, top=1), strict=True):
                greedy = all(next(iter(each.top)) == each.token_id for each in tokens)
                found[row] = sum(each.logprob for each in tokens), greedy
            progress.update(len(rows))
        progress.close()
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows as long as the context."""
        found = []
        for request in tqdm(requests, disable=disable_tqdm, desc="rolling log-likelihoods"):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0], add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.model.context - 1,
                context_len=1,
            )
            pairs = [(("", ""), *make_disjoint_window(window)) for window in windows]
            found.append(sum(value for value, _ in self._loglikelihood_tokens(pairs, disable_tqdm=True)))
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers, each with its own stop strings, length and temperature. Prompts that are too long lose their
        beginning.
        """
        found = [""] * len(requests)
        prompts, parameters = [], []
        seen = Counter[str]()
        for request in requests:
            text, wanted = request.args
            each = self._parameters(wanted)
            asked = json.dumps([text, wanted], default=str, sort_keys=True)
            each = replace(each, seed=_seed(each.seed, asked, seen[asked]))
            seen[asked] += 1
            prompts.append(self.tok_encode(text)[-(self.model.context - (each.max_new_tokens or 1)) :])
            parameters.append(each)
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        progress = tqdm(total=len(prompts), disable=disable_tqdm, desc="answers")
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            answers = self.model.generate([prompts[i] for i in rows], [parameters[i] for i in rows])
            for row, answer in zip(rows, answers, strict=True):
                found[row] = answer.text
            progress.update(len(rows))
        progress.close()
        return found

    def _parameters(self, wanted: dict[str, Any]) -> SamplingParams:
        """From the harness's names; greedy unless they say otherwise. InputError for what cannot be done."""
        known = {name: value for name, value in wanted.items() if value is not None}
        if isinstance(known.get("until"), tuple):
            known["until"] = list(known["until"])
        try:
            known = dict(normalize_gen_kwargs(known, self.max_gen_toks))
        except (TypeError, ValueError) as error:
            raise InputError(f"the generation_kwargs {wanted} cannot be read: {error}") from error
        sampled, length = known.pop("do_sample"), known.pop("max_gen_toks")
        if isinstance(sampled, str):
            sampled = arguments.flag("do_sample", {"true": True, "false": False}.get(sampled.lower(), sampled))
        temperature = known.pop("temperature", 1.0)  # transformers' default, and vLLM's
        stop = [text for text in known.pop("until") if text]
        options = {name: known.pop(name) for name in _SAMPLING if name in known}
        if options.get("top_k") == -1:  # vLLM's way to write no limit
            options["top_k"] = 0
        for name, value in known.items():
            if name not in _NOTHING or value != _NOTHING[name]:
                raise InputError(f"llmc cannot generate with {name}={value!r}; take it out of the generation_kwargs")
        most = self.model.context // 2  # the rest is for the prompt
        if length > most:
            warning_once(_LOG, f"answers get {most} tokens instead of {length}: half of the context is for the prompt")
        return SamplingParams(min(length, most), temperature if sampled else 0.0, stop=stop, **options)


def _seed(seed: int | None, asked: str, turn: int) -> int:
    """Every request draws its own numbers, the same one `turn` by `turn` (`repeats` of a task) others, however requests
    are ordered and batched.
    """
    return int.from_bytes(hashlib.sha256(f"{seed} {turn} {asked}".encode(errors="surrogatepass")).digest()[:8])


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
