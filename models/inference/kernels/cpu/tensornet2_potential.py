"""A TensorNet2 potential that runs as one compiled call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....graph import Graph, displacements, within
from ....heads.charges import ChargeReadout
from ....heads.coulomb import WHY_NO_CELL
from ....parts import Part
from ....potential import Potential, Prediction
from ..potential import Versions
from ..weights import extract_charge_weights, extract_weights
from .neighbors import Neighbors, make_slots, pack_list, require_sorted
from .potential import Composition, CPUPotential, Memory
from .simd import LANES
from .team import even
from .tensornet2_network import (
    ChargesWork,
    EdgesWork,
    make_charges_work,
    make_edges_work,
    pack_charges,
    plan_edges,
)
from .tensornet2_step import tensornet2_schedule, tensornet2_step
from .tensornet_network import make_tensornet_work, pack_tensornet
from .tensornet_potential import MOST_ATOMS

GROUP_ROWS = 192
"""Wanted number of edges in a group, with those in the skin of the neighbour list."""
KEPT_BYTES = 2**31
"""Largest memory for values of all edge networks that the backward pass needs; beyond, it computes
them again."""
PORTION_BYTES = 2**26
"""Memory for gradients of the edge networks of a portion of the senders."""
NEAR_SKIN = 1.0
"""Verlet skin, Angstrom, of the network's edges among those of a longer Coulomb cutoff."""
LONGER = 2.0
"""The network's edges are kept apart if any edge is so much longer, Angstrom."""

Found = TypeVar("Found")


@dataclass
class ChargedMemory(Memory):
    """Memory of a TensorNet2."""

    charges: ChargesWork = field(kw_only=True)
    edges: EdgesWork = field(kw_only=True)


class CPUTensorNet2(CPUPotential):
    """A TensorNet2 on the CPU; see `CPUPotential`.

    Where all pairs of a molecule interact, they need not be in the graph.
    """

    step = staticmethod(tensornet2_step)
    computes = ("charges",)
    forgotten = (*CPUPotential.forgotten, "_pairs", "_last")

    def __init__(self, potential: Potential) -> None:
        super().__init__(potential)
        weights = extract_weights(potential, self.table)
        # The Coulomb energy is not scaled: let the network's output be an energy too.
        last = weights.values[-1]
        scaled = last._replace(weight=self.scale * last.weight, bias=self.scale * last.bias)
        weights = weights._replace(values=[*weights.values[:-1], scaled])
        self.factor, self.scale = self.energy_in_ev / self.length_in_angstrom, 1.0
        net, gate, *head = pack_tensornet(weights, self.length_in_angstrom, self.arithmetic)
        coulomb = potential.coulomb
        charges, edges, predictions = pack_charges(
            extract_charge_weights(potential), coulomb, self.arithmetic
        )
        self.packed = (net, gate, *head, charges, edges, predictions)
        self.electrostatic = coulomb is not None
        self.all_pairs = coulomb is not None and coulomb.all_pairs
        self.listed = coulomb is not None and not coulomb.all_pairs
        self.near_cutoff = potential.near_cutoff
        readout = potential.heads["charges"]
        assert isinstance(readout, ChargeReadout)
        self.levels = np.array(readout.weights)
        self.charge_channels = potential.representation.charge_channels
        self._pairs: _Pairs | None = None
        self._last: Versions | None = None

    def forward(self, graph: Graph, part: Part | None = None) -> Prediction:
        """Energies, forces and virials of the systems of a graph, in eV and Angstrom.

        Raises
        ------
        ValueError
            If all pairs interact and a system is periodic, or its atoms are not consecutive.
        """
        with self._lock:
            return self._noted(graph, super().forward(self._with_near_edges(graph), part))

    def arrays(self, graph: Graph) -> Sequence[NDArray[np.float64]]:
        """The same as arrays; raises as `forward` does."""
        if self.repulsion is not None:
            return super().arrays(graph)
        with self._lock:
            return self._noted(graph, self._evaluate(self._with_near_edges(graph), None))

    def _with_near_edges(self, graph: Graph) -> Graph:
        """The graph with the edges of the network; ``_pairs`` are those of the Coulomb energy."""
        if self.all_pairs and graph.cell.any():
            raise ValueError(WHY_NO_CELL)
        known = self._pairs
        if known is None or not known.serves(graph):
            known = self._pairs = _Pairs(graph, self.near_cutoff, self.listed)
        self._last = None
        return known.near(graph)

    def _noted(self, graph: Graph, found: Found) -> Found:
        """A result whose charges `properties` may read."""
        self._last = Versions(*_read(graph))
        return found

    def properties(self, graph: Graph, names: Sequence[str]) -> dict[str, Tensor]:
        """Charges of the atoms, (N,) e float64: those of the last evaluation, or of a new one.

        ``names`` are a part of ``computes``.
        """
        with self._lock:
            if self._last is None or not self._last.are(*_read(graph)):
                self.forward(graph)
            memory, atoms = self._memory, len(graph.numbers)
            means = np.zeros((len(self.levels), atoms))
            if atoms:
                assert isinstance(memory, ChargedMemory)
                each = memory.charges.charges.reshape(len(self.levels), -1, atoms, LANES)
                means = each.sum((1, 3), dtype=np.float64) / self.charge_channels
            return {name: torch.from_numpy(self.levels @ means) for name in names}

    def allocate(self, neighbors: Neighbors, threads: int, old: Memory | None) -> ChargedMemory:
        """Allocate memory for steps with these neighbours, reusing the largest arrays that fit.

        Raises
        ------
        ValueError
            If the edges are not sorted by receiver, then sender.
        """
        require_sorted(neighbors)
        net, *perceptrons, charges, networks, predictions = self.packed
        offsets = neighbors.offsets
        atoms, edges = len(offsets) - 1, len(neighbors.senders)
        bounds = even(atoms, MOST_ATOMS, threads)
        size = LANES * self.arithmetic.itemsize
        plan = plan_edges(
            offsets, threads, GROUP_ROWS,
            KEPT_BYTES // max(1, net.layers * int(networks.chunks.sum()) * size),
            PORTION_BYTES // (net.chunks * size),
        )  # fmt: skip
        work = make_edges_work(net, charges, networks, plan, offsets, threads)
        if isinstance(old, ChargedMemory) and len(old.work.outputs) == atoms:
            # Memory that was written before; the system takes a while to provide it anew.
            before = {name: getattr(old.edges, name) for name in ("tape", "hidden")}
            fit = {k: v for k, v in before.items() if len(v) >= len(getattr(work, k))}
            work = work._replace(**fit)
        return ChargedMemory(
            make_slots(atoms, edges, 1, self.arithmetic),
            make_tensornet_work(net, [*perceptrons, predictions], bounds, threads),
            tensornet2_schedule(net.layers, net.chunks, bounds, plan, threads, self.electrostatic),
            charges=make_charges_work(charges, predictions, bounds, self.arithmetic),
            edges=work,
        )

    def use(self, memory: Memory, composition: Composition) -> None:
        """Write systems and total charges to the memory."""
        assert isinstance(memory, ChargedMemory)
        system, total, charges = composition.system, composition.charge, memory.charges
        if (np.diff(system) < 0).any():
            raise ValueError(
                "the atoms of a system are not consecutive: expected a Graph of NeighborList or "
                "batch_graphs"
            )
        levels, _, width = charges.sums.shape
        memory.charges = charges._replace(
            system=system,
            total=total,
            bounds=np.searchsorted(system, np.arange(len(total) + 1)),
            sums=np.zeros((levels, len(total), width)),
        )

    def more(self, memory: Memory) -> tuple[Any, ...]:
        """Memory of charges and edge networks, and the pairs of the Coulomb energy."""
        assert isinstance(memory, ChargedMemory)
        assert self._pairs is not None
        return memory.charges, memory.edges, self._pairs.packed


