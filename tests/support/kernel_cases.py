"""Small inputs for the tests of the fused operators."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from support.helpers import System, crystal, ethanol, slab, tiny
from torch import Tensor

from tensormd.models import NeighborList, batch_graphs
from tensormd.models.graph import Graph
from tensormd.models.inference.kernels.cpu import simd
from tensormd.models.inference.kernels.cuda.rows import EdgeRows, edge_rows
from tensormd.models.inference.kernels.weights import with_slopes

Array = NDArray[Any]
LOWER, CUTOFF = 0.4, 3.0
INTERVALS = 12
SPACING = (CUTOFF - LOWER) / INTERVALS


class Case(NamedTuple):
    """Atoms with their edges, weights and features drawn at random."""

    graph: Graph
    edges: EdgeRows
    table: Tensor
    at_zero: Tensor
    receiver: Tensor
    sender: Tensor
    charge_factor: Tensor
    x: Tensor
    y: Tensor
    g: Tensor
    factors: Tensor


def random_graph(atoms: int, seed: int = 0, skin: float = 0.7) -> Graph:
    """Two systems, one periodic and one not, with a few pairs beyond the cutoff.

    With one atom there is a molecule without edges; with none, nothing.
    """
    generator = torch.Generator().manual_seed(seed)

    def system(size: int, periodic: bool) -> Graph:
        edge = (size / 0.03) ** (1 / 3)
        positions = edge * torch.rand(size, 3, generator=generator, dtype=torch.float64)
        cell = edge * torch.eye(3, dtype=torch.float64)
        cell[1, 0] = 0.3 * edge
        numbers = torch.randint(1, 9, (size,), generator=generator)
        charge = 1.0 if periodic else -2.0
        return NeighborList(CUTOFF, skin).graph(
            numbers.numpy(), positions.numpy(), cell.numpy(), periodic, charge
        )

    if atoms == 0:
        empty = torch.zeros(0, dtype=torch.int64)
        nothing = torch.zeros(0, 3, dtype=torch.float64)
        return Graph(
            numbers=empty,
            positions=nothing,
            cell=torch.zeros(1, 3, 3, dtype=torch.float64),
            edge_index=torch.zeros(2, 0, dtype=torch.int64),
            edge_shift=nothing,
            system=empty,
            charge=torch.zeros(1, dtype=torch.float64),
        )
    if atoms == 1:
        return system(1, False)
    return batch_graphs([system(atoms - atoms // 3, True), system(atoms // 3, False)])


def make_case(atoms: int, channels: int, dtype: torch.dtype = torch.float64) -> Case:
    """A `Case` of so many atoms and channels; features of the order of one."""
    generator = torch.Generator().manual_seed(channels)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    graph = random_graph(atoms)
    charge = graph.charge[graph.system] if atoms else graph.charge[:0]
    return Case(
        graph=graph,
        edges=edge_rows(graph),
        table=with_slopes(draw(INTERVALS + 3, 3 * channels).double(), SPACING).to(dtype),
        at_zero=draw(3 * channels),
        receiver=draw(10, channels),
        sender=draw(10, channels),
        charge_factor=(1 + 0.1 * charge).to(dtype),
        x=draw(9, atoms, channels),
        y=draw(9, atoms, channels),
        g=draw(9, atoms, channels),
        factors=draw(atoms, 3 * channels),
    )


LANES = simd.LANES


@njit
def exponentials(x: Array, out: Array) -> None:
    for k in range(0, x.size, LANES):
        simd.store(out, k, simd.exp(simd.load(x, k)))


SYSTEMS = {
    "molecule": ethanol(),
    "ion": ethanol(charge=-1.0),
    "crystal": crystal(),
    "slab": slab(),
    "2-atom-cell": tiny(2),
    "apart": System(np.array([8, 1]), np.array([[0.0, 0, 0], [0, 0, 5.0]])),
    "atom": System(np.array([6]), np.zeros((1, 3))),
}


NETWORKS: dict[str, dict[str, Any]] = {
    "default": {},
    "no-layers": {"layers": 0},
    "three-layers": {"layers": 3, "channels": 24},
    "odd-channels": {"channels": 10},
    "wide": {"channels": 80},
    "mish": {"activation": "mish"},
    "ssp": {"activation": "ssp"},
    "SO(3)-gated": {"group": "SO(3)", "head": "gated", "channels": 32},
    "linear": {"head": "linear"},
    "lower-cutoff": {"cutoff_lower": 0.9},
    "zbl-bohr": {"zbl": 5.0, "length_unit": "bohr", "energy_unit": "hartree", "cutoff": 8.5},
    "bare": {"self_interaction": False, "radial": "bessel"},
}


def water(atoms: int) -> System:
    """Enough molecules for several blocks of atoms."""
    rng = np.random.default_rng(3)
    side = round((atoms / 0.1) ** (1 / 3), 3)
    points = rng.uniform(0, side, (atoms, 3))
    return System(rng.choice([1, 6, 8], atoms), points, np.eye(3) * side, True)
