r"""The heat flux of a periodic system, exact for networks with message passing.

.. math::
    J = \frac{d}{dt} \sum_i r_i E_i^{tot}
    = \sum_i v_i \left( E_i + \tfrac12 m_i v_i^2 \right)
    + \sum_{ij} (r_i - r_j) \left( \frac{\partial E_i}{\partial r_j} \cdot v_j \right)

with atoms i of the cell, and j over all atoms and periodic images that the energy of i depends on,
which are several cutoffs away: Langer, Frank and Knoop, J. Chem. Phys. 159, 174105 (2023),
doi:10.1063/5.0167502. The pair sum needs no derivative of single energies: with positions held
fixed in the weights of :math:`B = \sum_i r_i E_i` and :math:`U = \sum_i E_i`, it is
:math:`\sum_j (\partial B / \partial r_j) \cdot v_j - r_j (\partial U / \partial r_j) \cdot v_j`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..graph import Graph, displacements, within
from ..networks.base import Network
from ..parts import Part
from ..potential import Potential


class HeatFlux(NamedTuple):
    """Parts of the heat flux of a system; their sum is the flux, divided by no volume."""

    potential: NDArray[np.float64]
    """(3,), eV A / t, with ASE's unit of time t = A (u / eV)^(1/2): what forces do."""
    convective: NDArray[np.float64]
    """(3,), eV A / t: energies that move with their atoms. It depends on the zero of energies."""


def heat_flux(potential: Potential, graph: Graph, velocities: Tensor, masses: Tensor) -> Tensor:
    """The two parts of `HeatFlux`, (2, 3) float64.

    Parameters
    ----------
    potential
        Potential without interactions beyond the cutoff.
    graph
        Graph of one system; its edges cover the cutoff.
    velocities, masses
        (N, 3) in A / t, and (N,) in u, float64.

    Raises
    ------
    ValueError
        If energies of the potential depend on atoms at any distance.
    """
    network = potential.representation
    if not isinstance(network, Network) or network.charge_levels or potential.coulomb is not None:
        raise ValueError(
            f"there is no heat flux for this {potential.architecture}: expected a network without "
            "charges, whose energies depend on atoms within a few cutoffs only (TensorNet, TDN)"
        )
    atoms = len(graph.numbers)
    near, _ = within(graph, potential.cutoff)
    large, part, origin = unfold(near, hops=1 + len(network.layers))
    positions = large.positions.requires_grad_(True)
    vectors = displacements(large._replace(positions=positions))
    energies = potential.atom_energies(large, vectors, None, part)[:atoms]
    fixed = positions.detach()
    weights = torch.cat([torch.ones_like(fixed[:atoms, :1]), fixed[:atoms]], 1)
    gradients = [
        torch.autograd.grad([(energies * w).sum()], [positions], retain_graph=True)[0]
        for w in weights.unbind(1)
    ]
    of_sum, *of_moments = ((g * velocities[origin]).sum(1, keepdim=True) for g in gradients)
    moved = torch.cat(of_moments, 1).sum(0) - (fixed * of_sum).sum(0)
    kinetic = 0.5 * masses * velocities.square().sum(1)
    carried = ((energies.detach() + kinetic).unsqueeze(1) * velocities).sum(0)
    return torch.stack([moved, carried])


def unfold(graph: Graph, hops: int) -> tuple[Graph, Part, Tensor]:
    """A graph of the same atoms and of all images that so many edges lead to.

    Parameters
    ----------
    graph
        Graph of one system.
    hops
        Number of edges over which atoms interact.

    Returns
    -------
    Graph
        Graph without periodicity: the atoms, then images; edges of atoms that are no more than
        ``hops - 1`` edges away.
    Part
        Its place in the system.
    Tensor
        Atom that each of its atoms is an image of, (M,).
    """
    i, j = graph.edge_index.cpu().numpy()
    order = np.argsort(i, kind="stable")
    senders = np.column_stack([j, graph.edge_shift.cpu().numpy().astype(np.int64)])[order]
    atoms = len(graph.numbers)
    starts = np.searchsorted(i[order], np.arange(atoms + 1))
    images = np.column_stack([np.arange(atoms), np.zeros((atoms, 3), np.int64)])
    shells, edges, first = [atoms], [], 0
    for _ in range(hops):
        last = images[first:]
        counts = np.diff(starts)[last[:, 0]]
        receivers = np.repeat(np.arange(first, len(images)), counts)
        ends = np.cumsum(counts)
        places = np.arange(counts.sum()) + np.repeat(starts[last[:, 0]] + counts - ends, counts)
        reached = senders[places] + np.repeat(last * [0, 1, 1, 1], counts, axis=0)
        first = len(images)
        images, numbers = _numbered(np.concatenate([images, reached]))
        edges.append(np.stack([receivers, numbers[first:]]))
        shells.append(len(images))
    origin = torch.from_numpy(images[:, 0]).to(graph.positions.device)
    shift = torch.from_numpy(images[:, 1:]).to(graph.positions)
    index = torch.from_numpy(np.concatenate(edges, axis=1)).to(origin.device)
    large = Graph(
        numbers=graph.numbers[origin],
        positions=graph.positions.detach()[origin] + shift @ graph.cell[0],
        cell=torch.zeros_like(graph.cell),
        edge_index=index,
        edge_shift=torch.zeros(index.shape[1], 3).to(graph.edge_shift),
        system=torch.zeros_like(origin),
        charge=graph.charge,
    )
    return large, Part(atoms, shells), origin


def _numbered(
    rows: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Different rows in the order in which they first appear, and the number of each row."""
    different, firsts, numbers = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(firsts)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return different[order], place[numbers.ravel()]
