"""Thin adapters that run a potential in ASE, OpenMM and openmm-ml."""

from .ase import PotentialCalculator, TDNCalculator, TensorNetCalculator
from .openmm import create_force

__all__ = ["PotentialCalculator", "TDNCalculator", "TensorNetCalculator", "create_force"]
