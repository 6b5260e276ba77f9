r"""CP decomposition of the Clebsch-Gordan tensor summed over all paths.

.. math:: M_{ijk} = \sum_{r=1}^{R} A_{ir} B_{jr} C_{kr}
    \qquad \text{(Lin et al. 2025, arXiv:2507.01131)}

The factors are found by alternating least squares in float64 (`cp_als`). A rank is *exact* if the
residual

.. math:: \| M - [[A, B, C]] \|_F / \|M\|_F

is at most 1e-10: products are then exactly equivariant. Smaller ranks break the symmetry by about
their residual. Factors for L = 1 to 4, both groups and the ranks of ``shipped_ranks`` ship with
the package;

    python -m tensormd.models.maths.cp_fit --lmax 1 2

refits them (L = 1 and 2 in seconds).
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from .cp_als import fit
from .cp_factors import factors_key, residual, shipped_factors
from .harmonics import check_degree, check_group, coupling_tensor

MAX_FACTORED_DEGREE = 4
EXACT = 1e-10
"""Largest residual of an exact rank."""
USEFUL = 0.1
"""Residual above which a warning is issued."""
EXACT_RANKS = {
    "O(3)": {1: 6, 2: 18, 3: 55, 4: 133},
    "SO(3)": {1: 8, 2: 31, 3: 92, 4: 224},
}
"""Smallest exact ranks found, by L; smaller ones are not ruled out."""


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
        If the schedule is unknown, or ``log`` at L = 1, where it gives rank 0.
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
    """Ranks whose factors ship: the smallest exact one, and the paper's smaller ones."""
    schedules = ("quadratic", "linear") if lmax == 1 else ("quadratic", "linear", "log")
    exact = EXACT_RANKS[group][lmax]
    ranks = {paper_rank(lmax, schedule) for schedule in schedules}
    return sorted({exact} | {rank for rank in ranks if rank < exact})


def parse_rank(rank: int | str, lmax: int, group: str) -> int:
    """Rank as a number.

    Parameters
    ----------
    rank
        ``"exact"``: the smallest known exact rank; ``"paper"``: 7 L^2; or a number. Ranks above
        the exact one are reduced to it, because further terms change nothing. This includes the
        paper's rank for O(3), whose tensor needs fewer terms than that of SO(3).
    lmax, group
        L and group of the coupling tensor.

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
    """Factors of the coupling tensor, shipped or fitted when called.

    Warns if the residual exceeds ``USEFUL``. On the meta device (on which readers of files build
    networks without memory) they are empty tensors of the right shape.

    Parameters
    ----------
    lmax
        Highest degree L, 1 to 4.
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
    factors = shipped_factors().get(factors_key(lmax, group, number))
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
