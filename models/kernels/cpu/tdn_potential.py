"""A TDN potential that runs as one compiled call."""

from __future__ import annotations

import copy
import threading
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...graph import Graph, displacements
from ...potential import Potential
from ...tabulated import build_table
from ..tdn_weights import extract_tdn_weights
from .compiled import kernel
from .pack import pack_pairs
from .perceptron import Perceptron
from .potential import FusedCPUPotential, _exclusive, _may_start_threads, _Versions
from .tdn_network import Network
from .tdn_pack import make_plan, make_tdn_slots, make_tdn_work, pack_head, pack_tdn
from .tdn_step import tdn_step


class FusedTDN(FusedCPUPotential):
    """Energies, forces and virial of a TDN potential, for inference on a CPU.

    Radial networks are replaced by tables (see `tabulated`), the derivatives are derived by
    hand (see `tdn_equations`), and there is no autograd tape. Geometry and sums over atoms are
    float64. Results do not depend on the number of threads, and repeat to the last bit. Memory
    grows with the atoms and, with about d^2 numbers each, with the edges.

    Parameters
    ----------
    potential
        With a `TDN`; its dtype is that of the arithmetic.
    """

    def __init__(self, potential: Potential) -> None:
        nn.Module.__init__(self)
        table, self.table_info = build_table(potential)
        weights = extract_tdn_weights(potential, table)
        scale = potential.atomic_scale
        self.cutoff, self.unit = potential.cutoff, potential.length_in_angstrom
        self.energy_in_ev = potential.energy_in_ev
        self.scale, self.mean = float(scale.scale), float(scale.mean)
        self.per_atom = scale.per_atom
        self.references = scale.references.cpu().numpy()
        self.repulsion = copy.deepcopy(potential.repulsion)
        dtype = np.dtype(str(potential.dtype).removeprefix("torch."))
        self.tdn = pack_tdn(weights, self.unit, dtype)
        self.head = pack_head(weights, dtype)
        self._lock = threading.Lock()
        self._memory: Any = None
        self._composition = None

    def _evaluate(
        self,
        graph: Graph,
        composition: Any,
        forces: NDArray[np.float64],
        virial: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
        memory = self._memory
        if memory is None or not memory.serves(graph, threads):
            memory = self._memory = _Memory(self.tdn, self.head, graph, threads)
        run = kernel(tdn_step, threads=_may_start_threads())
        factor = self.scale * self.energy_in_ev / self.unit
        with _exclusive():
            numba.set_num_threads(threads)
            run(
                graph.positions.detach().numpy(), graph.numbers.numpy(), memory.pairs,
                memory.slots, self.tdn, self.head, memory.work, memory.plan, factor, forces,
                virial,
            )  # fmt: skip
        outputs: NDArray[np.float64] = memory.work.outputs
        if self.per_atom:
            system = graph.system.numpy()
            sizes = np.bincount(system)[system]
            forces *= sizes[:, None]
            virial *= sizes[:, None, None]
            outputs = outputs * sizes
        return outputs


class _Memory:
    """Arrays that are kept while the neighbour list stays the same."""

    def __init__(self, net: Network, head: Perceptron, graph: Graph, threads: int) -> None:
        self._list = _Versions(graph.edge_index, graph.edge_shift)
        self._cell, self.threads = graph.cell.clone(), threads
        atoms, edges = len(graph.numbers), graph.edge_index.shape[1]
        shifts = displacements(graph._replace(positions=torch.zeros_like(graph.positions)))
        self.pairs = pack_pairs(
            graph.edge_index.numpy(), graph.edge_shift.numpy(), shifts.detach().numpy(), atoms
        )
        receivers = np.repeat(np.arange(atoms), np.diff(self.pairs.offsets))
        if (np.diff(receivers * atoms + self.pairs.senders) < 0).any():
            raise ValueError(
                "edges are not sorted by receiver, then sender: expected a Graph of NeighborList"
            )
        self.slots = make_tdn_slots(atoms, edges, net)
        self.plan = make_plan(self.pairs, net, threads)
        self.work = make_tdn_work(net, head, self.pairs, self.plan)

    def serves(self, graph: Graph, threads: int) -> bool:
        """Whether the neighbours are the very ones that these arrays were made for."""
        return (
            threads == self.threads
            and self._list.are(graph.edge_index, graph.edge_shift)
            and torch.equal(graph.cell, self._cell)
        )
