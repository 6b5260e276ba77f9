"""A TensorNet potential that runs as one compiled call."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor, nn

from ...graph import Graph, displacements, within
from ...potential import Potential, Prediction, assemble
from ...tabulated import build_table
from ..weights import extract_weights
from .compiled import kernel
from .edges import Pairs, Slots
from .nodes import Network, Work
from .pack import make_slots, make_work, pack_network, pack_pairs, pack_perceptrons
from .perceptron import Perceptron
from .step import step

_started_in: int | None = None
"""Process that started the threads of the kernels: a fork of it cannot use them."""


class FusedCPUPotential(nn.Module):
    """Energies, forces and virial of a TensorNet potential, for inference on a CPU.

    Radial networks are replaced by tables (see `tabulated`), the derivatives are derived by
    hand, and there is no autograd tape. Geometry and sums over atoms are float64. Results do
    not depend on the number of threads, and repeat to the last bit.

    Parameters
    ----------
    potential
        With a `TensorNet`; its dtype is that of the arithmetic.
    """

    engine = "fused CPU kernels"

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        table, self.table_info = build_table(potential)
        weights = extract_weights(potential, table)
        dtype = np.dtype(str(potential.dtype).removeprefix("torch."))
        self.network = pack_network(weights, dtype)
        self.perceptrons = pack_perceptrons(weights, dtype)
        self.lower, self.reach = weights.lower, weights.cutoff
        self.cutoff = potential.cutoff
        self.unit = potential.length_in_angstrom
        scale = potential.atomic_scale
        self.energy_in_ev = potential.energy_in_ev
        self.scale = float(scale.scale)
        self.mean = float(scale.mean)
        self.references = scale.references.cpu().numpy()
        self.repulsion = potential.repulsion
        self.energy_cutoff = potential.cutoff
        self._lock = threading.Lock()
        self._memory: _Memory | None = None

    def forward(self, graph: Graph) -> Prediction:
        """Energies, forces and virials of the systems of a graph."""
        with self._lock:
            outputs, forces, virial = self._run(graph)
        numbers = graph.numbers.numpy()
        sizes = np.bincount(graph.system.numpy(), minlength=len(graph.charge))
        share = (self.mean / np.maximum(sizes, 1))[graph.system.numpy()]
        energies = torch.from_numpy(
            (self.scale * outputs + self.references[numbers] + share) * self.energy_in_ev
        )
        prediction = _by_system(
            graph, energies, torch.from_numpy(forces), torch.from_numpy(virial)
        )
        if self.repulsion is None:
            return prediction
        return _sum(prediction, self._repulsion(graph))

    def _run(self, graph: Graph) -> tuple[Any, Any, Any]:
        atoms = len(graph.numbers)
        forces, virial = np.zeros((atoms, 3)), np.zeros((atoms, 3, 3))
        if atoms == 0:
            return np.zeros(0), forces, virial
        threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
        run = kernel(step, threads=_may_start_threads())
        numba.set_num_threads(threads)
        memory = self._memory_for(graph, threads)
        charge = 1 + 0.1 * graph.charge.numpy()[graph.system.numpy()]
        memory.work.charge[:] = charge
        factor = self.scale * self.energy_in_ev / self.unit
        run(
            graph.positions.numpy(), graph.numbers.numpy(), memory.pairs, memory.slots,
            self.network, *self.perceptrons, memory.work, memory.part, self.unit, self.lower,
            self.reach, factor,
            forces, virial,
        )  # fmt: skip
        return memory.work.outputs.copy(), forces, virial

    def _memory_for(self, graph: Graph, threads: int) -> _Memory:
        memory = self._memory
        if memory is None or not memory.serves(graph, threads):
            memory = self._memory = _Memory(self.network, self.perceptrons, graph, threads, memory)
        return memory

    def _repulsion(self, graph: Graph) -> Prediction:
        assert self.repulsion is not None
        near, vectors = within(graph, self.repulsion.cutoff * self.unit)
        vectors = vectors.requires_grad_(True)
        with torch.enable_grad():
            energies = self.repulsion(near, vectors / self.unit) * self.energy_in_ev
            gradient = torch.autograd.grad([energies.sum()], [vectors])[0]
        return assemble(near, energies.detach(), vectors.detach(), gradient)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_memory": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()


class _Memory:
    """Arrays that are kept while the neighbour list stays the same."""

    def __init__(
        self,
        net: Network,
        perceptrons: Sequence[Perceptron],
        graph: Graph,
        threads: int,
        old: _Memory | None,
    ) -> None:
        atoms, edges = len(graph.numbers), graph.edge_index.shape[1]
        self.edge_index, self.version = graph.edge_index, graph.edge_index._version
        self.cell, self.threads = graph.cell, threads
        shifts = displacements(graph._replace(positions=torch.zeros_like(graph.positions)))
        self.pairs: Pairs = pack_pairs(
            graph.edge_index.numpy(), graph.edge_shift.numpy(), shifts.numpy(), atoms
        )
        dtype = net.tables.dtype
        if old is not None and len(old.slots.counts) == atoms and len(old.slots.edge) >= edges:
            self.slots: Slots = old.slots
        else:
            self.slots = make_slots(atoms, edges + edges // 20, net.chunks, dtype)
        if old is not None and len(old.work.outputs) == atoms and old.threads == threads:
            self.work: Work = old.work
        else:
            self.work = make_work(net, perceptrons, atoms, threads)
        parts = threads // math.gcd(net.chunks, threads)
        self.part = -(-atoms // parts)

    def serves(self, graph: Graph, threads: int) -> bool:
        """Whether the neighbours are the very ones that these arrays were made for."""
        return (
            graph.edge_index is self.edge_index
            and graph.edge_index._version == self.version
            and threads == self.threads
            and torch.equal(graph.cell, self.cell)
        )


def _may_start_threads() -> bool:
    """False in a fork of a process whose threads run already: they did not survive it."""
    global _started_in
    if _started_in is None:
        _started_in = os.getpid()
    return _started_in == os.getpid()


def _by_system(graph: Graph, energies: Tensor, forces: Tensor, virial: Tensor) -> Prediction:
    virial = 0.5 * (virial + virial.mT)
    if len(graph.charge) == 1:
        return Prediction(energies.sum()[None], energies, forces, virial.sum(0)[None])
    energy = energies.new_zeros(len(graph.charge)).index_add(0, graph.system, energies)
    total = virial.new_zeros(len(graph.charge), 3, 3).index_add(0, graph.system, virial)
    return Prediction(energy, energies, forces, total)


def _sum(first: Prediction, second: Prediction) -> Prediction:
    return Prediction(*(a + b for a, b in zip(first, second, strict=True)))
