"""A TDN potential that runs as one compiled call."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ....graph import Graph
from ....potential import Potential
from ..tdn_weights import extract_tdn_weights
from .perceptron import Perceptron
from .potential import Composition, FusedCPUPotential, Memory, threads_to_use
from .tdn_network import Network
from .tdn_pack import make_plan, make_tdn_slots, make_tdn_work, pack_head, pack_tdn
from .tdn_step import tdn_step


class FusedTDN(FusedCPUPotential):
    """A TDN on the CPU, see `FusedCPUPotential`.

    The pass and its derivatives are those of `tdn_equations`. Memory grows with the atoms and,
    with about d^2 numbers each, with the edges.
    """

    def __init__(self, potential: Potential) -> None:
        super().__init__(potential)
        weights = extract_tdn_weights(potential, self.table)
        self.per_atom = potential.atomic_scale.per_atom
        self.tdn = pack_tdn(weights, self.unit, self.dtype)
        self.head = pack_head(weights, self.dtype)

    def _evaluate(
        self,
        graph: Graph,
        composition: Composition,
        forces: NDArray[np.float64],
        virial: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        threads = threads_to_use()
        memory: _Memory = self._memory
        if memory is None or not memory.serves(graph, threads):
            memory = self._memory = _Memory(self.tdn, self.head, graph, threads)
        self._call(
            tdn_step, threads, graph.positions.detach().numpy(), graph.numbers.numpy(),
            memory.pairs, memory.slots, self.tdn, self.head, memory.work, memory.plan,
            self.factor, forces, virial,
        )  # fmt: skip
        outputs: NDArray[np.float64] = memory.work.outputs
        if self.per_atom:
            system = graph.system.numpy()
            sizes = np.bincount(system)[system]
            forces *= sizes[:, None]
            virial *= sizes[:, None, None]
            outputs = outputs * sizes
        return outputs


class _Memory(Memory):
    """The arrays of a step, and who does what in it."""

    def __init__(self, net: Network, head: Perceptron, graph: Graph, threads: int) -> None:
        super().__init__(graph, threads)
        atoms, edges = len(graph.numbers), graph.edge_index.shape[1]
        receivers = np.repeat(np.arange(atoms), np.diff(self.pairs.offsets))
        if (np.diff(receivers * atoms + self.pairs.senders) < 0).any():
            raise ValueError(
                "edges are not sorted by receiver, then sender: expected a Graph of NeighborList"
            )
        self.slots = make_tdn_slots(atoms, edges, net)
        self.plan = make_plan(self.pairs, net, threads)
        self.work = make_tdn_work(net, head, self.pairs, self.plan)
