"""Edges by receiver, with the index of every edge's reverse, for the fused neighbour sums."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ....graph import Graph


class EdgeRows(NamedTuple):
    """Edges sorted by receiver, sender and shift, in compressed rows.

    The edges of receiver i are ``offsets[i]`` to ``offsets[i + 1] - 1``. The arrays may be longer
    than ``offsets[N]``; nothing reads the rest, so that the number of edges can change while
    shapes stay the same.
    """

    offsets: Tensor
    """(N + 1,) int32."""
    senders: Tensor
    """(E,) int32."""
    shift: Tensor
    """(E, 3) float64, integer images: r_ij = r_j - r_i + shift @ cell."""
    reverse: Tensor
    """(E,) int32, index of the edge in the opposite direction."""


class Geometry(NamedTuple):
    """Geometry of every edge, in the network's unit of length and dtype."""

    unit: Tensor
    """(E, 3), directions -r_ij / d from the sender to the receiver."""
    distance: Tensor
    """(E,), d."""
    knot: Tensor
    """(E,) int32, interval of the radial tables; -1 outside the cutoffs: no edge."""
    fraction: Tensor
    """(E,), place in the interval, 0 to 1."""


def edge_rows(graph: Graph) -> EdgeRows:
    """Sort the edges of a graph, which may be in any order.

    This reads from the device, once for the many steps that share a list.

    Raises
    ------
    ValueError
        If an edge has no reverse.
    """
    atoms = graph.numbers.shape[0]
    i, j = graph.edge_index[0], graph.edge_index[1]
    images, there, back = _rank(graph.edge_shift.to(torch.int64), atoms)
    # One integer per edge that sorts like (i, j, shift).
    forward = (i * atoms + j) * images + there
    backward = (j * atoms + i) * images + back
    order = torch.argsort(forward)
    place = torch.argsort(backward[order])
    if not torch.equal(forward[order], backward[order][place]):
        raise ValueError(
            "an edge of the graph has no reverse: expected each pair in both directions, as "
            "NeighborList lists them"
        )
    reverse = torch.empty_like(place)
    reverse[place] = torch.arange(place.shape[0], device=place.device)
    receivers = i.index_select(0, order)
    rows = torch.arange(atoms + 1, device=i.device)
    return EdgeRows(
        offsets=torch.searchsorted(receivers, rows).to(torch.int32),
        senders=j.index_select(0, order).to(torch.int32),
        shift=graph.edge_shift.index_select(0, order).double().contiguous(),
        reverse=reverse.to(torch.int32),
    )


def _rank(shift: Tensor, atoms: int) -> tuple[int, Tensor, Tensor]:
    """An upper bound, and integers (E,) below it that sort like the shifts and their opposites."""
    if shift.shape[0] == 0:
        return 1, shift[:, 0], shift[:, 0]
    reach = [int(r) for r in shift.abs().amax(0).tolist()]
    x, y, z = (2 * r + 1 for r in reach)
    if atoms**2 * x * y * z < 2**62:
        weights = torch.tensor([y * z, z, 1], device=shift.device)
        there = (shift * weights).sum(1)
        middle = (x * y * z) // 2
        return x * y * z, middle + there, middle - there
    # Atoms are so many cells apart that this key would overflow: rank the shifts that occur.
    distinct, rank = torch.unique(torch.cat([shift, -shift]), dim=0, return_inverse=True)
    there, back = rank.chunk(2)
    return distinct.shape[0], there, back
