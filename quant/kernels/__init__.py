"""Kernels for NVIDIA GPUs, written in Triton; each does what a loop in torch does, and is tested against it."""
