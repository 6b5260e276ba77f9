"""Thin adapters that give other programs' energies and forces from a potential."""

from .ase import PotentialCalculator, TensorNetCalculator

__all__ = ["PotentialCalculator", "TensorNetCalculator"]
