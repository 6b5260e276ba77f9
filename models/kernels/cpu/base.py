"""What fused potentials share: energies from outputs, repulsion, locks and threads."""

from __future__ import annotations

import os
import threading
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...graph import Graph, displacements, within
from ...potential import Potential, Prediction, assemble

FloatArray = NDArray[np.float64]

_started_in: int | None = None
"""Process that started the threads of the kernels: a fork of it cannot use them."""


class FusedPotential(nn.Module):
    """Energies, forces and virial for inference on a CPU, in one compiled call.

    A subclass says what the network makes of a graph, in `run`. One evaluation runs at a time.

    Parameters
    ----------
    potential
        Whose energies these are.
    """

    engine = "fused CPU kernels"

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        scale = potential.atomic_scale
        self.cutoff = potential.cutoff
        self.unit = potential.length_in_angstrom
        self.energy_in_ev = potential.energy_in_ev
        self.scale = float(scale.scale)
        self.mean = float(scale.mean)
        self.references = scale.references.cpu().numpy()
        self.per_atom = scale.per_atom
        self.repulsion = potential.repulsion
        self._lock = threading.Lock()
        self._memory: Any = None

    def run(self, graph: Graph, threads: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Outputs (N,), forces (N, 3) and shares of the virial (N, 3, 3) of one or more atoms."""
        raise NotImplementedError

    def forward(self, graph: Graph) -> Prediction:
        """Energies, forces and virials of the systems of a graph."""
        numbers, system = graph.numbers.numpy(), graph.system.numpy()
        if len(numbers) == 0:
            outputs, forces, virial = np.zeros(0), np.zeros((0, 3)), np.zeros((0, 3, 3))
        else:
            with self._lock:
                threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
                outputs, forces, virial = self.run(graph, threads)
        sizes = np.bincount(system, minlength=len(graph.charge))[system]
        if self.per_atom:
            outputs = outputs * sizes
            forces, virial = forces * sizes[:, None], virial * sizes[:, None, None]
        energies = self.scale * outputs + self.references[numbers] + self.mean / sizes
        prediction = _by_system(
            graph,
            torch.from_numpy(energies * self.energy_in_ev),
            torch.from_numpy(forces),
            torch.from_numpy(virial),
        )
        if self.repulsion is None:
            return prediction
        return _sum(prediction, self._repulsion(graph))

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


class NeighborMemory:
    """What is kept while the neighbours stay the very same; subclasses add arrays."""

    def __init__(self, graph: Graph, threads: int) -> None:
        self.edge_index, self.version = graph.edge_index, graph.edge_index._version
        self.cell, self.threads = graph.cell, threads

    def serves(self, graph: Graph, threads: int) -> bool:
        """Whether the neighbours are the very ones that this was made for."""
        return (
            graph.edge_index is self.edge_index
            and graph.edge_index._version == self.version
            and threads == self.threads
            and torch.equal(graph.cell, self.cell)
        )


def shifts_of(graph: Graph) -> FloatArray:
    """Shift @ cell of every edge, (E, 3), Angstrom."""
    shifts = displacements(graph._replace(positions=torch.zeros_like(graph.positions)))
    return shifts.numpy()


def may_start_threads() -> bool:
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
