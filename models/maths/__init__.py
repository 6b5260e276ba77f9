"""Mathematics without physics: tensors, harmonics, radial functions, splines."""
