"""GGUF, llama.cpp's format: how it names and arranges the tensors of an architecture, and what it says of a model."""
