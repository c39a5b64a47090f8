"""NVIDIA GPUs: CUDA through cuda-python, TensorRT engines, and the kernels that crop and resize on the GPU."""
