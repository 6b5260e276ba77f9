"""Cost of an evaluation as a number of multiplications, with and without an order.

This counts the forward pass per atom with tables for the radial networks, as the kernels run it.
Backward passes do about twice the same work, so ratios do not change. Memory traffic, which
matters as much on a real machine, is also proportional to the number of components.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..networks.base import Irrep
from ..potential import Potential
from .layout import Layout


def work(potential: Potential, orders: Sequence[Irrep], neighbours: float) -> float:
    """Number of multiplications per atom for one energy evaluation with these orders."""
    return potential.representation.multiplications(orders, neighbours)


def work_without(potential: Potential, layout: Layout, order: Irrep, neighbours: float) -> float:
    """Work without an order, relative to the work of the whole network."""
    left = [each for each in layout.orders if each != order]
    return work(potential, left, neighbours) / work(potential, layout.orders, neighbours)
