"""The edges of every network: neighbour lists by receiver, geometry, splines, forces.

Each edge is listed at its receiver i, with sender j; its reverse is in the list as well. An edge
within the cutoff has a slot with its geometry, as the networks need it; in the backward pass the
slot receives the derivatives of the energy.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ....graph import Graph, displacements
from ....maths import splines
from .compiled import internal, kernel

WEIGHTS = 7
"""Weights per slot: of the four coefficients of a cubic B-spline, then of the three differences
of coefficients in its derivative."""
FRAME = 12
"""Numbers per slot: the unit vector u, 1 / r, and the A and S components of the tensor D(-u)."""
ROOT_2 = math.sqrt(2)
ROOT_3 = math.sqrt(3)

spline_weights = internal(splines.spline_weights)


class Neighbors(NamedTuple):
    """A neighbour list with its skin, by receiver."""

    offsets: NDArray[np.int64]
    """(N + 1,), first edge of each receiver, and E."""
    senders: NDArray[np.int32]
    """(E,), sender of each edge."""
    shifts: NDArray[np.float64]
    """(E, 3), Angstrom: r_ij = r_j - r_i + shift."""
    reverse: NDArray[np.int32]
    """(E,), edge of the same pair listed at the other atom."""


class Slots(NamedTuple):
    """The edges within the cutoff, at the front of each receiver's share of `Neighbors`."""

    counts: NDArray[np.int32]
    """(N,), slots of each receiver."""
    edge: NDArray[np.int32]
    """(E,), edge of each slot."""
    slot: NDArray[np.int32]
    """(E,), slot of each edge."""
    sender: NDArray[np.int32]
    """(E,), sender of each slot."""
    row: NDArray[np.int32]
    """(E,), first row of the tables that the slot reads."""
    weights: NDArray[Any]
    """(E * WEIGHTS,), spline weights."""
    frame: NDArray[Any]
    """(E * FRAME,), geometry."""
    slope: NDArray[Any]
    """dE/dr: (chunks * E,) by chunk of channels, or (E,) summed."""
    gradient: NDArray[Any]
    """(E, 3), dE/dr_ij."""


def make_slots(atoms: int, edges: int, slopes: int, dtype: np.dtype[Any]) -> Slots:
    """Allocate slots for all edges of a neighbour list; ``slopes`` is the number per edge."""
    return Slots(
        counts=np.zeros(atoms, np.int32),
        edge=np.zeros(edges, np.int32),
        slot=np.zeros(edges, np.int32),
        sender=np.zeros(edges, np.int32),
        row=np.zeros(edges, np.int32),
        weights=np.zeros(edges * WEIGHTS, dtype),
        frame=np.zeros(edges * FRAME, dtype),
        slope=np.zeros(edges * slopes, dtype),
        gradient=np.zeros((edges, 3), dtype),
    )


def match_reverse(offsets: Any, senders: Any, images: Any, reverse: Any) -> bool:
    """Find the reverse of each edge; returns whether every edge has one."""
    atoms = offsets.size - 1
    for i in range(atoms):
        for edge in range(offsets[i], offsets[i + 1]):
            j = senders[edge]
            reverse[edge] = -1
            for back in range(offsets[j], offsets[j + 1]):
                if (
                    senders[back] == i
                    and images[back, 0] == -images[edge, 0]
                    and images[back, 1] == -images[edge, 1]
                    and images[back, 2] == -images[edge, 2]
                ):
                    reverse[edge] = back
                    break
            if reverse[edge] < 0:
                return False
    return True


def pack_list(graph: Graph) -> Neighbors:
    """The edges of a graph, sorted by receiver, without their reverse.

    Raises
    ------
    ValueError
        If the edges are not sorted by receiver.
    """
    receivers = graph.edge_index[0].numpy()
    if (np.diff(receivers) < 0).any():
        raise ValueError("edges are not sorted by receiver: expected a Graph of NeighborList")
    offsets = np.searchsorted(receivers, np.arange(len(graph.numbers) + 1))
    senders = graph.edge_index[1].numpy().astype(np.int32)
    shifts = displacements(graph._replace(positions=torch.zeros_like(graph.positions)))
    return Neighbors(offsets, senders, shifts.detach().contiguous().numpy(), np.zeros(0, np.int32))


def pack_neighbors(graph: Graph) -> Neighbors:
    """The neighbour list of a graph, whose edges are sorted by receiver.

    Raises
    ------
    ValueError
        If the edges are not sorted by receiver, or an edge has no reverse.
    """
    found = pack_list(graph)
    reverse = np.empty(len(found.senders), np.int32)
    match = kernel(match_reverse)
    if not match(found.offsets, found.senders, graph.edge_shift.numpy(), reverse):
        edge = int(np.flatnonzero(reverse < 0)[0])
        raise ValueError(
            f"edge {edge} has no reverse: expected every pair in both directions, as "
            "NeighborList makes them"
        )
    return found._replace(reverse=reverse)


