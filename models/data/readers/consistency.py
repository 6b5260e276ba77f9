"""Detection of energies in different units within one data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
        (part, part.labelled("energy"), name)
        for name, part in parts.items()
        if "energy" in part.quantities
    ]
    if not labelled:
        return
    elements = sorted({z for part, _, _ in labelled for z in part.elements})
    names = [(name, index) for _, index, name in labelled]
    check_energies(
        np.concatenate([part.joined("energy", index).numpy() for part, index, _ in labelled]),
        np.concatenate([part.element_counts(elements)[index] for part, index, _ in labelled]),
        lambda k: _name_of(k, names),
    )


def _name_of(k: int, names: Sequence[tuple[str, Sequence[int]]]) -> str:
    """Name of a frame of some parts behind one another."""
    for name, index in names:
        if k < len(index):
            return f"frame {index[k]} of {name}"
        k -= len(index)
    raise IndexError(k)


def check_energies(energies: Array, counts: Array, name_of: Callable[[int], str]) -> None:
    """Check the unit of energies, see `check_one_unit`.

    Parameters
    ----------
    energies
        Energies of frames, (F,), eV.
    counts
        Atoms of each element in each frame, (F, elements).
    name_of
        Name of a frame, from its number.

    Raises
    ------
    ValueError
        If the units differ.
    """
    counts = counts[:, counts.any(0)]
    where = np.flatnonzero((counts.sum(1) > 1) & (energies != 0))
    if len(where) < _FEWEST:
        return
    shares = counts[where] / counts[where].sum(1)[:, None]
    per_atom = energies[where] / counts[where].sum(1)
    for rounds in (_ROUNDS, 0):
        factor, few = _smaller_group(shares, per_atom, _references(shares, per_atom, rounds))
        if few.any():
            _compare(factor, name_of(int(where[np.argmax(few)])), int(few.sum()))


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
