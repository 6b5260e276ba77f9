"""CP factors of the coupling tensor by alternating least squares."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .cp_factors import Array, column_products, residual
from .harmonics import coupling_tensor


class Schedule(NamedTuple):
    """Effort of a fit: number of restarts and sweeps, and decay of the damping per sweep."""

    restarts: int
    sweeps: int
    decay: float


SCHEDULES = {
    1: Schedule(restarts=10, sweeps=10000, decay=0.998),
    2: Schedule(restarts=10, sweeps=10000, decay=0.998),
    3: Schedule(restarts=3, sweeps=25000, decay=0.998),
    4: Schedule(restarts=1, sweeps=15000, decay=0.997),
}
"""Schedules by L; a fit takes from seconds to a few minutes."""
CONVERGED = 1e-12


def fit(lmax: int, group: str, rank: int) -> Array:
    """Factors (3, d, R) of the coupling tensor, as shipped; deterministic."""
    return decompose(coupling_tensor(lmax, group), rank, SCHEDULES[lmax])


def decompose(tensor: Array, rank: int, schedule: Schedule) -> Array:
    """Factors (3, d, R) of a tensor (d, d, d): the first exact fit, or the best one."""
    best, best_residual = np.empty(0), np.inf
    for seed in range(schedule.restarts):
        factors = alternating_least_squares(tensor, rank, seed, schedule)
        found = residual(tensor, factors)
        if found < best_residual:
            best, best_residual = factors, found
        if found <= CONVERGED:
            break
    return best


def alternating_least_squares(tensor: Array, rank: int, seed: int, schedule: Schedule) -> Array:
    r"""One fit from random factors.

    Each sweep replaces the factors, one after the other, by the minimum of

    .. math:: \| M - [[A, B, C]] \|^2 + \lambda \| A - A_{\text{before}} \|^2

    The damping :math:`\lambda`, initially 0.1, is multiplied by ``decay`` after each sweep. It
    suppresses near-parallel terms of opposite sign, in which plain alternating least squares gets
    stuck. Columns are rescaled after each sweep so that the three factors have equal norms. Every
    fifth sweep is followed by a longer step in the same direction if this lowers the residual.
    """
    random = np.random.default_rng([tensor.shape[0], rank, seed])
    factors = 0.5 * random.normal(size=(3, tensor.shape[0], rank))
    unfolded = [np.moveaxis(tensor, axis, 0).reshape(tensor.shape[0], -1) for axis in range(3)]
    damping, stride, earlier = 0.1, 1.0, np.inf
    before = factors.copy()
    for sweep in range(1, schedule.sweeps + 1):
        _sweep(unfolded, factors, damping)
        damping = max(damping * schedule.decay, 1e-14)
        if sweep % 5:
            continue
        found = residual(tensor, factors)
        further = factors + stride * (factors - before)
        if residual(tensor, further) < found:
            factors, stride = further, min(1.3 * stride, 200.0)
        else:
            stride = max(0.5 * stride, 1.0)
        before = factors.copy()
        if found <= CONVERGED:
            break
        if sweep % 1000 == 0:
            if damping < 1e-3 and found > 0.99 * earlier:
                break  # a local minimum
            earlier = found
    return factors


def _sweep(unfolded: list[Array], factors: Array, damping: float) -> None:
    """Replace each of the factors (3, d, R) once, in place."""
    for axis in range(3):
        first, second = (factors[other] for other in range(3) if other != axis)
        gram = (first.T @ first) * (second.T @ second) + damping * np.eye(factors.shape[2])
        wanted = unfolded[axis] @ column_products(first, second) + damping * factors[axis]
        factors[axis] = np.linalg.solve(gram, wanted.T).T
    norms = np.linalg.norm(factors, axis=1, keepdims=True)
    factors *= np.cbrt(norms.prod(axis=0)) / norms
