"""The thin runtime: load an artifact, generate, stream, check. Needs numpy, tokenizers and one backend; no torch.

from llmc.runtime import load

with load("artifact") as model:
    for piece in model.stream("def fib(n):", max_new_tokens=64):
        print(piece, end="")
"""

from llmc.runtime.check import CheckReport, Gate
from llmc.runtime.model import Generation, Model, load

__all__ = ["CheckReport", "Gate", "Generation", "Model", "load"]
