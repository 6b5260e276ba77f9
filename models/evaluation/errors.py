"""How far a potential is from its labels, and what a committee's deviation says of it."""

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
    """Of predicted less reference values, in their unit."""

    mae: float
    """Mean absolute error."""
    rmse: float
    """Root of the mean squared error."""
    largest: float
    """Largest absolute error."""
    bias: float
    """Mean error: of energies, how far the two zeros are apart."""
    compared: int
    """How many numbers."""


class Calibration(NamedTuple):
    """How well a predicted standard deviation tells errors, which would be normal."""

    rank_correlation: float | None
    """Spearman's, of deviation and absolute error; None where either is constant."""
    within_one_sigma: float
    """Share of errors within one deviation; 0.683 if calibrated."""
    within_two_sigma: float
    """Share of errors within two; 0.954 if calibrated."""
    ratio: float | None
    """Root mean square error over root mean square deviation: what to multiply deviations by;
    None where every deviation is zero."""


class Errors(NamedTuple):
    """Mean absolute errors."""

    energy_mev: float
    """Of the energy of a frame, meV."""
    force_mev_per_angstrom: float
    """Of a component of a force, meV/A."""


class QuantityErrors(NamedTuple):
    """Of one quantity, over all components."""

    mae: float
    """Mean absolute error."""
    rmse: float
    """Root of the mean squared error."""
    unit: str
    """Of both."""


def error_statistics(errors: ArrayLike) -> ErrorStatistics:
    """Statistics over all components of an array of errors.

    Raises
    ------
    ValueError
        If there is none.
    """
    flat: Array = np.asarray(errors, dtype=np.float64).ravel()
    if not len(flat):
        raise ValueError("no error: expected at least one")
    size = np.abs(flat)
    return ErrorStatistics(
        float(size.mean()),
        float(np.sqrt(np.square(flat).mean())),
        float(size.max()),
        float(flat.mean()),
        len(flat),
    )


def calibration(deviations: ArrayLike, errors: ArrayLike) -> Calibration:
    """What standard deviations say of the errors that were made.

    Parameters
    ----------
    deviations
        Of a committee, any shape.
    errors
        Predicted less reference, the same shape and unit.

    Raises
    ------
    ValueError
        If the shapes differ or there is no number.
    """
    # Here, for scipy.stats takes a second to import.
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
    """Mean absolute errors over all frames; the potential is left as it was."""
    errors = quantity_errors(potential, frames, ("energy", "forces"), batch)
    return Errors(errors["energy"].mae, errors["forces"].mae)


def quantity_errors(
    potential: nn.Module,
    frames: Frames,
    quantities: Sequence[str] | None = None,
    batch: int = 100,
) -> dict[str, QuantityErrors]:
    """Errors of every quantity; the potential is left as it was.

    Parameters
    ----------
    potential
        On any device.
    frames
        Labelled.
    quantities
        Names in `QUANTITIES`; None: all that the frames are labelled with and the potential has.
    batch
        Frames at a time.

    Raises
    ------
    ValueError
        If the frames lack a label, or the potential a head, of the quantities asked for.
    """
    return errors_of(compare(potential, frames, quantities, batch))


def errors_of(comparison: Comparison) -> dict[str, QuantityErrors]:
    """Errors of predictions that lie beside their labels."""
    errors = {}
    for name, found in comparison.found.items():
        factor, unit = QUANTITIES[name].reported
        statistics = error_statistics((found - comparison.wanted[name]).numpy())
        errors[name] = QuantityErrors(factor * statistics.mae, factor * statistics.rmse, unit)
    return errors
