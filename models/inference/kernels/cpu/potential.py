"""The base class of potentials that run as one compiled call on a CPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ....graph import Graph
from ....parts import Part
from ....potential import Potential, Prediction
from ...threads import ThreadChoice, most_threads
from ..potential import FusedPotential, Versions
from .compiled import entry_point, folder
from .neighbors import Neighbors, Slots, pack_neighbors
from .team import Schedule
from .workers import new_team, run_with_workers


@dataclass
class Memory:
    """Memory that is kept as long as the neighbour list stays the same."""

    slots: Slots
    work: Any
    """The network's arrays, including the ``outputs`` (N,) of a step."""
    schedule: Schedule
    threads: int = 0
    """Number of threads that it was allocated for."""
    composition: Composition | None = None
    """The composition last passed to `CPUPotential.use`."""
    entry: Callable[..., None] | None = None
    """The compiled step for these arrays."""


class CPUPotential(FusedPotential):
    """A potential on the CPU; see `FusedPotential`.

    Geometry and sums over atoms are float64. Results are bitwise reproducible and do not depend
    on the number of threads.
    """

    engine = "fused CPU kernels"
    threads: int | None = None
    """Number of threads of a step, at most those of torch; None: the fastest number."""
    step: ClassVar[Callable[..., None]]
    """The function to compile, which runs a whole step."""
    packed: tuple[Any, ...]
    """Last arguments of `step`: the network and its perceptrons."""
    forgotten: ClassVar[tuple[str, ...]] = ("_list", "_memory", "_composition", "_choices")
    """Attributes that copies start without."""

    def __init__(self, potential: Potential) -> None:
        super().__init__(potential)
        self.arithmetic = np.dtype(str(self.dtype).removeprefix("torch."))
        scale = self.atomic_scale
        self.scale, self.mean = float(scale.scale), float(scale.mean)
        self.factor = self.scale * self.energy_in_ev / self.length_in_angstrom
        """Factor that converts the derivative of an output to eV/A."""
        self.references = scale.references.cpu().numpy()
        self._lock = threading.RLock()
        self._list: NeighborMemory | None = None
        self._memory: Memory | None = None
        self._composition: Composition | None = None
        self._choices: dict[int, ThreadChoice] = {}
        """Numbers of threads, chosen by the size of a system: the bits of its number of edges."""
        self.kernel_folder = folder()

    def evaluate(self, graph: Graph) -> Prediction:  # noqa: D102
        return Prediction(*map(torch.from_numpy, self._evaluate(graph, None)))

    def evaluate_part(self, graph: Graph, part: Part) -> Prediction:  # noqa: D102
        return Prediction(*map(torch.from_numpy, self._evaluate(graph, part)))

    def arrays(self, graph: Graph) -> Sequence[NDArray[np.float64]]:
        """The fields of the prediction for a graph as arrays, which are faster to make."""
        if self.repulsion is None:
            return self._evaluate(graph, None)
        return [tensor.numpy() for tensor in self(graph)]

    def _evaluate(self, graph: Graph, part: Part | None) -> Sequence[NDArray[np.float64]]:
        with self._lock:
            known = self._composition
            if known is None or not known.serves(graph, part):
                known = self._composition = Composition(graph, part, self.references, self.mean)
            atoms = len(known.shares)
            forces, virial = np.zeros((atoms, 3)), np.zeros((atoms, 3, 3))
            outputs = self._run(graph, part, known, forces, virial) if atoms else np.zeros(0)
            if self.atomic_scale.per_atom:
                forces *= known.sizes[:, None]
                virial *= known.sizes[:, None, None]
                outputs = outputs * known.sizes
            energies = (self.scale * outputs + known.shares) * self.energy_in_ev
            if part is not None:
                energies[part.shells[0] :] = 0
        virials = 0.5 * (virial + virial.transpose(0, 2, 1))
        # Each system's sum by itself: to the last bit that of the system alone.
        energy = known.sums(energies)
        return energy, energies, forces, known.sums(virials), virials

    def allocate(self, neighbors: Neighbors, threads: int, old: Memory | None) -> Memory:
        """Allocate memory for steps with these neighbours; ``old`` served an earlier list."""
        raise NotImplementedError

    def allocate_part(self, neighbors: Neighbors, threads: int, shells: list[int]) -> Memory:
        """Allocate memory for steps of a part, where the class ``evaluates_parts``."""
        raise NotImplementedError

    def clear(self, memory: Memory, shells: list[int]) -> None:
        """Set to zero what a step of a part reads, but does not write."""
        raise NotImplementedError

    def use(self, memory: Memory, composition: Composition) -> None:
        """Write the part of a composition that the network reads to the memory."""

    def more(self, memory: Memory) -> tuple[Any, ...]:
        """Arguments of `step` before ``packed``."""
        return ()

    def _run(
        self, graph: Graph, part: Part | None, composition: Composition,
        forces: NDArray[np.float64], virial: NDArray[np.float64],
    ) -> NDArray[np.float64]:  # fmt: skip
        """Fill forces and virial, and return the network's outputs, which the next call reuses."""
        known, memory = self._list, self._memory
        if known is None or not known.serves(graph, part):
            known = NeighborMemory(graph, part)
        choice = self._choice(known.neighbors)
        threads = self.threads or choice.threads(torch.get_num_threads())
        if memory is None or known is not self._list or memory.threads != threads:
            if part is None:
                memory = self.allocate(known.neighbors, threads, memory)
            else:
                memory = self.allocate_part(known.neighbors, threads, part.shells)
            memory.threads = threads
            self._list, self._memory = known, memory
        if part is not None:
            self.clear(memory, part.shells)
        if memory.composition is not composition:
            self.use(memory, composition)
            memory.composition = composition
            memory.entry = None  # other arrays may be of another kind
        positions = graph.positions.detach() if graph.positions.requires_grad else graph.positions
        arguments = (
            new_team(len(memory.schedule.tasks)), memory.schedule,
            np.ascontiguousarray(positions.numpy(), np.float64), composition.numbers,
            known.neighbors, memory.slots, memory.work, self.factor, forces, virial,
            *self.more(memory), *self.packed,
        )  # fmt: skip
        if memory.entry is None:
            memory.entry = entry_point(type(self).step, arguments)
        begin = time.perf_counter()
        run_with_workers(memory.entry, arguments, threads)
        if self.threads is None:
            choice.add(time.perf_counter() - begin)
        outputs: NDArray[np.float64] = memory.work.outputs
        return outputs

    def describe_threads(self) -> str:
        """Number of threads of the steps so far, and why."""
        if self.threads is not None:
            return f"{self.threads}, fixed"
        chosen = [str(choice) for choice in self._choices.values()]
        return "; ".join(chosen) or f"at most {most_threads()}, chosen by timing steps"

    def _choice(self, neighbors: Neighbors) -> ThreadChoice:
        """The choice for systems of about this size."""
        size = len(neighbors.senders).bit_length()
        choice = self._choices.get(size)
        if choice is None:
            choice = self._choices[size] = ThreadChoice(len(neighbors.offsets) - 1)
        return choice

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, **dict.fromkeys(("_lock", *self.forgotten))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._lock, self._choices = threading.RLock(), {}


