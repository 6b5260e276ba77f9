"""Inference: radial tables, fused kernels, TorchScript, Hessians."""
