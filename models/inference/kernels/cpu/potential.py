"""What potentials that run as one compiled call have in common, whatever their network."""

from __future__ import annotations

import copy
import math
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ....graph import Graph, displacements, within
from ....potential import Potential, Prediction, assemble
from ...tables import build_table
from .compiled import kernel
from .edges import Pairs
from .pack import pack_pairs

_ONE_AT_A_TIME = threading.Lock()
_started_in: int | None = None
"""Process that started the threads of the kernels: a fork of it cannot use them."""


class FusedCPUPotential(nn.Module):
    """Energies, forces and virial of a potential, for inference on a CPU.

    Radial networks are replaced by tables (see `tabulated`), the derivatives are derived by
    hand, and there is no autograd tape. Geometry and sums over atoms are float64. Results do
    not depend on the number of threads, and repeat to the last bit.

    Parameters
    ----------
    potential
        Its dtype is that of the arithmetic.
    """

    engine = "fused CPU kernels"

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        self.table, self.table_info = build_table(potential)
        self.dtype = np.dtype(str(potential.dtype).removeprefix("torch."))
        self.cutoff = potential.cutoff
        self.unit = potential.length_in_angstrom
        self.energy_in_ev = potential.energy_in_ev
        scale = potential.atomic_scale
        self.scale, self.mean = float(scale.scale), float(scale.mean)
        self.factor = self.scale * self.energy_in_ev / self.unit
        """What takes the derivative of an output to eV/A."""
        self.references = scale.references.cpu().numpy()
        self.repulsion = copy.deepcopy(potential.repulsion)
        self._lock = threading.Lock()
        self._memory: Any = None
        self._composition: Composition | None = None

    def forward(self, graph: Graph) -> Prediction:
        """Energies, forces and virials of the systems of a graph."""
        with self._lock:
            prediction = self._run(graph)
        return prediction if self.repulsion is None else _sum(prediction, self._repulsion(graph))

    def _run(self, graph: Graph) -> Prediction:
        systems = len(graph.charge)
        known = self._composition
        if known is None or not known.serves(graph):
            known = self._composition = Composition(graph, self.references, self.mean)
        atoms = len(known.shares)
        forces = np.zeros((atoms, 3))
        virial = np.zeros((atoms, 3, 3))
        outputs = np.zeros(0)
        if atoms > 0:
            outputs = self._evaluate(graph, known, forces, virial)
        energies = (self.scale * outputs + known.shares) * self.energy_in_ev
        if systems == 1:
            total = virial.sum(0)
            return Prediction(
                torch.from_numpy(energies.sum(keepdims=True)),
                torch.from_numpy(energies),
                torch.from_numpy(forces),
                torch.from_numpy((0.5 * (total + total.T))[None]),
            )
        energy = torch.zeros(systems, dtype=torch.float64)
        virials = torch.from_numpy(0.5 * (virial + virial.transpose(0, 2, 1)))
        return Prediction(
            energy.index_add(0, graph.system, torch.from_numpy(energies)),
            torch.from_numpy(energies),
            torch.from_numpy(forces),
            torch.zeros_like(graph.cell).index_add(0, graph.system, virials),
        )

    def _evaluate(
        self,
        graph: Graph,
        composition: Composition,
        forces: NDArray[np.float64],
        virial: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Fill forces and virial; the outputs of the network, which the next call overwrites."""
        raise NotImplementedError

    def _call(self, step: Callable[..., None], threads: int, *arguments: Any) -> None:
        """Run a compiled step."""
        run = kernel(step, threads=_may_start_threads())
        with _exclusive():
            numba.set_num_threads(threads)
            run(*arguments)

    def _repulsion(self, graph: Graph) -> Prediction:
        assert self.repulsion is not None
        near, vectors = within(graph, self.repulsion.cutoff * self.unit)
        vectors = vectors.detach().requires_grad_(True)
        with torch.set_grad_enabled(True):
            energies = self.repulsion(near, vectors / self.unit) * self.energy_in_ev
            gradient = torch.autograd.grad([energies.sum()], [vectors])[0]
        return assemble(near, energies.detach(), vectors.detach(), gradient)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_memory": None, "_composition": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()


class Composition:
    """What depends on elements and charges alone, kept while graphs come with the same ones."""

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
        sizes = np.bincount(system, minlength=len(charge))
        self.shares = references[numbers] + (mean / np.maximum(sizes, 1))[system]
        self.charge_factors = 1 + 0.1 * charge[system]

    def serves(self, graph: Graph) -> bool:
        """Whether these are the very tensors it was made of."""
        return self._given.are(graph.numbers, graph.system, graph.charge)


class Versions:
    """Tensors as they were: the same ones later, if nothing was written to them."""

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors = tensors
        self._versions = [_version(tensor) for tensor in tensors]

    def are(self, *tensors: Tensor) -> bool:
        """Whether these are the same objects, as they were."""
        return all(
            new is old and _version(new) == version
            for new, old, version in zip(tensors, self._tensors, self._versions, strict=True)
        )


def _version(tensor: Tensor) -> float:
    """How often it was written to; not a number where torch does not count (inference mode)."""
    return math.nan if tensor.is_inference() else tensor._version


class Memory:
    """What is kept while the neighbour list stays the same: its rows, to begin with."""

    def __init__(self, graph: Graph, threads: int) -> None:
        self._list = Versions(graph.edge_index, graph.edge_shift)
        self._cell, self._lattice = Versions(graph.cell), graph.cell.clone()
        self.threads = threads
        shifts = displacements(graph._replace(positions=torch.zeros_like(graph.positions)))
        self.pairs: Pairs = pack_pairs(
            graph.edge_index.numpy(),
            graph.edge_shift.numpy(),
            shifts.detach().numpy(),
            len(graph.numbers),
        )

    def serves(self, graph: Graph, threads: int) -> bool:
        """Whether the neighbours are the very ones that it was made for."""
        return (
            threads == self.threads
            and self._list.are(graph.edge_index, graph.edge_shift)
            and (self._cell.are(graph.cell) or torch.equal(graph.cell, self._lattice))
        )


def threads_to_use() -> int:
    """As many as torch would use, if Numba has them."""
    return int(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))


def _may_start_threads() -> bool:
    """False in a fork of a process whose threads run already: they did not survive it."""
    global _started_in
    if _started_in is None:
        _started_in = os.getpid()
    return _started_in == os.getpid()


def _exclusive() -> AbstractContextManager[Any]:
    """A lock for the thread pools that end the process when two threads enter at once."""
    try:
        safe = numba.threading_layer() in ("omp", "tbb")
    except ValueError:  # not started yet
        safe = False
    return nullcontext() if safe else _ONE_AT_A_TIME


def _sum(first: Prediction, second: Prediction) -> Prediction:
    return Prediction(*(a + b for a, b in zip(first, second, strict=True)))
