"""Several prompts at once, and prompts that share a beginning. The artifact's path is the argument; default:
build/quickstart."""

import sys

from llmc.runtime import SamplingParams, load

artifact = sys.argv[1] if len(sys.argv) > 1 else "build/quickstart"

with load(artifact) as model:
    # A batch: prompts of unequal lengths, each with parameters of its own.
    prompts = ["def main(", "class Error("]
    parameters = [SamplingParams(max_new_tokens=8), SamplingParams(max_new_tokens=8, temperature=1.0, seed=7)]
    for prompt, answer in zip(prompts, model.generate(prompts, parameters), strict=True):
        print(repr(prompt + answer.text))

    # A session reads what prompts have in common once; its forks go their own ways.
    source = "import os\nimport sys\n\n\n"
    session = model.session(source)
    for start in ("def ", "class "):
        answer = session.fork().generate(source + start, max_new_tokens=8)
        print(f"{answer.cached_tokens} of {answer.prompt_tokens} prompt tokens were known: {start + answer.text!r}")

    # What the model says of a given text: log-probabilities, and the two most likely tokens at each place.
    for place in model.score(["import os\n"], top=2)[0]:
        print(place)
