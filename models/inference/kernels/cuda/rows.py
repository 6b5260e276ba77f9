"""Edges by receiver, with the index of every edge's reverse: what the fused sums walk over."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ....graph import Graph


class EdgeRows(NamedTuple):
    """Edges sorted by receiver, sender and shift, in compressed rows.

    Those of receiver i are ``offsets[i]`` to ``offsets[i + 1] - 1``. Behind ``offsets[N]``
    there may be room that nothing reads, so that the number of edges can change while the
    shapes stay.
    """

    offsets: Tensor
    """(N + 1,) int32."""
    senders: Tensor
    """(E,) int32."""
    shift: Tensor
    """(E, 3) float64, integer images: r_ij = r_j - r_i + shift @ cell."""
    reverse: Tensor
    """(E,) int32: where the edge from i to j stands, for the edge from j to i."""


class Geometry(NamedTuple):
    """Of every edge, in the network's unit of length and its dtype."""

    unit: Tensor
    """(E, 3), directions -r_ij / d from the sender to the receiver."""
    distance: Tensor
    """(E,), d."""
    knot: Tensor
    """(E,) int32, interval of the radial tables; -1 where they end: no edge."""
    fraction: Tensor
    """(E,), place in the interval, 0 to 1."""


def edge_rows(graph: Graph) -> EdgeRows:
    """The edges of a graph, in whatever order it holds them; a ValueError if one has no reverse.

    Reads from the device: a list is made once for many steps.
    """
    atoms = graph.numbers.shape[0]
    i, j = graph.edge_index[0], graph.edge_index[1]
    images, there, back = _rank(graph.edge_shift.to(torch.int64), atoms)
    # One integer for each edge, that sorts as (i, j, shift) do.
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
    """Numbers (E,) that sort as the shifts and their opposites do, below the first result."""
    if shift.shape[0] == 0:
        return 1, shift[:, 0], shift[:, 0]
    reach = [int(r) for r in shift.abs().amax(0).tolist()]
    x, y, z = (2 * r + 1 for r in reach)
    if atoms**2 * x * y * z < 2**62:
        weights = torch.tensor([y * z, z, 1], device=shift.device)
        there = (shift * weights).sum(1)
        middle = (x * y * z) // 2
        return x * y * z, middle + there, middle - there
    # Atoms so many cells apart that such a key would overflow: count the shifts that occur.
    distinct, rank = torch.unique(torch.cat([shift, -shift]), dim=0, return_inverse=True)
    there, back = rank.chunk(2)
    return distinct.shape[0], there, back
