"""Two programs with the same weights, each evaluating energy and forces of positions."""

from __future__ import annotations

import contextlib
import io
import logging
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from ase import Atoms
from torch import Tensor, nn

from ...calculators import PotentialCalculator, TensorNetCalculator
from ...models import NeighborList, load_potential
from ...models.graph import Graph
from .systems import AMPLITUDE, Array

MODES = ("eager", "torchscript", "compile")
"""Ways to run torchmd-net's model."""


@dataclass(frozen=True)
class Contestant:
    """A program and how it runs; plain data, so that another process can be told."""

    program: str
    """``tensormd``, ``tensormd-graph``, ``torchmdnet`` or ``torchmdnet-ase``."""
    checkpoint: str
    """In the program's own format."""
    device: str = "cpu"
    dtype: str = "float32"
    backend: str = "auto"
    """Backend of tensormd."""
    units: tuple[str, str] | None = None
    """Units of the checkpoint of tensormd, where its file does not state them."""
    mode: str = "eager"
    """Mode of torchmd-net: one of `MODES`."""
    max_neighbors: int = 64
    """Places of torchmd-net for the neighbours of each atom, itself included."""
    energy_in_ev: float = 1.0
    """Energy unit of torchmd-net's model."""


class Program(Protocol):
    """A program that is timed."""

    def load(self, atoms: Atoms) -> None:
        """Take a structure."""

    def step(self, positions: Array) -> None:
        """Energy and forces at positions (N, 3), Angstrom."""

    def results(self) -> tuple[float, Array]:
        """Energy, eV, and forces, eV/Angstrom, of the last step."""


def make_program(contestant: Contestant, atoms: Atoms) -> Program:
    """The program, ready to load structures of the elements of ``atoms``."""
    match contestant.program:
        case "tensormd":
            return TensormdAse(contestant)
        case "tensormd-graph":
            return TensormdGraph(contestant)
        case "torchmdnet":
            return PeerModel(contestant, atoms)
        case "torchmdnet-ase":
            return PeerAse(contestant)
    raise ValueError(f"no program is called {contestant.program!r}")


def make_calculator(contestant: Contestant) -> PotentialCalculator:
    """The calculator that users of tensormd run."""
    potential = load_potential(contestant.checkpoint, units=contestant.units)
    known = potential.architecture in TensorNetCalculator.architectures
    return (TensorNetCalculator if known else PotentialCalculator)(
        potential,
        device=contestant.device,
        dtype=contestant.dtype,
        backend=contestant.backend,
        charge=0,
    )


class TensormdAse:
    """``atoms.get_forces()``: neighbour list, adapter and all."""

    def __init__(self, contestant: Contestant) -> None:
        self.calculator = make_calculator(contestant)
        self.atoms = Atoms()
        self.evaluating = 0.0
        """Seconds spent so far in evaluations of graphs; the rest is the adapter's."""
        evaluator = self.calculator.evaluator
        evaluate = evaluator.evaluate

        def timed(graph: Graph) -> Any:
            began = time.perf_counter()
            found = evaluate(graph)  # it looks at the results: a GPU has finished
            self.evaluating += time.perf_counter() - began
            return found

        evaluator.evaluate = timed  # type: ignore[method-assign]

    def load(self, atoms: Atoms) -> None:
        """Take a structure."""
        self.atoms = atoms.copy()
        self.atoms.calc = self.calculator

    def step(self, positions: Array) -> None:
        """Energy and forces."""
        self.atoms.positions = positions
        self.atoms.get_forces()

    def results(self) -> tuple[float, Array]:
        """Energy, eV, and forces, eV/Angstrom."""
        return self.atoms.get_potential_energy(), self.atoms.get_forces()


class TensormdGraph:
    """The evaluation alone, of a graph made beforehand; it does not move."""

    def __init__(self, contestant: Contestant) -> None:
        self.calculator = make_calculator(contestant)
        self.prediction: Any = None

    def load(self, atoms: Atoms) -> None:
        """Make the graph."""
        ready = self.calculator.neighbors
        neighbors = NeighborList(ready.cutoff, ready.skin, self.calculator.device)
        self.graph = neighbors.graph(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)

    def step(self, positions: Array) -> None:
        """Energy and forces of the graph."""
        self.prediction = self.calculator.evaluator.predict(self.graph)

    def results(self) -> tuple[float, Array]:
        """Energy, eV, and forces, eV/Angstrom."""
        return float(self.prediction.energy[0]), self.prediction.forces.cpu().numpy()


