"""The base class of potentials that run as one compiled call on a CPU."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from ....graph import Graph
from ....potential import Potential, Prediction
from ..potential import FusedPotential, Versions
from .compiled import kernel
from .neighbors import Neighbors, Slots, pack_neighbors
from .team import Schedule

_ONE_AT_A_TIME = threading.Lock()
_started_in: int | None = None
"""Id of the process that started the kernels' threads; its forks cannot use them."""


@dataclass
class Memory:
    """Memory that is kept as long as the neighbour list stays the same."""

    slots: Slots
    work: Any
    """The network's arrays, including the ``outputs`` (N,) of a step."""
    schedule: Schedule
    composition: Composition | None = None
    """The composition last passed to `CPUPotential.use`."""


class CPUPotential(FusedPotential):
    """A potential on the CPU; see `FusedPotential`.

    Geometry and sums over atoms are float64. Results are bitwise reproducible and do not depend
    on the number of threads.
    """

    engine = "fused CPU kernels"
    step: ClassVar[Callable[..., None]]
    """The function to compile, which runs a whole step."""
    packed: tuple[Any, ...]
    """Last arguments of `step`: the network and its perceptrons."""

    def __init__(self, potential: Potential) -> None:
        super().__init__(potential)
        self.arithmetic = np.dtype(str(self.dtype).removeprefix("torch."))
        scale = self.atomic_scale
        self.scale, self.mean = float(scale.scale), float(scale.mean)
        self.factor = self.scale * self.energy_in_ev / self.length_in_angstrom
        """Factor that converts the derivative of an output to eV/A."""
        self.references = scale.references.cpu().numpy()
        self._lock = threading.Lock()
        self._list: NeighborMemory | None = None
        self._memory: Memory | None = None
        self._composition: Composition | None = None

    def evaluate(self, graph: Graph) -> Prediction:  # noqa: D102
        with self._lock:
            known = self._composition
            if known is None or not known.serves(graph):
                known = self._composition = Composition(graph, self.references, self.mean)
            atoms = len(known.shares)
            forces, virial = np.zeros((atoms, 3)), np.zeros((atoms, 3, 3))
            outputs = self._run(graph, known, forces, virial) if atoms else np.zeros(0)
            if self.atomic_scale.per_atom:
                forces *= known.sizes[:, None]
                virial *= known.sizes[:, None, None]
                outputs = outputs * known.sizes
            energies = (self.scale * outputs + known.shares) * self.energy_in_ev
        systems = len(graph.charge)
        sums = virial.sum(0, keepdims=True) if systems == 1 else virial
        virials = torch.from_numpy(0.5 * (sums + sums.transpose(0, 2, 1)))
        if systems == 1:
            energy = torch.from_numpy(energies.sum(keepdims=True))
        else:
            energy = torch.zeros(systems, dtype=torch.float64)
            energy.index_add_(0, graph.system, torch.from_numpy(energies))
            virials = torch.zeros_like(graph.cell).index_add_(0, graph.system, virials)
        each = torch.from_numpy(energies), torch.from_numpy(forces)
        return Prediction(energy, *each, virials)

    def allocate(self, neighbors: Neighbors, threads: int, old: Memory | None) -> Memory:
        """Allocate memory for steps with these neighbours; ``old`` served an earlier list."""
        raise NotImplementedError

    def use(self, memory: Memory, composition: Composition) -> None:
        """Write the part of a composition that the network reads to the memory."""

    def _run(
        self, graph: Graph, composition: Composition, forces: NDArray[np.float64],
        virial: NDArray[np.float64],
    ) -> NDArray[np.float64]:  # fmt: skip
        """Fill forces and virial, and return the network's outputs, which the next call reuses."""
        threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
        known, memory = self._list, self._memory
        if known is None or memory is None or not known.serves(graph, threads):
            known = NeighborMemory(graph, threads)
            memory = self.allocate(known.neighbors, threads, memory)
            self._list, self._memory = known, memory
        if memory.composition is not composition:
            self.use(memory, composition)
            memory.composition = composition
        run = kernel(type(self).step, threads=_may_start_threads())
        with _exclusive():
            _set_num_threads(threads)
            run(
                memory.schedule, threads, graph.positions.detach().numpy(),
                graph.numbers.numpy(), known.neighbors, memory.slots, memory.work, self.factor,
                forces, virial, *self.packed,
            )  # fmt: skip
        outputs: NDArray[np.float64] = memory.work.outputs
        return outputs

    def __getstate__(self) -> dict[str, Any]:
        nothing = dict.fromkeys(("_lock", "_list", "_memory", "_composition"))
        return {**self.__dict__, **nothing}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()


class Composition:
    """Quantities that depend only on elements and charges, kept while these stay the same.

    Raises
    ------
    ValueError
        If an atomic number has no reference energy.
    """

    def __init__(self, graph: Graph, references: NDArray[np.float64], mean: float) -> None:
        self._given = Versions(graph.numbers, graph.system, graph.charge)
        numbers, system, charge = (
            tensor.numpy() for tensor in (graph.numbers, graph.system, graph.charge)
        )
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(references):
            raise ValueError(
                f"atomic numbers are {numbers.min()} to {numbers.max()}: expected 0 to "
                f"{len(references) - 1}"
            )
        self.sizes = np.bincount(system, minlength=len(charge))[system]
        self.shares = references[numbers] + mean / self.sizes
        self.charge_factors = 1 + 0.1 * charge[system]

    def serves(self, graph: Graph) -> bool:
        """Whether the graph holds the same, unchanged tensors."""
        return self._given.are(graph.numbers, graph.system, graph.charge)


class NeighborMemory:
    """Neighbours by receiver, kept as long as graphs hold the same list."""

    def __init__(self, graph: Graph, threads: int) -> None:
        self._given = Versions(graph.edge_index, graph.edge_shift)
        self._cell, self._lattice = Versions(graph.cell), graph.cell.clone()
        self._threads = threads
        self.neighbors = pack_neighbors(graph)

    def serves(self, graph: Graph, threads: int) -> bool:
        """Whether the graph holds the same list and the number of threads is the same."""
        return (
            threads == self._threads
            and self._given.are(graph.edge_index, graph.edge_shift)
            and (self._cell.are(graph.cell) or torch.equal(graph.cell, self._lattice))
        )


def _may_start_threads() -> bool:
    """False in a fork of a process that started threads, because threads do not survive a fork."""
    global _started_in
    if _started_in is None:
        _started_in = os.getpid()
    return _started_in == os.getpid()


def _set_num_threads(threads: int) -> None:
    """Set the number of threads of the kernels alone.

    When numba starts its threads, it also sets OpenMP's number, which is torch's.
    """
    before = torch.get_num_threads()
    numba.set_num_threads(threads)
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


def _exclusive() -> AbstractContextManager[Any]:
    """A lock for thread pools that end the process if two threads enter at the same time."""
    try:
        safe = numba.threading_layer() in ("omp", "tbb")
    except ValueError:  # not started yet
        safe = False
    return nullcontext() if safe else _ONE_AT_A_TIME
