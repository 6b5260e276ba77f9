"""The fused pass on a GPU: Triton kernels, with the whole step recorded as a CUDA graph."""
