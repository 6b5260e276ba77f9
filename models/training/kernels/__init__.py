"""A training step of TensorNet without automatic differentiation; see `network`."""

from __future__ import annotations

from ...evaluation.predictions import EnergiesAndGradient
from ...potential import Potential
from .problem import fused_step_problem

__all__ = ["fused_energies", "fused_step_problem"]


def fused_energies(potential: Potential, intervals: int | str) -> EnergiesAndGradient:
    """Energies and their derivatives, differentiable in the weights; see `potential`.

    Parameters
    ----------
    potential
        Potential for which `fused_step_problem` finds no problem.
    intervals
        Intervals of the splines that stand for the radial networks; 0: none do; ``auto``: four
        for each radial function, which leaves the forces of a trained network within 1e-4 eV/A
        (root mean square).
    """
    from .potential import FusedEnergies  # Numba is optional

    if intervals == "auto":
        intervals = 4 * int(potential.representation.config["radial_functions"])
    return FusedEnergies(potential, int(intervals))
