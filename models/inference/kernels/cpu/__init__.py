"""The fused pass on a CPU: Numba with explicit vectors, one compiled call for a step."""
