"""Potentials with tables in place of their radial networks, as fine as the forces require.

The functions of an edge's length alone, `Network.edge_factors`, are tabulated once, in float64
and from the network itself; the rest is evaluated as before.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..committee import Committee
from ..graph import FloatArray, Graph, batch_graphs
from ..maths.splines import RadialTable, spline_coefficients
from ..neighbors import NeighborList
from ..potential import Potential
from .table_sizes import recall, remember

FORCE_BOUND = 2e-5
"""Largest error that tables may cause in a force component, eV/Angstrom."""
FEWEST_INTERVALS = 512
MOST_INTERVALS = 16384
SAFETY = 2.0
"""Factor by which the error on the probes must lie below the bound: a protein has more atoms."""

# Atoms, closest distance (A) and number of atoms in a cube of that length: dense clusters, in
# which many errors add up, and few atoms, where single errors weigh most.
_CLUSTERS = (
    4 * [(12, 0.7, 0.35)]
    + 2 * [(12, 0.7, 0.1), (12, 0.9, 0.35), (12, 1.2, 0.35), (12, 1.8, 0.35)]
    + 8 * [(2, 0.7, 0.35), (3, 0.7, 0.35), (4, 0.9, 0.35), (3, 1.2, 0.1), (4, 1.8, 0.35)]
)


@dataclass(frozen=True)
class TableInfo:
    """Size and accuracy of the tables of a potential."""

    intervals: int
    """Number of intervals between zero (or the lower cutoff) and the cutoff."""
    error: float
    """Largest error of the forces on the probe structures (see `probes`), eV/Angstrom."""
    bound: float
    """Requested bound on that error, eV/Angstrom."""


class TabulatedPotential(Potential):
    """A potential for inference only, without the radial networks that its tables replace.

    Made by `tabulated`. Forces are the exact gradient of its own energy. They cannot be
    differentiated again: compute Hessians with the potential that it was made from.
    """

    def __init__(self, potential: Potential, table: RadialTable, info: TableInfo) -> None:
        network = copy.deepcopy(potential.representation)
        network.use_table(copy.deepcopy(table))
        scale = potential.atomic_scale
        super().__init__(
            network,
            copy.deepcopy(potential.readout),
            elements=potential.elements,
            references=scale.references.cpu(),
            scale=scale.scale.item(),
            mean=scale.mean.item(),
            repulsion=copy.deepcopy(potential.repulsion),
            coulomb=copy.deepcopy(potential.coulomb),
            length_unit=potential.length_unit,
            energy_unit=potential.energy_unit,
            metadata=copy.deepcopy(potential.metadata),
        )
        self.table_info = info
        self.to(scale.references.device)
        super().requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> TabulatedPotential:
        """Set evaluation mode, the only one.

        Raises
        ------
        ValueError
            If ``mode`` is true.
        """
        if mode:
            raise ValueError(f"{_REFUSAL} train the potential it was made from")
        super().train(False)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> TabulatedPotential:
        """Switch off gradients of the parameters, which are fixed.

        Raises
        ------
        ValueError
            If ``requires_grad`` is true.
        """
        if requires_grad:
            raise ValueError(f"{_REFUSAL} ask the potential it was made from for gradients")
        super().requires_grad_(False)
        return self


_NO_TABLES = (
    "{} has no tables: expected a potential whose network has them, such as TensorNet or TDN"
)
_REFUSAL = "a tabulated potential has no radial networks, and its parameters are fixed:"


def tabulated(potential: nn.Module, bound: float = FORCE_BOUND) -> nn.Module:
    """A copy of a potential for inference, with tables in place of its radial networks.

    Parameters
    ----------
    potential
        A `Potential` whose network supports tables, or a `Committee` of them. It is not changed;
        if it is already tabulated, it is returned itself.
    bound
        Largest error that the tables may cause in a component of the forces on `probes`,
        eV/Angstrom.

    Returns
    -------
    `TabulatedPotential` with ``table_info``, same dtype and device, or a `Committee` of them.

    Raises
    ------
    ValueError
        If the bound is not positive, or the network does not support tables.
    """
    if isinstance(potential, Committee):
        return Committee([tabulated(member, bound) for member in potential.members])
    if isinstance(potential, Potential):
        return tabulated_potential(potential, bound)
    raise ValueError(
        _NO_TABLES.format(getattr(potential, "architecture", type(potential).__name__))
    )


def tabulated_potential(potential: Potential, bound: float = FORCE_BOUND) -> TabulatedPotential:
    """`tabulated` for one potential."""
    if isinstance(potential, TabulatedPotential):
        return potential
    return TabulatedPotential(potential, *build_table(potential, bound))


def build_table(potential: Potential, bound: float = FORCE_BOUND) -> tuple[RadialTable, TableInfo]:
    """The table of a network in float64, with as few intervals as the bound allows.

    Parameters
    ----------
    potential
        Potential whose network supports tables.
    bound
        As in `tabulated`, eV/Angstrom. The number of intervals is doubled from 512 until the
        bound holds, up to 16,384; if it does not hold then, a warning states the error.

    Returns
    -------
    The table of ``edge_factors``, side by side, in the network's unit of length, and its error.

    Raises
    ------
    ValueError
        As in `tabulated`.
    """
    if not bound > 0:
        raise ValueError(f"bound is {bound} eV/A: expected a positive number")
    network = copy.deepcopy(potential.representation).cpu().double().eval()
    if not network.has_tables:
        raise ValueError(_NO_TABLES.format(potential.architecture))
    network.requires_grad_(False)
    end, lower = network.cutoff, network.cutoff_lower
    if not network.smooth:
        # Without an envelope pairs beyond the cutoff count, if the repulsion reaches them.
        end = max(end, potential.cutoff / potential.length_in_angstrom)

    def function(distances: Tensor) -> Tensor:
        return torch.cat(network.edge_factors(distances), dim=1)

    def table_of(intervals: int) -> RadialTable:
        return RadialTable(spline_coefficients(function, end, intervals, lower), end, lower)

    known = recall(potential, bound)
    if known is None:
        known = _choose_intervals(potential, bound, table_of)
        remember(potential, bound, *known)
    intervals, error = known
    if not error < bound:
        warnings.warn(
            f"tables of {intervals} intervals leave an error of {error:.1e} eV/A in the forces, "
            f"above the bound of {bound:.1e}: use the network without tables where this matters",
            stacklevel=3,
        )
    return table_of(intervals), TableInfo(intervals, error, bound)


def _choose_intervals(
    potential: Potential, bound: float, table_of: Callable[[int], RadialTable]
) -> tuple[int, float]:
    """The fewest intervals for a bound, and the error that they leave, eV/A."""
    exact = copy.deepcopy(potential).cpu().double().eval()
    nn.Module.requires_grad_(exact, False)
    exact.repulsion = None  # the same with tables and without
    trial = copy.deepcopy(exact)
    graph = probes(exact)
    forces = exact(graph).forces
    intervals = FEWEST_INTERVALS
    while True:
        trial.representation.table = table_of(intervals)
        error = (trial(graph).forces - forces).abs().max().item()
        excess = error * SAFETY / bound
        if excess < 1 or intervals == MOST_INTERVALS:
            return intervals, error
        # The error falls as h^3 to h^4: skip doublings that cannot be enough.
        doublings = max(1, math.floor(math.log2(excess) / 4)) if math.isfinite(excess) else 1
        intervals = min(intervals * 2**doublings, MOST_INTERVALS)


def probes(potential: Potential) -> Graph:
    """Structures that show the largest errors: random clusters, the same in every call.

    No two atoms are closer than 0.7 A (hydrogen molecules, bonds far from equilibrium), or 1 A
    if neither is hydrogen; pair distances extend from there to the cutoff. All elements of the
    potential occur, in random order, if there are enough atoms.
    """
    generator = np.random.default_rng(0)
    elements = generator.permutation(potential.elements)
    neighbors, start, graphs = NeighborList(potential.cutoff), 0, []
    for size, closest, density in _CLUSTERS:
        numbers = elements.take(range(start, start + size), mode="wrap")
        points = _random_cluster(generator, numbers, closest, density)
        graphs.append(neighbors.graph(numbers, points))
        start += size
    return batch_graphs(graphs)


def _random_cluster(
    generator: np.random.Generator, numbers: NDArray[np.int64], closest: float, density: float
) -> FloatArray:
    """Points (N, 3), Angstrom, in a cube that grows until they fit; see ``_CLUSTERS``."""
    side = closest * (len(numbers) / density) ** (1 / 3)
    hydrogen = numbers == 1
    points = np.empty((0, 3))
    while (n := len(points)) < len(numbers):
        point = generator.uniform(0, side, 3)
        least = np.where(hydrogen[n] | hydrogen[:n], closest, max(closest, 1.0))
        if (np.linalg.norm(points - point, axis=1) >= least).all():
            points = np.vstack([points, point])
        else:
            side *= 1.002
    return points
