"""Networks: a graph and its edge vectors in, equivariant features of the atoms out."""
