"""Prune, quantize and compile open LLM checkpoints, and measure how far the result is from the original.

import llmc

result = llmc.build({"model": "builtin:tiny-deepseek-v3", "quantize": [{"match": "experts", "scheme": "int4-g64"}]})
with llmc.load(result.path) as model:
    print(model.generate("import ", max_new_tokens=32).text)
"""

from llmc.lazy import exports

TYPE_CHECKING = False  # `typing` takes longer to import than this package
if TYPE_CHECKING:
    from llmc.contracts.progress import Progress
    from llmc.errors import GateError, InputError, LlmcError, MachineError
    from llmc.job import plan
    from llmc.pipeline import BuildResult, build
    from llmc.planning import Plan
    from llmc.recipe import Recipe
    from llmc.runtime import load
else:
    _HOMES = {
        "BuildResult": "llmc.pipeline", "build": "llmc.pipeline",
        "Plan": "llmc.planning", "plan": "llmc.job",
        "Progress": "llmc.contracts.progress", "Recipe": "llmc.recipe", "load": "llmc.runtime",
    } | dict.fromkeys(("GateError", "InputError", "LlmcError", "MachineError"), "llmc.errors")  # fmt: skip
    __getattr__ = exports(__name__, _HOMES)

__version__ = "0.1.0"
__all__ = [
    "BuildResult",
    "GateError",
    "InputError",
    "LlmcError",
    "MachineError",
    "Plan",
    "Progress",
    "Recipe",
    "__version__",
    "build",
    "load",
    "plan",
]
