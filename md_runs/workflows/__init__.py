"""Everyday calculations in run folders: vibrations, equation of state, reaction path."""
