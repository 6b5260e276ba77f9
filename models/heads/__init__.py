"""Heads: from the features of a network to energies, dipoles and polarizabilities."""
