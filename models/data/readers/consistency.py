"""Detection of energies in different units within one data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...units import ENERGY_UNITS_IN_EV
from ..frames import Frames

Array = NDArray[np.floating[Any]]

_GAP = 2.0
"""Smallest gap between the two groups, as a factor."""
_SPREAD = 1.5
"""Largest spread within a group, as a factor."""
_TOLERANCE = 0.05
_FEWEST = 3
_ROUNDS = 30
_SMALL_UNITS = ("mev",)  # nobody mixes it with units other than eV


def check_one_unit(parts: Mapping[str, Frames]) -> None:
    """Check that all energies have the same unit.

    Energies per atom are fitted by energies of elements, by least squares and by least absolute
    deviations. If the frames form two groups, each within a factor of 1.5 of the fit, and the
    factor between the groups is that between two units of energy within 5 %, the smaller group is
    considered wrong. Frames with one atom are ignored, as are frames with elements that the larger
    group lacks.

    Parameters
    ----------
    parts
        Frames that must have the same unit, by their name in error messages.

    Raises
    ------
    ValueError
        If the units differ; the message names the first frame of the smaller group, and the units.
    """
    labelled = [
        (part.values("energy")[k], part.graphs[k], f"frame {k} of {name}")
        for name, part in parts.items()
        for k in part.labelled("energy")
    ]
    if labelled:
        check_energies(
            np.array([float(energy) for energy, _, _ in labelled]),
            [graph.numbers.numpy() for _, graph, _ in labelled],
            [name for _, _, name in labelled],
        )


def check_energies(
    energies: NDArray[np.float64], numbers: Sequence[NDArray[np.int64]], names: Sequence[str]
) -> None:
    """Like `check_one_unit`, for energies (F,) in eV, atomic numbers and names of frames."""
    counts = _counts(numbers)
    where = np.flatnonzero((counts.sum(1) > 1) & (energies != 0))
    if len(where) < _FEWEST:
        return
    shares = counts[where] / counts[where].sum(1)[:, None]
    per_atom = energies[where] / counts[where].sum(1)
    for rounds in (_ROUNDS, 0):
        factor, few = _smaller_group(shares, per_atom, _references(shares, per_atom, rounds))
        if few.any():
            _compare(factor, names[where[np.argmax(few)]], int(few.sum()))


def _smaller_group(
    shares: Array, per_atom: Array, references: Array
) -> tuple[float, NDArray[np.bool_]]:
    """A factor, and a mask of the frames that deviate by it."""
    nobody = np.zeros(len(per_atom), dtype=bool)
    ratio = _ratio(shares, per_atom, references)
    order = np.argsort(ratio)
    steps = np.diff(np.log(ratio[order]))
    at = int(np.argmax(steps)) + 1
    if steps[at - 1] < np.log(_GAP):
        return 1.0, nobody
    many = nobody.copy()
    many[order[at:] if at < len(order) / 2 else order[:at]] = True
    unknown = ~(shares[many] > 0).any(0)
    few = ~many & ~(shares[:, unknown] > 0).any(1)
    if not few.any():
        return 1.0, nobody
    ratio = _ratio(shares, per_atom, _references(shares[many], per_atom[many], 0))
    factor = float(np.median(ratio[few]))
    tight = all(
        np.abs(np.log(ratio[group] / middle)).max() < np.log(_SPREAD)
        for group, middle in ((many, 1.0), (few, factor))
    )
    return (factor, few) if tight else (1.0, nobody)


def _compare(factor: float, name: str, count: int) -> None:
    """Raise a ValueError if the factor is that between two units."""
    for small, large, expected in _unit_pairs():
        for unit, other, times in ((small, large, expected), (large, small, 1 / expected)):
            if abs(factor / times - 1) < _TOLERANCE:
                raise ValueError(
                    f"the energies of {name} and {count - 1} other frames are {factor:.4g} times "
                    f"what the other frames suggest, the factor from {other} to {unit}: units are "
                    "mixed; convert them, or read each file with its own units"
                )


def _counts(numbers: Sequence[NDArray[np.int64]]) -> Array:
    """Numbers of atoms of each element, (F, elements)."""
    elements = np.unique(np.concatenate(numbers))
    return np.stack([(z[:, None] == elements).sum(0) for z in numbers]).astype(np.float64)


def _references(shares: Array, per_atom: Array, rounds: int) -> Array:
    """Energies of elements: least squares, or least absolute deviations with ``rounds`` > 0.

    The latter follow the majority of the frames; if both groups are equally large, only the former
    separate them.
    """
    found: Array = np.linalg.lstsq(shares, per_atom, rcond=None)[0]
    for _ in range(rounds):
        off = np.abs(per_atom - shares @ found)
        root = 1 / np.sqrt(np.maximum(off, 1e-6 * np.abs(per_atom).max()))
        found = np.linalg.lstsq(root[:, None] * shares, root * per_atom, rcond=None)[0]
    return found


def _ratio(shares: Array, per_atom: Array, references: Array) -> Array:
    """Absolute energies divided by the absolute energies from the references."""
    largest = np.abs(per_atom).max()
    return np.abs(per_atom) / np.maximum(np.abs(shares @ references), 1e-12 * largest)


def _unit_pairs() -> list[tuple[str, str, float]]:
    """Pairs of units, the smaller one first, and the factor between them."""
    pairs = []
    for small, value in ENERGY_UNITS_IN_EV.items():
        for large, other in ENERGY_UNITS_IN_EV.items():
            if other > value and (small not in _SMALL_UNITS or large == "ev"):
                pairs.append((small, large, other / value))
    return pairs
