"""Scale, mean and reference energies from the training frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray

from .frames import Frames

SAME_ENERGY = 1e-4
"""Largest difference between energies of isolated atoms that are taken as equal, eV."""
ATOMS_AT_ONCE = 1 << 22
"""Number of atoms, about, whose labels are in memory at once: 100 MB of forces."""


@dataclass(frozen=True)
class Standardisation:
    """Constants that convert a network's outputs to energies (see `AtomicScale`), eV."""

    scale: float
    """Factor of the outputs."""
    mean: float
    """Energy added once per system."""
    references: dict[int, float]
    """Reference energies by atomic number; zero for elements that are not listed."""
    elements: list[int]
    """Atomic numbers that occur."""

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `Potential`, float64."""
        table = torch.zeros(max(self.elements) + 1, dtype=torch.float64)
        for number, energy in self.references.items():
            if number < len(table):
                table[number] = energy
        return {
            "elements": self.elements,
            "scale": self.scale,
            "mean": self.mean,
            "references": table,
        }


def standardise(frames: Frames, references: str | Mapping[int, float] = "fit") -> Standardisation:
    r"""Compute the standardisation of frames.

    With n_{kZ} atoms of element Z in frame k, "fit" takes the references that solve

    .. math:: \min_{E} \sum_k \left( E_k - \bar E \frac{N_k}{\bar N}
              - \sum_Z n_{kZ} E_Z \right)^2

    by least squares. The mean energy per atom, equal for all elements, is subtracted first, and
    the differences are fitted. If compositions do not determine the references (two elements that
    always occur in the same ratio), the differences of least norm are taken, so that elements get
    no energies that the data do not require. Frames that all have one composition determine no
    references: their mean energy becomes the mean.

    If the frames have isolated atoms (`Frames.atom_energies`), "fit" takes their energies, and
    fits those of the other elements to what they leave. Frames without an energy are not used.

    The scale is the root mean square of all force components; without forces, the standard
    deviation of the energies per atom after subtracting references and mean.

    Parameters
    ----------
    frames
        Training frames. Without energies, all constants except the scale are zero, and the
        references are those of isolated atoms.
    references
        ``fit``, ``none`` (only the mean), or energies of isolated atoms by atomic number, eV.

    Raises
    ------
    ValueError
        If ``references`` is none of these, or lacks an element that occurs, or isolated atoms of
        one element have different energies.
    """
    elements = frames.elements
    given = _references(references, elements)
    fitted = given is None and references == "fit"
    alone = isolated_energies(frames) if fitted else {}
    mean, scale = 0.0, 1.0
    if "energy" in frames.quantities:
        frames_with = frames.select(frames.labelled("energy"))
        energies = frames_with.energies.numpy()
        counts = element_counts(frames_with, elements)
        if fitted and not alone and (counts != counts[0]).any():
            given = dict(zip(elements, _least_squares(counts, energies).tolist(), strict=True))
        elif alone:
            given = _with_isolated(counts, energies, elements, alone)
            fitted = False
        residual = energies
        if given is not None:
            residual = residual - counts @ np.array([given[z] for z in elements])
        if given is None or not fitted:
            mean = float(residual.mean())
            residual = residual - mean
        scale = float((residual / counts.sum(1)).std())
    if "forces" in frames.quantities:
        scale = math.sqrt(_mean_square(frames, "forces"))
    return Standardisation(scale if scale > 0 else 1.0, mean, {**alone, **(given or {})}, elements)


def element_counts(frames: Frames, elements: Sequence[int]) -> NDArray[np.float64]:
    """Atoms of each element in each frame, (F, elements)."""
    return frames.element_counts(elements)


def _mean_square(frames: Frames, name: str) -> float:
    """Mean square of all components of a label of atoms, from some of the frames at a time."""
    labelled = np.array(frames.labelled(name))
    ends = np.cumsum(frames.sizes[labelled])
    block = np.searchsorted(ends, np.arange(ATOMS_AT_ONCE, ends[-1], ATOMS_AT_ONCE))
    parts = [frames.joined(name, part) for part in np.split(labelled, block) if len(part)]
    if len(parts) == 1:
        return float(parts[0].square().mean())
    return sum(float(part.square().sum()) for part in parts) / sum(p.numel() for p in parts)


def isolated_energies(frames: Frames) -> dict[int, float]:
    """Energies of the isolated atoms of the frames, eV, by atomic number.

    Raises
    ------
    ValueError
        If two isolated atoms of one element have different energies.
    """
    for number, energies in frames.atom_energies.items():
        if max(energies) - min(energies) > SAME_ENERGY:
            raise ValueError(
                f"isolated atoms of {chemical_symbols[number]} have energies from "
                f"{min(energies):.8g} to {max(energies):.8g} eV: expected one, the reference; "
                "leave the others out, or give the references"
            )
    return {number: energies[0] for number, energies in sorted(frames.atom_energies.items())}


def _with_isolated(
    counts: NDArray[np.float64],
    energies: NDArray[np.float64],
    elements: Sequence[int],
    alone: Mapping[int, float],
) -> dict[int, float]:
    """Energies of isolated atoms, and by least squares those of the elements that have none."""
    found = np.array([alone.get(z, 0.0) for z in elements])
    rest = [k for k, z in enumerate(elements) if z not in alone]
    some = counts[:, rest].any(1)
    if some.any():
        left = (energies - counts @ found)[some]
        found[rest] = _least_squares(counts[some][:, rest], left)
    return dict(zip(elements, found.tolist(), strict=True))


def _least_squares(
    counts: NDArray[np.float64], energies: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Energy of each element."""
    per_atom = float(energies.sum() / counts.sum())
    rest, *_ = np.linalg.lstsq(counts, energies - per_atom * counts.sum(1), rcond=None)
    return per_atom + rest


def _references(
    references: str | Mapping[int, float], elements: list[int]
) -> dict[int, float] | None:
    if isinstance(references, str):
        if references not in ("fit", "none"):
            raise ValueError(
                f"references are {references!r}: expected 'fit', 'none' or energies by element"
            )
        return None
    found = {int(z): float(energy) for z, energy in references.items()}
    missing = [z for z in elements if z not in found]
    if missing:
        raise ValueError(
            f"references have no energy of atomic number {missing[0]}: expected "
            f"{', '.join(map(str, elements))}"
        )
    return found
