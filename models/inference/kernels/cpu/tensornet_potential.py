"""A TensorNet potential that runs as one compiled call."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....graph import Graph
from ....potential import Potential
from ..weights import extract_weights
from .edges import Slots
from .nodes import Network, Work
from .pack import make_slots, make_work, pack_network, pack_perceptrons
from .potential import Composition, FusedCPUPotential, Memory, threads_to_use
from .step import step


class FusedTensorNet(FusedCPUPotential):
    """A TensorNet on the CPU, see `FusedCPUPotential`."""

    def __init__(self, potential: Potential) -> None:
        super().__init__(potential)
        weights = extract_weights(potential, self.table)
        self.network = pack_network(weights, self.dtype)
        self.perceptrons = pack_perceptrons(weights, self.dtype)
        self.lower, self.reach = weights.lower, weights.cutoff

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
            memory = self._memory = _Memory(self.network, self.perceptrons, graph, threads, memory)
        if memory.composition is not composition:
            memory.work.charge[:] = composition.charge_factors
            memory.composition = composition
        self._call(
            step, threads, graph.positions.detach().numpy(), graph.numbers.numpy(), memory.pairs,
            memory.slots, self.network, *self.perceptrons, memory.work, memory.part, threads,
            self.unit, self.lower, self.reach, self.factor, forces, virial,
        )  # fmt: skip
        return memory.work.outputs


class _Memory(Memory):
    """The arrays of a step; those that fit are taken over from the list before."""

    def __init__(
        self, net: Network, perceptrons: Any, graph: Graph, threads: int, old: _Memory | None
    ) -> None:
        super().__init__(graph, threads)
        atoms, edges = len(graph.numbers), graph.edge_index.shape[1]
        self.composition: Composition | None = None
        if old is not None and len(old.slots.counts) == atoms and len(old.slots.edge) >= edges:
            self.slots: Slots = old.slots
        else:
            self.slots = make_slots(atoms, edges + edges // 20, net.chunks, net.tables.dtype)
        if old is not None and len(old.work.outputs) == atoms and old.threads == threads:
            self.work: Work = old.work
        else:
            self.work = make_work(net, perceptrons, atoms, threads)
        parts = threads // math.gcd(net.chunks, threads)
        self.part = -(-atoms // parts)
