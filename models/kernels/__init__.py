"""Fused operators for inference: energies, forces and virial in one pass, without autograd."""
