"""Heads: energies, dipoles and polarizabilities from the features of a network."""
