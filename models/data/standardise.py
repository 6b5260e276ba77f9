"""Scale, mean and reference energies from the training frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .frames import Frames


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

    The scale is the root mean square of all force components; without forces, the standard
    deviation of the energies per atom after subtracting references and mean.

    Parameters
    ----------
    frames
        Training frames. Without energies, all constants except the scale are zero.
    references
        ``fit``, ``none`` (only the mean), or energies of isolated atoms by atomic number, eV.

    Raises
    ------
    ValueError
        If ``references`` is none of these, or lacks an element that occurs.
    """
    elements = frames.elements
    counts = np.array(
        [[int((graph.numbers == z).sum()) for z in elements] for graph in frames.graphs],
        dtype=np.float64,
    )
    atoms = counts.sum(1)
    given = _references(references, elements)
    mean = 0.0
    residual = np.zeros(len(frames))
    if "energy" in frames.quantities:
        energies = frames.energies.numpy()
        if given is None and references == "fit" and (counts != counts[0]).any():
            given = dict(zip(elements, _least_squares(counts, energies).tolist(), strict=True))
        residual = energies
        if given is not None:
            residual = residual - counts @ np.array([given[z] for z in elements])
        if given is None or references != "fit":
            mean = float(residual.mean())
            residual = residual - mean
    if "forces" in frames.quantities:
        scale = float(torch.cat(frames.forces).square().mean().sqrt())
    else:
        scale = float((residual / atoms).std())
    return Standardisation(scale if scale > 0 else 1.0, mean, given or {}, elements)


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
