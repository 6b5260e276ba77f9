"""Pairs of atoms within a cutoff, in plain torch operators that TorchScript can compile.

For programs that run a compiled model without Python; everywhere else `NeighborList` (vesin)
does this work.
"""

from __future__ import annotations

import torch
from torch import Tensor


def neighbor_pairs(
    points: Tensor, cell: Tensor, periodic: Tensor, cutoff: float
) -> tuple[Tensor, Tensor]:
    """All pairs within the cutoff, in time linear in the number of atoms.

    The atoms and their periodic images near the cell are sorted into cubes with the cutoff as
    edge; the neighbours of an atom lie in the 27 cubes around it.

    Parameters
    ----------
    points
        (N, 3) float64, anywhere in space.
    cell
        (3, 3) float64, rows are lattice vectors, of any shape and size.
    periodic
        (3,) bool; lattice vectors that are not periodic are not read.
    cutoff
        Largest distance of a pair, in the unit of the points and the cell.

    Returns
    -------
    edge_index (2, E) int64 and edge_shift (E, 3) float64 as in `Graph`, sorted by receiver,
    sender and shift.
    """
    n = points.shape[0]
    lattice = cell * periodic.to(cell.dtype).unsqueeze(1)
    # Columns of the pseudo-inverse give fractional coordinates along the periodic vectors.
    dual = torch.linalg.pinv(lattice)
    dual = torch.where(periodic.unsqueeze(0), dual, torch.zeros_like(dual))
    fractional = points @ dual
    wraps = torch.floor(fractional)
    fractional = fractional - wraps
    wrapped = points - wraps @ lattice

    images, atoms = _images_near_cell(fractional, dual, cutoff)
    sites = wrapped.index_select(0, atoms) + images @ lattice
    receivers, found = _search(wrapped, sites, cutoff)

    senders = atoms.index_select(0, found)
    image = images.index_select(0, found)
    not_itself = (receivers != senders) | (image != 0).any(1)
    receivers, senders, image = receivers[not_itself], senders[not_itself], image[not_itself]
    shift = image - wraps.index_select(0, senders) + wraps.index_select(0, receivers)

    order = torch.argsort(shift[:, 2], stable=True)
    for column in (1, 0):
        order = order[torch.argsort(shift[order, column], stable=True)]
    order = order[torch.argsort((receivers * n + senders)[order], stable=True)]
    return torch.stack([receivers[order], senders[order]]), shift[order]


def all_pairs(points: Tensor) -> tuple[Tensor, Tensor]:
    """Edges between all atoms of a molecule, as `neighbor_pairs` gives them."""
    n = points.shape[0]
    pairs = torch.ones(n, n, dtype=torch.bool, device=points.device).fill_diagonal_(False)
    edge_index = torch.nonzero(pairs).t()
    return edge_index, torch.zeros(
        edge_index.shape[1], 3, dtype=points.dtype, device=points.device
    )


def _images_near_cell(fractional: Tensor, dual: Tensor, cutoff: float) -> tuple[Tensor, Tensor]:
    """Lattice shifts (M, 3) and atoms (M,) of every image within the cutoff of the cell."""
    margin = cutoff * torch.linalg.vector_norm(dual, dim=0)
    reach = torch.ceil(margin).to(torch.int64)
    grid = torch.cartesian_prod(
        torch.arange(-int(reach[0]), int(reach[0]) + 1, device=dual.device),
        torch.arange(-int(reach[1]), int(reach[1]) + 1, device=dual.device),
        torch.arange(-int(reach[2]), int(reach[2]) + 1, device=dual.device),
    ).to(fractional.dtype)
    position = fractional.unsqueeze(0) + grid.unsqueeze(1)
    near = ((position >= -margin) & (position <= 1 + margin)).all(2)
    image, atom = torch.nonzero(near).unbind(1)
    return grid.index_select(0, image), atom


def _search(centres: Tensor, sites: Tensor, cutoff: float) -> tuple[Tensor, Tensor]:
    """Indices (centre, site) of all pairs closer than the cutoff."""
    corner = sites.min(0)[0]
    site_cube = torch.floor((sites - corner) / cutoff).to(torch.int64) + 1
    centre_cube = torch.floor((centres - corner) / cutoff).to(torch.int64) + 1
    # One empty cube on every side, so that no neighbour cube wraps around to another row.
    extent = site_cube.max(0)[0] + 2
    stride = torch.stack([extent[1] * extent[2], extent[2], torch.ones_like(extent[2])])
    key, by_cube = torch.sort((site_cube * stride).sum(1), stable=True)
    centre_key = (centre_cube * stride).sum(1)

    offsets = torch.tensor([-1, 0, 1], device=centres.device)
    first: list[Tensor] = []
    second: list[Tensor] = []
    for offset in (torch.cartesian_prod(offsets, offsets, offsets) * stride).sum(1):
        wanted = centre_key + offset
        begin = torch.searchsorted(key, wanted)
        count = torch.searchsorted(key, wanted, right=True) - begin
        centre = torch.repeat_interleave(count)
        rank = torch.arange(centre.shape[0], device=centres.device)
        within_cube = rank - (torch.cumsum(count, 0) - count).index_select(0, centre)
        site = by_cube.index_select(0, begin.index_select(0, centre) + within_cube)
        vector = sites.index_select(0, site) - centres.index_select(0, centre)
        near = (vector * vector).sum(1) < cutoff**2
        first.append(centre[near])
        second.append(site[near])
    return torch.cat(first), torch.cat(second)