def require_sorted(neighbors: Neighbors) -> None:
    """Raise a ValueError if the edges of a receiver are not sorted by sender."""
    atoms = len(neighbors.offsets) - 1
    rows = np.repeat(np.arange(atoms), np.diff(neighbors.offsets))
    if (np.diff(rows * atoms + neighbors.senders) < 0).any():
        raise ValueError(
            "edges are not sorted by receiver, then sender: expected a Graph of NeighborList"
        )


@internal
def vector(i: int, edge: int, positions: Any, neighbors: Neighbors, unit: float) -> Any:
    """x, y, z and the length of r_ij, in units of ``unit`` Angstrom."""
    j = neighbors.senders[edge]
    x = (positions[j, 0] - positions[i, 0] + neighbors.shifts[edge, 0]) / unit
    y = (positions[j, 1] - positions[i, 1] + neighbors.shifts[edge, 1]) / unit
    z = (positions[j, 2] - positions[i, 2] + neighbors.shifts[edge, 2]) / unit
    return x, y, z, math.sqrt(x * x + y * y + z * z)


@internal
def place(
    first: int, last: int, positions: Any, neighbors: Neighbors, slots: Slots, unit: float,
    lower: float, cutoff: float, intervals: int,
) -> None:  # fmt: skip
    """Fill the slots of receivers ``first`` to ``last``; geometry is computed in float64.

    The cutoffs are in the network's unit of length (see `vector`); ``intervals`` is the number of
    intervals of its tables between them.
    """
    per_length = intervals / (cutoff - lower)
    for i in range(first, last):
        slot = neighbors.offsets[i]
        for edge in range(neighbors.offsets[i], neighbors.offsets[i + 1]):
            x, y, z, r = vector(i, edge, positions, neighbors, unit)
            if not lower <= r < cutoff:
                continue
            knot = min(int((r - lower) * per_length), intervals - 1)
            t = (r - lower) * per_length - knot
            slots.edge[slot], slots.slot[edge] = edge, slot
            slots.sender[slot], slots.row[slot] = neighbors.senders[edge], knot
            s, w, f = 1 - t, slot * WEIGHTS, slot * FRAME
            for m, weight in enumerate(spline_weights(t)):
                slots.weights[w + m] = weight / 6
            slots.weights[w + 4] = s * s / 2
            slots.weights[w + 5] = (1 + 2 * t * s) / 2
            slots.weights[w + 6] = t * t / 2
            x, y, z = x / r, y / r, z / r
            slots.frame[f], slots.frame[f + 1], slots.frame[f + 2] = x, y, z
            slots.frame[f + 3] = 1 / r
            slots.frame[f + 4] = -ROOT_2 * x
            slots.frame[f + 5] = -ROOT_2 * y
            slots.frame[f + 6] = -ROOT_2 * z
            slots.frame[f + 7] = ROOT_2 * x * y
            slots.frame[f + 8] = ROOT_2 * y * z
            slots.frame[f + 9] = ROOT_2 * x * z
            slots.frame[f + 10] = (x * x - y * y) / ROOT_2
            slots.frame[f + 11] = (3 * z * z - 1) / (ROOT_2 * ROOT_3)
            slot += 1
        slots.counts[i] = slot - neighbors.offsets[i]


@internal
def turn(slots: Slots, slot: int, along: float, g_x: float, g_y: float, g_z: float) -> None:
    r"""Write dE/dr_ij from the derivative along u and the gradient g with respect to u.

    .. math:: \frac{dE}{dr_{ij}} = \frac{dE}{dr} u + (1 - u u^T) g / r
    """
    f = slot * FRAME
    x, y, z = slots.frame[f], slots.frame[f + 1], slots.frame[f + 2]
    radial, inverse = g_x * x + g_y * y + g_z * z, slots.frame[f + 3]
    slots.gradient[slot, 0] = along * x + inverse * (g_x - radial * x)
    slots.gradient[slot, 1] = along * y + inverse * (g_y - radial * y)
    slots.gradient[slot, 2] = along * z + inverse * (g_z - radial * z)


@internal
def collect(
    first: int, last: int, neighbors: Neighbors, slots: Slots, factor: float, unit: float,
    forces: Any, virial: Any,
) -> None:  # fmt: skip
    """Forces (N, 3) and shares of the virial (N, 3, 3) from dE/dr_ij.

    F_i = sum of p_ij and W_i = - sum of r_ij (x) p_ij / 2 over the edges that i receives, with
    p_ij = dE/dr_ij - dE/dr_ji. They are added to zeros. ``factor`` converts dE/dr to eV/A,
    ``unit`` converts lengths to Angstrom.
    """
    for i in range(first, last):
        for slot in range(neighbors.offsets[i], neighbors.offsets[i] + slots.counts[i]):
            back = slots.slot[neighbors.reverse[slots.edge[slot]]]
            half = 0.5 * unit / np.float64(slots.frame[slot * FRAME + 3])
            for k in range(3):
                pull = factor * np.float64(slots.gradient[slot, k])
                pull -= factor * np.float64(slots.gradient[back, k])
                forces[i, k] += pull
                for m in range(3):
                    virial[i, m, k] -= half * slots.frame[slot * FRAME + m] * pull
