"""Shipped factors of CP decompositions, and the residual of factors."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DATA = Path(__file__).with_name("cp_factors.npz")


def is_shipped(lmax: int, group: str, rank: int) -> bool:
    """Whether the package ships factors of exactly this rank."""
    return factors_key(lmax, group, rank) in shipped_factors()


def residual(tensor: Array, factors: Array) -> float:
    """||M - [[A, B, C]]|| / ||M|| of factors (3, d, R)."""
    model = factors[0] @ column_products(factors[1], factors[2]).T
    return float(np.linalg.norm(tensor.reshape(model.shape) - model) / np.linalg.norm(tensor))


def factors_key(lmax: int, group: str, rank: int) -> str:
    """Name of factors in the shipped file."""
    return f"{group}-L{lmax}-R{rank}"


@cache
def shipped_factors() -> dict[str, Array]:
    """Shipped factors (3, d, R) by `factors_key`; do not modify them."""
    if not DATA.exists():
        return {}
    with np.load(DATA) as data:
        return {key: data[key] for key in data.files}


def column_products(first: Array, second: Array) -> Array:
    """Khatri-Rao product: (d, R) and (d, R) -> (d * d, R)."""
    return (first[:, None] * second[None]).reshape(-1, first.shape[1])
