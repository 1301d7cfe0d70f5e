"""Operations of llmc's engines that TensorRT does not know: kernels compiled ahead of time, launched by cuda-python.

Neither Triton nor a compiler is needed. Without TensorRT an operation is launched like this:

    kernels = kernel_set.read(Path("build/…/engines/kernels.safetensors"))
    operation = LatentAttention(kernels[key], scale=0.07)
    operation.launch(Gpu.current(), shapes, inputs, outputs, workspace, stream)
"""
