"""A training step of TensorNet without automatic differentiation; see `network`."""
