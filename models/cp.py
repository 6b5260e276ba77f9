r"""CP decomposition of the Clebsch-Gordan tensor summed over all paths.

.. math:: M_{ijk} = \sum_{r=1}^{R} A_{ir} B_{jr} C_{kr}
    \qquad \text{(Lin et al. 2025, arXiv:2507.01131)}

found by alternating least squares in float64. A rank is *exact* where the residual

.. math:: \| M - [[A, B, C]] \|_F / \|M\|_F

is at most 1e-10: products then rotate exactly. Smaller ranks break the symmetry by about their
residual. Factors ship for L = 1 to 4, both groups and the ranks of ``shipped_ranks``;

    python -m tensormd.models.cp --lmax 1 2

fits them again (L = 1 and 2 in seconds) and ``--output`` writes a new file.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .harmonics import GROUPS, check_degree, check_group, coupling_tensor

Array = NDArray[np.float64]

DATA = Path(__file__).parent / "data" / "cp_factors.npz"
MAX_FACTORED_DEGREE = 4
EXACT = 1e-10
"""Largest residual of a rank that is called exact."""
USEFUL = 0.1
"""Residual above which a rank is warned of."""
EXACT_RANKS = {
    "O(3)": {1: 6, 2: 18, 3: 56, 4: 136},
    "SO(3)": {1: 8, 2: 31, 3: 96, 4: 235},
}
"""The smallest ranks found that are exact; nothing proves that there are none smaller."""


class Factors(NamedTuple):
    """Factors of a decomposition, (d, R) float64 each."""

    a: Tensor
    b: Tensor
    c: Tensor


# Ranks


def paper_rank(lmax: int, schedule: str = "quadratic") -> int:
    """Rank of the paper's schedules: quadratic 7 L^2, linear 7 L, log 16 int(log(L + 1)^2).

    Raises
    ------
    ValueError
        For another schedule, and for ``log`` at L = 1, where it has no rank.
    """
    ranks = {
        "quadratic": 7 * lmax**2,
        "linear": 7 * lmax,
        "log": 16 * int(math.log(lmax + 1) ** 2),
    }
    if schedule not in ranks:
        raise ValueError(f"unknown schedule {schedule!r}: expected one of {', '.join(ranks)}")
    if ranks[schedule] == 0:
        raise ValueError(f"the {schedule} schedule gives rank 0 at L = {lmax}: expected L >= 2")
    return ranks[schedule]


def shipped_ranks(lmax: int, group: str) -> list[int]:
    """Ranks whose factors ship: the smallest exact one, and the paper's below it."""
    schedules = ("quadratic", "linear") if lmax == 1 else ("quadratic", "linear", "log")
    exact = EXACT_RANKS[group][lmax]
    ranks = {paper_rank(lmax, schedule) for schedule in schedules}
    return sorted({exact} | {rank for rank in ranks if rank < exact})


def parse_rank(rank: int | str, lmax: int, group: str) -> int:
    """The rank as a number.

    Parameters
    ----------
    rank
        ``"exact"``: the smallest exact one known; ``"paper"``: 7 L^2; or a number. What is
        more than the exact rank is cut to it: further terms would change nothing. So is the
        paper's rank for O(3), whose tensor needs fewer terms than that of SO(3).
    lmax, group
        Of the coupling tensor.

    Raises
    ------
    ValueError
        If it is none of these, or L is out of range.
    """
    check_degree(lmax, MAX_FACTORED_DEGREE, lowest=1)
    exact = EXACT_RANKS[check_group(group)][lmax]
    if rank == "exact":
        return exact
    if rank == "paper":
        return min(paper_rank(lmax), exact)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f'rank is {rank!r}: expected "exact", "paper" or a positive number')
    return min(rank, exact)


# Factors


