"""llmc: prune, quantize and compile open LLM checkpoints, and prove that the result is still the same model."""

__version__ = "0.1.0"
