"""Everyday calculations in run folders: vibrations, phonons, elasticity, reaction paths."""
