"""Continues a text: greedily, then sampled. The artifact's path is the argument; default: build/quickstart."""

import sys

from llmc.runtime import SamplingParams, load

artifact = sys.argv[1] if len(sys.argv) > 1 else "build/quickstart"

with load(artifact) as model:
    print(model.backend_info)  # which backend was picked, and why no other

    answer = model.generate("def fib(n):", max_new_tokens=48, stop="\n\n", temperature=0)
    print(answer.text, f"[{answer.finish_reason}]")
    print(f"{len(answer.token_ids)} tokens in {answer.steps} steps")
    print(f"{answer.accepted} of {answer.drafted} drafts accepted")

    sampled = SamplingParams(max_new_tokens=16, temperature=0.8, top_p=0.95, seed=1)  # the same seed, the same text
    print(repr(model.generate("import ", sampled).text))
