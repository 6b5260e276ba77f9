"""Molecular dynamics and relaxation, with ASE or OpenMM."""