class Composition:
    """Quantities that depend only on elements and charges, kept while these stay the same.

    Raises
    ------
    ValueError
        If an atomic number has no reference energy.
    """

    def __init__(
        self, graph: Graph, part: Part | None, references: NDArray[np.float64], mean: float
    ) -> None:
        self._given = Versions(graph.numbers, graph.system, graph.charge)
        self._part = part
        numbers, system, charge = (
            tensor.numpy() for tensor in (graph.numbers, graph.system, graph.charge)
        )
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(references):
            raise ValueError(
                f"atomic numbers are {numbers.min()} to {numbers.max()}: expected 0 to "
                f"{len(references) - 1}"
            )
        self.numbers = np.ascontiguousarray(numbers, np.int64)
        sizes = np.bincount(system, minlength=len(charge)) if part is None else [part.atoms]
        self.sizes = np.asarray(sizes)[system]
        self.shares = references[numbers] + mean / self.sizes
        self.system, self.charge = system, charge
        self.charge_factors = 1 + 0.1 * charge[system]
        self._systems: list[NDArray[np.intp]] | None = None
        """Atoms of each of several systems."""
        if len(charge) != 1:
            order = np.argsort(system, kind="stable")
            ends = np.searchsorted(system[order], np.arange(1, len(charge)))
            self._systems = np.split(order, ends)[: len(charge)]

    def sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums (B, ...) over the atoms of each system of values (N, ...)."""
        if self._systems is None:
            return values.sum(0, keepdims=True)
        found = [values[atoms].sum(0) for atoms in self._systems]
        return np.array(found).reshape(-1, *values.shape[1:])

    def serves(self, graph: Graph, part: Part | None) -> bool:
        """Whether the graph holds the same, unchanged tensors, of the same part."""
        return part == self._part and self._given.are(graph.numbers, graph.system, graph.charge)


class NeighborMemory:
    """Neighbours by receiver, kept as long as graphs hold the same list."""

    def __init__(self, graph: Graph, part: Part | None) -> None:
        self._given = Versions(graph.edge_index, graph.edge_shift)
        self._cell, self._lattice = Versions(graph.cell), graph.cell.clone()
        self._part = part
        self.neighbors = pack_neighbors(graph)

    def serves(self, graph: Graph, part: Part | None) -> bool:
        """Whether the graph holds the same list, for the same part."""
        return (
            part == self._part
            and self._given.are(graph.edge_index, graph.edge_shift)
            and (self._cell.are(graph.cell) or torch.equal(graph.cell, self._lattice))
        )
