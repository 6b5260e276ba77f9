"""Errors of a potential, and calibration of a committee's standard deviations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from ..data.frames import Frames
from ..quantities import QUANTITIES
from .predictions import Comparison, compare

Array = NDArray[np.float64]


class ErrorStatistics(NamedTuple):
    """Statistics of predicted minus reference values, in their unit."""

    mae: float
    """Mean absolute error."""
    rmse: float
    """Root mean square error."""
    largest: float
    """Largest absolute error."""
    bias: float
    """Mean error; for energies, the offset between the two zeros."""
    compared: int
    """Number of values."""


class Calibration(NamedTuple):
    """How well predicted standard deviations describe errors, assumed to be normal."""

    rank_correlation: float | None
    """Spearman correlation of deviation and absolute error; None if either is constant."""
    within_one_sigma: float
    """Fraction of errors within one deviation; 0.683 if calibrated."""
    within_two_sigma: float
    """Fraction of errors within two deviations; 0.954 if calibrated."""
    ratio: float | None
    """Root mean square error over root mean square deviation, the factor that would correct the
    deviations; None if every deviation is zero."""


class Errors(NamedTuple):
    """Mean absolute errors."""

    energy_mev: float
    """Error of the energy of a frame, meV."""
    force_mev_per_angstrom: float
    """Error of a force component, meV/A."""


class QuantityErrors(NamedTuple):
    """Errors of one quantity over all components."""

    mae: float
    """Mean absolute error."""
    rmse: float
    """Root mean square error."""
    unit: str
    """Unit of both errors."""
    mae_per_atom: float | None = None
    """Mean absolute error of energies that are divided by the number of atoms; else None."""
    rmse_per_atom: float | None = None
    """Root mean square of the same errors."""


def error_statistics(errors: ArrayLike) -> ErrorStatistics:
    """Statistics over all components of an array of errors.

    Raises
    ------
    ValueError
        If the array is empty.
    """
    flat: Array = np.asarray(errors, dtype=np.float64).ravel()
    if not len(flat):
        raise ValueError("no errors: expected at least one")
    size = np.abs(flat)
    return ErrorStatistics(
        float(size.mean()),
        float(np.sqrt(np.square(flat).mean())),
        float(size.max()),
        float(flat.mean()),
        len(flat),
    )


def calibration(deviations: ArrayLike, errors: ArrayLike) -> Calibration:
    """Calibration of standard deviations against actual errors.

    Parameters
    ----------
    deviations
        Standard deviations of a committee, any shape.
    errors
        Predicted minus reference values, of the same shape and unit.

    Raises
    ------
    ValueError
        If the shapes differ or the arrays are empty.
    """
    # Imported here: scipy.stats takes a second to import.
    from scipy.stats import spearmanr  # type: ignore[import-untyped]

    sigma: Array = np.asarray(deviations, dtype=np.float64)
    size: Array = np.abs(np.asarray(errors, dtype=np.float64))
    if sigma.shape != size.shape or not sigma.size:
        raise ValueError(
            f"deviations {sigma.shape} and errors {size.shape}: expected one of each, or more"
        )
    sigma, size = sigma.ravel(), size.ravel()
    varied = np.ptp(sigma) > 0 and np.ptp(size) > 0
    spread = float(np.sqrt(np.square(sigma).mean()))
    return Calibration(
        float(spearmanr(sigma, size).statistic) if varied else None,
        float((size <= sigma).mean()),
        float((size <= 2 * sigma).mean()),
        float(np.sqrt(np.square(size).mean())) / spread if spread > 0 else None,
    )


def evaluate_errors(potential: nn.Module, frames: Frames, batch: int = 100) -> Errors:
    """Mean absolute errors over all frames; the potential is not changed."""
    errors = quantity_errors(potential, frames, ("energy", "forces"), batch)
    return Errors(errors["energy"].mae, errors["forces"].mae)


def quantity_errors(
    potential: nn.Module,
    frames: Frames,
    quantities: Sequence[str] | None = None,
    batch: int = 100,
) -> dict[str, QuantityErrors]:
    """Errors of every quantity; the potential is not changed.

    Parameters
    ----------
    potential
        Potential on any device.
    frames
        Labelled frames.
    quantities
        Names in `QUANTITIES`; None: all labels that the potential predicts.
    batch
        Number of frames evaluated at once.

    Raises
    ------
    ValueError
        If no frame has a label, or the potential no head, for one of the quantities.
    """
    return errors_of(compare(potential, frames, quantities, batch))


def errors_of(comparison: Comparison) -> dict[str, QuantityErrors]:
    """Errors of each quantity of a comparison."""
    errors = {}
    for name in comparison.found:
        factor, unit = QUANTITIES[name].reported
        difference = comparison.errors(name)
        values = [error_statistics(difference.numpy())]
        if name == "energy":
            values.append(error_statistics((difference / comparison.sizes(name)).numpy()))
        pairs = [(factor * each.mae, factor * each.rmse) for each in values]
        errors[name] = QuantityErrors(*pairs[0], unit, *(pairs[1] if len(pairs) > 1 else ()))
    return errors
