"""Engines of NVIDIA's compilers, TensorRT and TensorRT-RTX: one network code for both packages."""
