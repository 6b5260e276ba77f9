"""Thin adapters that give other programs' energies and forces from a potential."""

from .ase import PotentialCalculator, TDNCalculator, TensorNetCalculator
from .openmm import create_force

__all__ = ["PotentialCalculator", "TDNCalculator", "TensorNetCalculator", "create_force"]
