"""A TDN potential that runs as one compiled call."""

from __future__ import annotations

import numba
import numpy as np

from ...graph import Graph
from ...potential import Potential
from ...tabulated import build_table
from ..tdn_weights import extract_tdn_weights
from .base import FloatArray, FusedPotential, NeighborMemory, may_start_threads, shifts_of
from .compiled import kernel
from .pack import pack_pairs
from .perceptron import Perceptron
from .tdn_network import Network
from .tdn_pack import make_plan, make_tdn_slots, make_tdn_work, pack_head, pack_tdn
from .tdn_step import tdn_step


class FusedTDN(FusedPotential):
    """Energies, forces and virial of a TDN potential, for inference on a CPU.

    Radial networks are replaced by tables (see `tabulated`), the derivatives are derived by
    hand (see `tdn_equations`), and there is no autograd tape. Geometry and sums over atoms are
    float64. Results do not depend on the number of threads, and repeat to the last bit. Memory
    grows with the atoms and, with d^2 numbers each, with the edges.

    Parameters
    ----------
    potential
        With a `TDN`; its dtype is that of the arithmetic.
    """

    def __init__(self, potential: Potential) -> None:
        super().__init__(potential)
        table, self.table_info = build_table(potential)
        weights = extract_tdn_weights(potential, table)
        dtype = np.dtype(str(potential.dtype).removeprefix("torch."))
        self.network = pack_tdn(weights, self.unit, dtype)
        self.head = pack_head(weights, dtype)

    def run(self, graph: Graph, threads: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Outputs (N,), forces (N, 3) and shares of the virial (N, 3, 3) of one or more atoms."""
        run = kernel(tdn_step, threads=may_start_threads())
        numba.set_num_threads(threads)
        memory = self._memory
        if memory is None or not memory.serves(graph, threads):
            memory = self._memory = _Memory(self.network, self.head, graph, threads)
        atoms = len(graph.numbers)
        forces, virial = np.empty((atoms, 3)), np.empty((atoms, 3, 3))
        factor = self.scale * self.energy_in_ev / self.unit
        run(
            graph.positions.numpy(), graph.numbers.numpy(), memory.pairs, memory.slots,
            self.network, self.head, memory.work, memory.plan, factor, forces, virial,
        )  # fmt: skip
        return memory.work.outputs.copy(), forces, virial


class _Memory(NeighborMemory):
    """Arrays that are kept while the neighbour list stays the same."""

    def __init__(self, net: Network, head: Perceptron, graph: Graph, threads: int) -> None:
        super().__init__(graph, threads)
        atoms, edges = len(graph.numbers), graph.edge_index.shape[1]
        self.pairs = pack_pairs(
            graph.edge_index.numpy(), graph.edge_shift.numpy(), shifts_of(graph), atoms
        )
        receivers = np.repeat(np.arange(atoms), np.diff(self.pairs.offsets))
        if (np.diff(receivers * atoms + self.pairs.senders) < 0).any():
            raise ValueError(
                "edges are not sorted by receiver, then sender: expected a Graph of NeighborList"
            )
        self.slots = make_tdn_slots(atoms, edges, net)
        self.plan = make_plan(self.pairs, net, threads)
        self.work = make_tdn_work(net, head, self.pairs, self.plan)
