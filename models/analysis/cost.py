"""What an evaluation costs, as a number of multiplications, and what is left without an order.

Counted is the forward pass per atom with tables for the radial networks, as the kernels run it;
backward passes do the same work about twice over, so that ratios stay. Memory traffic, which
counts as much on a real machine, goes with the number of components as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..networks.base import Irrep
from ..potential import Potential
from .layout import Layout


def work(potential: Potential, orders: Sequence[Irrep], neighbours: float) -> float:
    """Multiplications per atom of one evaluation of the energy with these orders."""
    return potential.representation.multiplications(orders, neighbours)


def work_without(potential: Potential, layout: Layout, order: Irrep, neighbours: float) -> float:
    """Work without an order over the work as it is."""
    left = [each for each in layout.orders if each != order]
    return work(potential, left, neighbours) / work(potential, layout.orders, neighbours)
