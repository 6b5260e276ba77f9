"""Energies of one data set in two units are found out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...units import ENERGY_UNITS_IN_EV
from ..frames import Frames

_GAP = 2.0
"""Energies of one unit differ by less than this from what their elements let expect."""
_SPREAD = 1.5
_TOLERANCE = 0.05
_FEWEST = 3
_SMALL_UNITS = ("mev",)  # its ratios to others than eV are those of no mistake that is made


def check_one_unit(frames: Frames, names: Sequence[str]) -> None:
    """Compare energies with what the elements let expect, least squares per element.

    Frames fall in two groups, each within a factor of 1.5, if they were mixed
    or labelled by different means. If the factor between the groups is, within 5 %, that
    between two units of energy, the smaller group is taken for the mistake. Frames of one atom
    are left out, and so are those with elements that the larger group has not.

    Parameters
    ----------
    frames
        In what is held to be eV.
    names
        What an error calls each of them.

    Raises
    ------
    ValueError
        Naming the first frame of the smaller group, and the units.
    """
    if "energy" not in frames.quantities:
        return
    energies = frames.energies.numpy()
    counts = _counts(frames)
    usable = (counts.sum(1) > 1) & (energies != 0)
    where = np.flatnonzero(usable)
    if len(where) < _FEWEST:
        return
    ratio = _ratio(energies[where], counts[where], np.ones(len(where), dtype=bool))
    order = np.argsort(ratio)
    steps = np.diff(np.log(ratio[order]))
    at = int(np.argmax(steps)) + 1
    if steps[at - 1] < np.log(_GAP):
        return
    many = np.zeros(len(where), dtype=bool)
    many[order[at:] if at < len(order) / 2 else order[:at]] = True
    known = counts[where][many].any(0)
    few = ~many & ~counts[where][:, ~known].any(1)
    if not few.any():
        return
    ratio = _ratio(energies[where], counts[where], many)
    factor = float(np.median(ratio[few]))
    for group, middle in ((many, 1.0), (few, factor)):
        if np.abs(np.log(ratio[group] / middle)).max() > np.log(_SPREAD):
            return
    for small, large, expected in _unit_pairs():
        for unit, other, times in ((small, large, expected), (large, small, 1 / expected)):
            if abs(factor / times - 1) < _TOLERANCE:
                raise ValueError(
                    f"the energies of {names[where[np.argmax(few)]]} and {few.sum() - 1} other "
                    f"frames are {factor:.4g} times what the others let expect, the factor from "
                    f"{other} to {unit}: units are mixed; convert them, or read each file with "
                    "its own units"
                )


def _counts(frames: Frames) -> NDArray[np.float64]:
    """(F, elements), atoms of each element."""
    elements = np.array(frames.elements)
    return np.stack(
        [(graph.numbers.numpy()[:, None] == elements).sum(0) for graph in frames.graphs]
    ).astype(np.float64)


def _ratio(
    energies: NDArray[np.float64], counts: NDArray[np.float64], fit: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Energies by what references fitted to some of the frames give, without their signs."""
    sizes = counts.sum(1)
    shares, per_atom = counts / sizes[:, None], energies / sizes
    references = np.linalg.lstsq(shares[fit], per_atom[fit], rcond=None)[0]
    expected = shares @ references
    tiny = 1e-12 * np.abs(per_atom).max()
    return np.abs(per_atom) / np.maximum(np.abs(expected), tiny)


def _unit_pairs() -> list[tuple[str, str, float]]:
    """Pairs of units, the smaller one first, and the factor between them."""
    pairs = []
    for small, value in ENERGY_UNITS_IN_EV.items():
        for large, other in ENERGY_UNITS_IN_EV.items():
            if other > value and (small not in _SMALL_UNITS or large == "ev"):
                pairs.append((small, large, other / value))
    return pairs
