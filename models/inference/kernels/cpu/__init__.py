"""The fused pass on a CPU: Numba with explicit vectors, one compiled call per step."""
