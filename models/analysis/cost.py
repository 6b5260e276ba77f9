"""What an evaluation costs, as a number of multiplications, and what is left without an order.

Counted is the forward pass per atom with tables for the radial networks, as the kernels run it;
backward passes do the same work about twice over, so that ratios stay. Memory traffic, which
counts as much on a real machine, goes with the number of components as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..maths.cartesian import BASIS
from ..potential import Potential
from .layout import Layout, Order

TABLE = 4
"""Multiplications for one value of a cubic spline."""


def work(potential: Potential, orders: Sequence[Order], neighbours: float) -> float:
    """Multiplications per atom of one evaluation of the energy with these orders."""
    network: Any = potential.representation
    layers, channels = len(network.layers), int(network.channels)
    if potential.architecture == "TensorNet":
        return _tensornet(layers, channels, orders, neighbours)
    return _tdn(layers, channels, int(network.config["heads"]), orders, neighbours)


def work_without(potential: Potential, layout: Layout, order: Order, neighbours: float) -> float:
    """Work without an order over the work as it is."""
    left = [each for each in layout.orders if each != order]
    return work(potential, left, neighbours) / work(potential, layout.orders, neighbours)


def _tensornet(layers: int, f: int, orders: Sequence[Order], neighbours: float) -> float:
    n, d = len(orders), sum(order.size for order in orders)
    embedding = neighbours * f * (TABLE * n + n + d) + d * f * f + 2 * f * f * (1 + n)
    c, square = _products(orders)
    layer = neighbours * f * (TABLE * n + d) + 2 * d * f * f + f * (c + square + 6 * d)
    readout = n * f * f + f * f / 2 + f / 2
    return embedding + layers * layer + readout


def _products(orders: Sequence[Order]) -> tuple[int, int]:
    """Terms of Y M + M Y and of Y Y in the components of the basis."""
    first = {0: 0, 1: 1, 2: 4}
    rows = [first[order.degree] + m for order in orders for m in range(order.size)]
    basis = BASIS[rows]
    both = torch.einsum("iab,jbc,kac->ijk", basis, basis, basis)
    symmetric = both + both.transpose(0, 1)
    terms = symmetric.abs() > 1e-12
    return int(terms.sum()), int(torch.triu(terms.any(2)).sum())


def _tdn(layers: int, c: int, heads: int, orders: Sequence[Order], neighbours: float) -> float:
    d = sum(order.size for order in orders)
    embedding = neighbours * c * (TABLE + d) + d * c * c
    edge = c * (TABLE + 2 * d * d) + c * c * (d + 2) + heads * (c // heads)
    atom = c * c * (5 * d + 1)
    readout = c * c + c
    return embedding + layers * (neighbours * edge + atom) + readout
