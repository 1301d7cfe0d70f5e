"""Kernels for NVIDIA GPUs, written in Triton, which stand for functions of the graph where a target takes them."""