def factors_for(lmax: int, group: str = "O(3)", rank: int | str = "exact") -> Factors:
    """Factors of the coupling tensor: those that ship, or fitted on the spot.

    Warns where the residual exceeds ``USEFUL``. On the meta device (where a reader of files
    builds networks without memory) they are empty tensors of the right shape.

    Parameters
    ----------
    lmax
        L, 1 to 4.
    group
        ``O(3)`` or ``SO(3)``.
    rank
        ``"exact"``, ``"paper"`` or a number, see `parse_rank`.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    number = parse_rank(rank, lmax, group)
    if torch.get_default_device().type == "meta":
        shape = ((lmax + 1) ** 2, rank if isinstance(rank, int) else number)
        a, b, c = (torch.empty(shape, dtype=torch.float64, device="meta") for _ in range(3))
        return Factors(a, b, c)
    tensor = coupling_tensor(lmax, group)
    factors = _shipped().get(_key(lmax, group, number))
    if factors is None:
        factors = fit(lmax, group, number)
    found = residual(tensor, factors)
    if found > USEFUL:
        warnings.warn(
            f"rank {number} leaves a residual of {found:.2g} of the {group} coupling tensor of "
            f"L = {lmax}: energies will change under rotation by about that; rank "
            f"{EXACT_RANKS[group][lmax]} is exact",
            stacklevel=2,
        )
    a, b, c = (torch.from_numpy(factor.copy()) for factor in factors)
    return Factors(a, b, c)


def is_shipped(lmax: int, group: str, rank: int) -> bool:
    """Whether factors of this very rank come with the package."""
    return _key(lmax, group, rank) in _shipped()


def residual(tensor: Array, factors: Array) -> float:
    """||M - [[A, B, C]]|| / ||M|| of factors (3, d, R)."""
    model = np.einsum("ir,jr,kr->ijk", *factors, optimize=True)
    return float(np.linalg.norm(tensor - model) / np.linalg.norm(tensor))


def _key(lmax: int, group: str, rank: int) -> str:
    return f"{group}-L{lmax}-R{rank}"


@cache
def _shipped() -> dict[str, Array]:
    if not DATA.exists():
        return {}
    with np.load(DATA) as data:
        return {key: data[key] for key in data.files}


# Fit


class Schedule(NamedTuple):
    """How patiently a fit is made."""

    restarts: int
    sweeps: int
    decay: float


QUICK = Schedule(restarts=10, sweeps=6000, decay=0.998)
PATIENT = Schedule(restarts=5, sweeps=40000, decay=0.9995)
CONVERGED = 1e-12


def fit(lmax: int, group: str, rank: int) -> Array:
    """Factors (3, d, R) of the coupling tensor, as they ship; deterministic.

    Quick starts find either an exact decomposition or a local minimum; where the rank is
    meant to be exact and none of them is, patient ones follow.
    """
    tensor = coupling_tensor(lmax, group)
    factors = decompose(tensor, rank, QUICK)
    if rank >= EXACT_RANKS[group][lmax] and residual(tensor, factors) > CONVERGED:
        patient = decompose(tensor, rank, PATIENT)
        factors = min(factors, patient, key=lambda found: residual(tensor, found))
    return factors


def decompose(tensor: Array, rank: int, schedule: Schedule = QUICK) -> Array:
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
    Columns are rescaled after each sweep so that the three factors share their norms.
    """
    random = np.random.default_rng([tensor.shape[0], rank, seed])
    factors = list(0.5 * random.normal(size=(3, tensor.shape[0], rank)))
    unfolded = [np.moveaxis(tensor, axis, 0).reshape(tensor.shape[0], -1) for axis in range(3)]
    size = float(np.linalg.norm(tensor))
    damping, identity = 0.1, np.eye(rank)
    earlier = np.inf
    for sweep in range(1, schedule.sweeps + 1):
        for axis in range(3):
            first, second = (factors[other] for other in range(3) if other != axis)
            gram = (first.T @ first) * (second.T @ second) + damping * identity
            wanted = unfolded[axis] @ _column_products(first, second) + damping * factors[axis]
            factors[axis] = np.linalg.solve(gram, wanted.T).T
        norms = [np.linalg.norm(factor, axis=0) for factor in factors]
        mean = np.cbrt(norms[0] * norms[1] * norms[2])
        factors = [factor * (mean / norm) for factor, norm in zip(factors, norms, strict=True)]
        damping = max(damping * schedule.decay, 1e-14)
        if sweep % 20 == 0:
            model = factors[0] @ _column_products(factors[1], factors[2]).T
            found = float(np.linalg.norm(unfolded[0] - model)) / size
            if found <= CONVERGED:
                break
            if sweep % 1000 == 0:
                if damping < 1e-3 and found > 0.995 * earlier:
                    break  # a local minimum
                earlier = found
    return np.stack(factors)


def _column_products(first: Array, second: Array) -> Array:
    """Khatri-Rao product: (d, R) and (d, R) -> (d * d, R)."""
    return (first[:, None] * second[None]).reshape(-1, first.shape[1])


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
                key = _key(lmax, group, rank)
                fitted[key] = fit(lmax, group, rank)
                shipped = _shipped().get(key)
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
