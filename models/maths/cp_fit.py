"""Fits the CP factors of `cp` by alternating least squares.

    python -m tensormd.models.maths.cp_fit --lmax 1 2

says what the factors that ship leave and what a new fit of them does.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .cp import (
    MAX_FACTORED_DEGREE,
    Array,
    column_products,
    factors_key,
    residual,
    shipped_factors,
    shipped_ranks,
)
from .harmonics import GROUPS, check_degree, coupling_tensor


class Schedule(NamedTuple):
    """How patiently a fit is made."""

    restarts: int
    sweeps: int
    decay: float


SCHEDULES = {
    1: Schedule(restarts=10, sweeps=10000, decay=0.998),
    2: Schedule(restarts=10, sweeps=10000, decay=0.998),
    3: Schedule(restarts=3, sweeps=25000, decay=0.998),
    4: Schedule(restarts=1, sweeps=15000, decay=0.997),
}
"""By L: what a fit may cost, from seconds to some minutes."""
CONVERGED = 1e-12


def fit(lmax: int, group: str, rank: int) -> Array:
    """Factors (3, d, R) of the coupling tensor, as they ship; deterministic."""
    return decompose(coupling_tensor(lmax, group), rank, SCHEDULES[lmax])


def decompose(tensor: Array, rank: int, schedule: Schedule) -> Array:
    """Factors (3, d, R) of a tensor (d, d, d): the first start that is exact, or the best."""
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

    Each sweep replaces one factor after the other by the minimum of

    .. math:: \| M - [[A, B, C]] \|^2 + \lambda \| A - A_{\text{before}} \|^2

    whose damping :math:`\lambda`, 0.1 at first, shrinks by ``decay`` each sweep: it holds back
    the near-parallel terms of opposite sign in which plain alternating least squares gets stuck.
    Columns are rescaled after each sweep so that the three factors share their norms, and every
    fifth sweep is followed by a longer step the same way, where that helps.
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


# Command


def main(arguments: list[str] | None = None) -> None:
    """Fit the shipped factors again and say what they leave."""
    parser = argparse.ArgumentParser(description="Fit the CP factors that ship.")
    parser.add_argument("--lmax", type=int, nargs="+", default=[1, 2], help="1 to 4")
    parser.add_argument("--group", nargs="+", default=list(GROUPS), choices=GROUPS)
    parser.add_argument("--rank", type=int, nargs="+", help="instead of those that ship")
    parser.add_argument("--output", type=Path, help="write all of them to this npz file")
    options = parser.parse_args(arguments)
    fitted: dict[str, Any] = {}
    for lmax in options.lmax:
        check_degree(lmax, MAX_FACTORED_DEGREE, lowest=1)
        for group in options.group:
            tensor = coupling_tensor(lmax, group)
            for rank in options.rank or shipped_ranks(lmax, group):
                began = time.perf_counter()
                key = factors_key(lmax, group, rank)
                fitted[key] = fit(lmax, group, rank)
                shipped = shipped_factors().get(key)
                known = "none" if shipped is None else f"{residual(tensor, shipped):.3e}"
                print(
                    f"L {lmax}  {group:5}  rank {rank:3}  residual "
                    f"{residual(tensor, fitted[key]):.3e}  shipped {known}  "
                    f"{time.perf_counter() - began:.1f} s",
                    flush=True,
                )
    if options.output is not None:
        np.savez(options.output, **fitted)


if __name__ == "__main__":
    main()
