"""The thin runtime: load an artifact, generate, stream, chat, check. Needs numpy, tokenizers and one backend; no torch.

from llmc.runtime import load

with load("artifact") as model:
    for piece in model.stream("def fib(n):", max_new_tokens=64):
        print(piece, end="")
"""

from llmc.runtime.check import CheckReport
from llmc.runtime.gates import Gate
from llmc.runtime.logprobs import TokenLogprob
from llmc.runtime.model import Model, Session, load
from llmc.runtime.sampling import SamplingParams
from llmc.runtime.sequence import Generation
from llmc.runtime.stream import Stream

__all__ = ["CheckReport", "Gate", "Generation", "Model", "SamplingParams", "Session", "Stream", "TokenLogprob", "load"]