class PeerModel:
    """torchmd-net's model called as bare as can be: neighbour list inside, no adapter.

    Its species products are computed beforehand (``setup_for_inference``) where it can. The mode
    ``compile`` is what its own calculator and openmm-ml do: static shapes, inductor.
    """

    def __init__(self, contestant: Contestant, atoms: Atoms) -> None:
        self.contestant = contestant
        self.compiled = contestant.mode == "compile"
        self.dtype = getattr(torch, contestant.dtype)
        with peer_quiet():
            from torchmdnet.models.model import load_model

            model = load_model(
                contestant.checkpoint,
                derivative=not self.compiled,
                max_num_neighbors=contestant.max_neighbors,
                static_shapes=self.compiled,
            )
            model = model.eval().requires_grad_(False)
            prepare = getattr(model.representation_model, "setup_for_inference", None)
            if prepare is not None and self.dtype == torch.float32:  # it makes a float32 table
                numbers = torch.tensor(atoms.numbers)
                prepare(numbers, torch.zeros_like(numbers))
            model = model.to(contestant.device)
            self.model: Any = torch.jit.script(model) if contestant.mode == MODES[1] else model
        self.call: Any = self.model

    def load(self, atoms: Atoms) -> None:
        """Take a structure; compile for it where the mode says so."""
        device = self.contestant.device
        self.numbers = torch.tensor(atoms.numbers, device=device)
        self.batch = torch.zeros_like(self.numbers)
        self.charge = torch.zeros(1, dtype=self.dtype, device=device)
        periodic = atoms.pbc.any()
        self.box = self._tensor(atoms.cell.array) if periodic else None
        if self.compiled:
            with torch.no_grad():  # it must have run once before it can be compiled
                self._evaluate(self.model, self._tensor(atoms.positions))
            self.call = torch.compile(
                self.model,
                backend="inductor",
                dynamic=False,
                fullgraph=True,
                mode="reduce-overhead",
            )
            with peer_quiet():
                self.step(atoms.positions)

    def _tensor(self, values: Array) -> Tensor:
        return torch.tensor(values, dtype=self.dtype, device=self.contestant.device)

    def _evaluate(self, model: nn.Module, positions: Tensor) -> tuple[Tensor, Tensor]:
        return model(self.numbers, positions, batch=self.batch, box=self.box, q=self.charge)

    def step(self, positions: Array) -> None:
        """Energy and forces."""
        where = self._tensor(positions)
        if self.compiled:
            where.requires_grad_(True)
            energy: Any = self._evaluate(self.call, where)[0]
            energy.backward()
            assert where.grad is not None
            self.energy, self.forces = energy, -where.grad
        else:
            self.energy, self.forces = self._evaluate(self.call, where)

    def results(self) -> tuple[float, Array]:
        """Energy, eV, and forces, eV/Angstrom."""
        unit = self.contestant.energy_in_ev
        forces = self.forces.detach().cpu().numpy().astype(np.float64)
        return self.energy.item() * unit, forces * unit


class PeerAse:
    """torchmd-net's own calculator for ASE."""

    def __init__(self, contestant: Contestant) -> None:
        with peer_quiet():
            from torchmdnet.calculators import TMDNETCalculator

            self.calculator = TMDNETCalculator(
                contestant.checkpoint,
                device=contestant.device,
                dtype=getattr(torch, contestant.dtype),
                compile=contestant.mode == "compile",
                max_num_neighbors=contestant.max_neighbors,
            )
        self.unit = contestant.energy_in_ev
        self.atoms = Atoms()

    def load(self, atoms: Atoms) -> None:
        """Take a structure, and compile for it where the mode says so."""
        self.atoms = atoms.copy()
        self.atoms.info["charge"] = 0
        self.atoms.calc = self.calculator
        with peer_quiet():
            self.atoms.get_forces()

    def step(self, positions: Array) -> None:
        """Energy and forces."""
        self.atoms.positions = positions
        self.atoms.get_forces()

    def results(self) -> tuple[float, Array]:
        """Energy, eV, and forces, eV/Angstrom."""
        forces = np.asarray(self.atoms.get_forces(), dtype=np.float64)
        return self.atoms.get_potential_energy() * self.unit, forces * self.unit


@contextlib.contextmanager
def peer_quiet() -> Iterator[None]:
    """torchmd-net, Warp and inductor tell what they do; stdout is for results."""
    with contextlib.suppress(ImportError):
        import warp

        for name, value in (("quiet", True), ("log_level", 40)):  # by version of Warp
            setattr(warp.config, name, value)
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def places_for_neighbors(atoms: Atoms, cutoff: float) -> int:
    """The ``max_num_neighbors`` that torchmd-net needs, the atom itself included.

    The most that any atom can have while atoms move as `Motion` has them.
    """
    neighbors = NeighborList(cutoff + 2 * AMPLITUDE)
    graph = neighbors.graph(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    counts = torch.bincount(graph.edge_index[0], minlength=len(atoms))
    return int(counts.max()) + 1


def fits_minimum_image(atoms: Atoms, cutoff: float) -> bool:
    """Whether torchmd-net's neighbour list is right for a cell.

    Lower triangular, with a diagonal of twice the cutoff, and periodic in all directions.
    """
    if not atoms.pbc.any():
        return True
    cell = atoms.cell.array
    return bool(
        atoms.pbc.all()
        and np.allclose(cell, np.tril(cell))
        and (np.diag(cell) >= 2 * cutoff).all()
        and cell[0, 0] >= 2 * max(abs(cell[1, 0]), abs(cell[2, 0]))
        and cell[1, 1] >= 2 * abs(cell[2, 1])
    )
