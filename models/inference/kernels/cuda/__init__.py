"""The fused pass on a GPU: Triton kernels, and recordings of the whole step."""
