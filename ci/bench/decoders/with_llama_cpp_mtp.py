"""llama.cpp with the drafts of the MTP layer, one a step, always the most likely token.

The loop that llama.cpp has for this lies in its programs, not in its library, so that it stands here once more: a
second context runs the MTP layer on a token and the hidden state of the token before. Argument: see measure.py; there
are no logits to compare.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llama_cpp as cpp
import numpy as np
from llama_cpp import llama_cpp_ext
from measure import peak_bytes
from numpy.typing import NDArray
from with_llama_cpp import context_options, open_model

Hidden = NDArray[np.float32]


class Context:
    """A context of the main model or of the MTP layer, and a batch for it."""

    def __init__(self, model: Any, threads: int, longest: int, kind: int, other: Any = None) -> None:
        options = context_options(threads, longest)
        options.ctx_type, options.ctx_other = kind, other
        self.context = cpp.llama_init_from_model(model, options)
        llama_cpp_ext.llama_set_embeddings_nextn(self.context, True, False)
        self.width = cpp.llama_model_n_embd(model)
        self.vocabulary = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(model))
        self.drafts = kind == cpp.LLAMA_CONTEXT_TYPE_MTP
        self.batch = cpp.llama_batch_init(longest, self.width if self.drafts else 0, 1)
        if self.drafts:  # it takes tokens and hidden states, and llama_batch_init makes room for either
            self._tokens = (ctypes.c_int32 * longest)()
            self.batch.token = ctypes.cast(self._tokens, type(self.batch.token))

    def forward(self, ids: list[int], position: int, wanted: int, hidden: Hidden | None = None) -> NDArray[np.int64]:
        """The most likely token after each of the last `wanted` ones."""
        batch = self.batch
        batch.n_tokens = len(ids)
        for index, token in enumerate(ids):
            batch.token[index], batch.pos[index] = token, position + index
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            batch.logits[index] = index >= len(ids) - wanted
        if hidden is not None:
            np.ctypeslib.as_array(batch.embd, (len(ids), self.width))[:] = hidden
        if status := cpp.llama_decode(self.context, batch):
            raise SystemExit(f"llama_decode gave {status}")
        return np.ctypeslib.as_array(cpp.llama_get_logits(self.context), (wanted, self.vocabulary)).argmax(1)

    def hidden(self, count: int) -> Hidden:
        """Of the last call's tokens."""
        found = llama_cpp_ext.llama_get_embeddings_nextn(self.context)
        return np.ctypeslib.as_array(found, (count, self.width)).copy()

    def forget(self, position: int) -> None:
        """Everything from there."""
        cpp.llama_memory_seq_rm(cpp.llama_get_memory(self.context), 0, position, -1)


def speak(main: Context, mtp: Context, prompt: list[int], new: int) -> tuple[int, int, float, float]:
    """Steps, accepted drafts, seconds to the first token and seconds after it."""
    start = time.perf_counter()
    main.forget(0)
    mtp.forget(0)
    count, steps, accepted = len(prompt), 0, 0
    (chosen,) = main.forward(prompt, 0, 1).tolist()
    first = time.perf_counter()
    # What the MTP layer has not seen: tokens, the hidden states before them, the position of the first.
    following, hidden, position = [*prompt[1:], chosen], main.hidden(count), 1
    said = 1
    while said < new:
        (draft,) = mtp.forward(following, position, 1, hidden).tolist()
        wanted = main.forward([chosen, draft], count, 2).tolist()
        following = wanted if wanted[0] == draft else wanted[:1]
        hidden, position = main.hidden(2)[: len(following)], count + 1
        count, chosen = count + len(following), following[-1]
        main.forget(count)
        steps, accepted, said = steps + 1, accepted + len(following) - 1, said + len(following)
    return steps, accepted, first - start, time.perf_counter() - first


if __name__ == "__main__":
    task = json.loads(Path(sys.argv[1]).read_text())
    rows, short, new = np.load(task["prompts"]).tolist(), task["short"], task["new"]
    longest = max(len(rows[0]), short + new) + 3
    start = time.perf_counter()
    model = open_model(task["model"], mtp=True)
    main = Context(model, task["threads"], longest, cpp.LLAMA_CONTEXT_TYPE_DEFAULT)
    mtp = Context(model, task["threads"], longest, cpp.LLAMA_CONTEXT_TYPE_MTP, main.context)
    speak(main, mtp, rows[0][:2], 2)
    found: dict[str, Any] = {"load": time.perf_counter() - start, "version": version("llama_cpp_python")}
    found |= {"prefill": [], "decode": [], "tokens_per_step": [], "acceptance": []}
    for number, row in enumerate([rows[0], *rows]):
        _, _, prefill, _ = speak(main, mtp, row, 1)
        steps, accepted, _, seconds = speak(main, mtp, row[:short], new + 1)
        if number:  # the first prompt is taken once more, for warming up
            found["prefill"].append(len(row) / prefill)
            found["decode"].append((steps + accepted) / seconds)  # the last step may say one more than was asked for
            found["tokens_per_step"].append((steps + accepted) / steps)
            found["acceptance"].append(accepted / steps)
    found["peak"] = peak_bytes()
    Path(task["result"]).write_text(json.dumps(found))