def _read(graph: Graph) -> tuple[Tensor, ...]:
    """What the charges depend on."""
    return graph.positions, graph.numbers, graph.cell, graph.system, graph.charge


class _Pairs:
    """The pairs of the Coulomb energy, and among them the edges of the network.

    Parameters
    ----------
    graph
        Graph whose list is kept.
    reach
        Longest edge that the network reads, Angstrom.
    listed
        Whether the pairs of the Coulomb energy are those of the graph.
    """

    def __init__(self, graph: Graph, reach: float, listed: bool) -> None:
        self._given = Versions(graph.edge_index, graph.edge_shift, graph.cell)
        self._reach = reach
        lengths = torch.linalg.vector_norm(displacements(graph), dim=1)
        self._longer = bool((lengths > reach + LONGER).any())
        self._near: tuple[Tensor, Graph] | None = None
        nothing = graph._replace(
            edge_index=graph.edge_index[:, :0], edge_shift=graph.edge_shift[:0]
        )
        self.packed = pack_list(graph if listed else nothing)

    def serves(self, graph: Graph) -> bool:
        """Whether the graph holds the same list."""
        return self._given.are(graph.edge_index, graph.edge_shift, graph.cell)

    def near(self, graph: Graph) -> Graph:
        """The graph with the edges of the network alone, kept while atoms have moved little."""
        if not self._longer:
            return graph
        if self._near is not None:
            searched, edges = self._near
            if float((graph.positions - searched).square().sum(1).max()) <= NEAR_SKIN**2 / 4:
                return graph._replace(edge_index=edges.edge_index, edge_shift=edges.edge_shift)
        edges = within(graph, self._reach + NEAR_SKIN)[0]
        self._near = graph.positions.clone(), edges
        return edges
