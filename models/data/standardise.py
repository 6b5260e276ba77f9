"""Scale, mean and energies of the elements, from the frames to train on."""

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
    """What turns the outputs of a network into energies (see `AtomicScale`), eV."""

    scale: float
    mean: float
    references: dict[int, float]
    """By atomic number; elements that are not listed have zero."""
    elements: list[int]
    """That occur."""

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
    r"""The standardisation of frames.

    With n_{kZ} atoms of element Z in frame k, "fit" takes the references that solve

    .. math:: \min_{E} \sum_k \left( E_k - \bar E \frac{N_k}{\bar N}
              - \sum_Z n_{kZ} E_Z \right)^2

    by least squares: mean energies per atom first, in which all elements share, then their
    differences. Where compositions do not determine the references (two elements that always
    come in the same ratio), those of least norm are taken among the differences, so that no
    element gets an energy that the data do not call for. Frames that are all of one composition
    determine no reference at all: their mean energy becomes the mean.

    The scale is the root mean square of all components of the forces; without forces, the
    standard deviation of the energies less references and mean, per atom.

    Parameters
    ----------
    frames
        To train on. Without energies, all is zero but the scale.
    references
        ``fit``, ``none`` (the mean alone), or energies of isolated atoms by atomic number, eV.

    Raises
    ------
    ValueError
        If references are neither, or an element that occurs has none.
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
