"""Potentials as ASE calculators."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import (
    Calculator,
    PropertyNotImplementedError,
    all_changes,
)
from numpy.typing import NDArray
from torch import nn

from ..models.checkpoint import load_potential
from ..models.committee import Committee, CommitteePrediction, combine, members_of
from ..models.graph import Graph, batch_graphs, displacements, within
from ..models.heads.properties import HEADS, NO_DIPOLE
from ..models.inference.backends import compile_potential, engine_of, why_not_fused
from ..models.inference.hessian import hessian
from ..models.inference.tables import TableInfo
from ..models.neighbors import NeighborList
from ..models.potential import Prediction, parse_dtype
from .checks import (
    UntrainedError,
    check_elements,
    check_energies,
    check_geometry,
    explain_failure,
    parse_backend,
    parse_charge,
    parse_device,
    symbols,
)

Checkpoint = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | nn.Module

VOIGT = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])
"""ASE's order of a symmetric tensor: xx, yy, zz, yz, xz, xy."""


class StressUndefinedError(PropertyNotImplementedError, ValueError):
    """Stress was asked of a structure that has no volume."""


class DipoleUndefinedError(PropertyNotImplementedError, ValueError):
    """The dipole was asked of a periodic structure."""


class PotentialCalculator(Calculator):
    """Energies and forces of a potential for ASE.

    Parameters
    ----------
    checkpoint
        A path, a registry name, a sequence of paths (a committee) or a loaded potential.
    device
        ``"auto"`` (CUDA where there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
    dtype
        ``"float32"`` or ``"float64"``, of weights and arithmetic. Geometry, sums over atoms
        and results are float64 either way.
    backend
        ``"fused"``: compiled kernels with radial tables, within 2e-5 eV/A of the network;
        ``"reference"``: plain torch operators, compiled by TorchScript; ``"auto"``: fused where
        it exists, in float32.
    skin
        Verlet skin of the neighbour list, Angstrom.
    charge
        Total charge, e; None takes ``atoms.info["charge"]``, and 0 where there is none.
    units
        The checkpoint's units of length and energy, where its file does not say:
        ``("angstrom", "kcal/mol")``.

    Raises
    ------
    ValueError
        For a checkpoint that cannot be read and for options that make no sense; at a
        calculation, for elements the model does not know and for impossible geometries.

    Notes
    -----
    Properties: energy and free_energy (eV), energies (eV, by atom), forces (eV/A), stress
    (eV/A^3, Voigt; periodic structures). A committee adds energy_std and forces_std, the
    sample standard deviations over its members.

    Of a checkpoint with such heads also dipole (3,), e A, and polarizability (3, 3), e^2 A^2/eV,
    of the network itself, when they are asked for. One whose ``metadata["trained_on"]`` lacks
    the energy gives no energies, forces or stress.
    """

    name = "tensormd"
    architectures: tuple[str, ...] = ()
    """Architectures that this class accepts; empty for all."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "float32",
        backend: str = "auto",
        skin: float = 1.0,
        charge: int | None = None,
        units: tuple[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.atoms: Atoms | None
        self.results: dict[str, Any]
        self.use_cache = False  # ASE's copy of the atoms before a calculation: it makes its own
        self.device = parse_device(device)
        self.dtype = parse_dtype(dtype)
        self.backend = parse_backend(backend)
        self.charge = None if charge is None else parse_charge(charge)
        potential = load_potential(checkpoint, units=units)
        self._check_architecture(potential)
        if potential is checkpoint:
            potential = copy.deepcopy(potential)  # the caller's own stays as it is
        self.potential = potential.to(self.device, self.dtype).eval().requires_grad_(False)
        why_not_fused(self.potential, self.backend)  # now, not at the first calculation
        self.neighbors = NeighborList(float(potential.cutoff), skin, self.device)
        self._arguments: dict[str, Any] = {
            "checkpoint": _describe_source(checkpoint, potential),
            "device": str(device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "backend": backend,
            "skin": skin,
            "charge": self.charge,
            "units": units,
        }
        self._compiled: list[nn.Module] | None = None
        self._charge_read: int | None = None
        members = members_of(potential)
        self._energies = ["energy", "free_energy", "forces", "stress"]
        if all(getattr(member, "has_atom_energies", True) for member in members):
            self._energies.append("energies")
        if isinstance(potential, Committee):
            self._energies += ["energy_std", "forces_std"]
        self.heads = [
            name for name in HEADS if all(name in getattr(m, "heads", ()) for m in members)
        ]
        """Properties that the model has a readout for, besides the energy."""
        self.implemented_properties = [*self._energies, *self.heads]
        try:
            check_energies(potential)
        except UntrainedError:
            self.implemented_properties = self.heads

    def _check_architecture(self, potential: nn.Module) -> None:
        found = str(potential.architecture)
        for name in found.split(" + "):
            if self.architectures and name not in self.architectures:
                raise ValueError(
                    f"{type(self).__name__} runs {' and '.join(self.architectures)}, but the "
                    f"checkpoint holds a {name}: use PotentialCalculator, which takes any"
                )

    # Evaluation

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] | None = None,
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Compute what is asked of ``atoms`` (ASE calls this when something has changed).

        Energies, forces and stress come together; None asks for them, or for all that a model
        without energies has.
        """
        structure = self.atoms if atoms is None else atoms
        if structure is None:
            raise ValueError("no structure: pass atoms to the calculator")
        energies, heads = self._wanted(properties)
        if properties and "stress" in properties:
            _check_stress(structure)
        if "dipole" in heads and structure.pbc.any():
            raise DipoleUndefinedError(NO_DIPOLE)
        kept: dict[str, Any] = {} if system_changes or self.atoms is None else self.results
        self.atoms, self.results = None, {}  # a failure leaves neither behind
        charge = self._charge_of(structure)
        graph = self._graph(structure, charge, self.neighbors, system_changes)
        results = dict(kept)
        if energies:
            results |= self._results(self._predict(graph), graph, [structure])[0]
        if heads:
            results |= self._properties(graph, heads, [structure])[0]
        self.results = results
        self.atoms, self._charge_read = structure.copy(), charge

    def evaluate(self, structures: Sequence[Atoms]) -> list[dict[str, Any]]:
        """Results of many structures in one batch, in the order given.

        Nothing that is kept for molecular dynamics is touched.
        """
        neighbors = NeighborList(self.neighbors.cutoff, 0.0, self.device)
        graphs = [self._graph(atoms, self._charge_of(atoms), neighbors) for atoms in structures]
        if not graphs:
            return []
        graph = batch_graphs(graphs)
        results: list[dict[str, Any]] = [{} for _ in structures]
        if "energy" in self.implemented_properties:
            results = self._results(self._predict(graph), graph, structures)
        if self.heads:
            others = self._properties(graph, self.heads, structures)
            results = [{**a, **b} for a, b in zip(results, others, strict=True)]
        return results

    def get_property(
        self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        """A result by name, computed if need be; see ASE."""
        if name in self._energies:
            check_energies(self.potential)
        return super().get_property(name, atoms, allow_calculation)

    def _wanted(self, properties: Sequence[str] | None) -> tuple[bool, list[str]]:
        """Whether energies are asked for, and which heads."""
        if properties is None:
            energies = "energy" in self.implemented_properties
            return energies, [] if energies else self.heads
        heads = [name for name in self.heads if name in properties]
        energies = len(heads) < len(set(properties))
        if energies:
            check_energies(self.potential)
        return energies, heads

    def get_hessian(self, atoms: Atoms | None = None) -> NDArray[np.float64]:
        """Second derivatives of the energy, (3N, 3N), eV/A^2."""
        structure = self.atoms if atoms is None else atoms
        if structure is None:
            raise ValueError("no structure: pass atoms to get_hessian")
        check_energies(self.potential)
        graph = self._graph(structure, self._charge_of(structure), self.neighbors)
        members = members_of(self.potential)
        matrices = [hessian(member.total_energy, graph) for member in members]  # type: ignore[arg-type]
        return torch.stack(matrices).mean(0).cpu().numpy()

    def _graph(
        self,
        atoms: Atoms,
        charge: int,
        neighbors: NeighborList,
        changes: Sequence[str] = tuple(all_changes),
    ) -> Graph:
        """The graph of a structure, checked as far as it has changed."""
        numbers, positions = atoms.arrays["numbers"], atoms.arrays["positions"]
        cell, pbc = atoms.cell.array, atoms.pbc
        if "numbers" in changes:
            check_elements(numbers, self.potential.elements)
        # One sum finds what is not finite; which atom it is takes longer.
        if "cell" in changes or "pbc" in changes or not math.isfinite(positions.sum()):
            check_geometry(positions, cell, pbc)
        return neighbors.graph(numbers, positions, cell, pbc, charge)

    def _predict(self, graph: Graph) -> Prediction | CommitteePrediction:
        with torch.set_grad_enabled(True):  # forces are gradients, under the caller's no_grad too
            predictions = [member(graph) for member in self._compiled_members()]
        return predictions[0] if len(predictions) == 1 else combine(predictions)

    def _results(
        self,
        prediction: Prediction | CommitteePrediction,
        graph: Graph,
        structures: Sequence[Atoms],
    ) -> list[dict[str, Any]]:
        """One dictionary of numpy results for each structure of a batch."""
        mean = prediction.mean if isinstance(prediction, CommitteePrediction) else prediction
        energy, energies, forces, virial = (x.cpu().numpy() for x in mean)
        if not math.isfinite(energy.sum() + forces.sum()) and not (
            np.isfinite(energy).all() and np.isfinite(forces).all()
        ):
            raise ValueError(_explain(graph))
        results, end = [], 0
        for b, atoms in enumerate(structures):
            part = slice(end, end + len(atoms))
            end = part.stop
            result = {
                "energy": float(energy[b]),
                "free_energy": float(energy[b]),
                "forces": forces[part],
            }
            if "energies" in self.implemented_properties:
                result["energies"] = energies[part]
            if atoms.pbc.any() and atoms.cell.volume > 0:
                result["stress"] = -virial[b][VOIGT] / atoms.cell.volume
            if isinstance(prediction, CommitteePrediction):
                result["energy_std"] = float(prediction.energy_std[b])
                result["forces_std"] = prediction.forces_std[part].cpu().numpy()
            results.append(result)
        return results

    def _properties(
        self, graph: Graph, names: Sequence[str], structures: Sequence[Atoms]
    ) -> list[dict[str, Any]]:
        """What the heads say of each structure of a batch; no dipole where it is periodic."""
        found = []
        with torch.no_grad():
            for member in members_of(self.potential):
                near, vectors = within(graph, float(member.cutoff))  # type: ignore[arg-type]
                found.append(member.properties(near, vectors, names=names))  # type: ignore[operator]
        means = {name: torch.stack([f[name] for f in found]).mean(0).cpu() for name in names}
        if not all(torch.isfinite(mean).all() for mean in means.values()):
            raise ValueError(_explain(graph))
        return [
            {
                name: mean[b].numpy()
                for name, mean in means.items()
                if name != "dipole" or not atoms.pbc.any()
            }
            for b, atoms in enumerate(structures)
        ]

    def _compiled_members(self) -> list[nn.Module]:
        if self._compiled is None:
            self._compiled = [
                compile_potential(member, self.backend) for member in members_of(self.potential)
            ]
        return self._compiled

    # What ASE asks of a calculator

    def _charge_of(self, atoms: Atoms) -> int:
        if self.charge is not None:
            return self.charge
        return parse_charge(atoms.info.get("charge", 0))

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """What the model reads and is not as it was at the last calculation, to the last bit."""
        old = self.atoms
        if old is None:
            return list(all_changes)
        changes = [
            name
            for name in ("numbers", "positions")
            if not _equal(atoms.arrays[name], old.arrays[name])
        ]
        if not _equal(atoms.pbc, old.pbc):
            changes.append("pbc")
        if atoms.pbc.any() and not _equal(atoms.cell.array, old.cell.array):
            changes.append("cell")
        if self._charge_of(atoms) != self._charge_read:
            changes.append("charge")
        return changes

    def todict(self, skip_default: bool = True) -> dict[str, Any]:
        """The arguments that make this calculator again."""
        defaults = {"device": "auto", "dtype": "float32", "backend": "auto", "skin": 1.0}
        return {
            key: value
            for key, value in self._arguments.items()
            if not skip_default or (value is not None and defaults.get(key) != value)
        }

    def info(self) -> dict[str, Any]:
        """What runs, where, and what is known of the weights."""
        members = self._compiled_members()
        return {
            **self._arguments,
            "architecture": self.potential.architecture,
            "members": len(members),
            "parameters": sum(p.numel() for p in self.potential.parameters()),
            "elements": symbols(self.potential.elements),
            "properties": self.implemented_properties,
            "cutoff_angstrom": self.potential.cutoff,
            "device": str(self.device),
            "backend": self.backend,
            "engine": " + ".join(sorted({engine_of(member) for member in members})),
            "why_not_fused": why_not_fused(self.potential, self.backend),
            "tables": [_tables(member) for member in members if hasattr(member, "table_info")],
            "metadata": self.potential.metadata,
        }

    def __getstate__(self) -> dict[str, Any]:
        # A compiled module cannot be copied or sent: it is made again where it is needed.
        return {**self.__dict__, "_compiled": None}


class TensorNetCalculator(PotentialCalculator):
    """A TensorNet (or torchmd-net's TensorNet2) as an ASE calculator.

    See `PotentialCalculator` for the parameters.

    Examples
    --------
    >>> from ase.build import molecule
    >>> atoms = molecule("CH3CH2OH")
    >>> atoms.calc = TensorNetCalculator("ethanol")
    >>> atoms.get_forces().shape
    (9, 3)
    """

    architectures = ("TensorNet", "TensorNet2")


class TDNCalculator(PotentialCalculator):
    """A TDN as an ASE calculator; see `PotentialCalculator` for the parameters."""

    architectures = ("TDN",)


def _tables(member: nn.Module) -> dict[str, float]:
    info: TableInfo = member.table_info  # type: ignore[assignment]
    return {
        "intervals": info.intervals,
        "error_ev_per_angstrom": info.error,
        "bound_ev_per_angstrom": info.bound,
    }


def _describe_source(checkpoint: Checkpoint, potential: nn.Module) -> Any:
    if isinstance(checkpoint, nn.Module):
        return potential.metadata.get("name", type(checkpoint).__name__)  # type: ignore[operator, union-attr]
    if isinstance(checkpoint, (str, os.PathLike)):
        return os.fspath(checkpoint)
    return [os.fspath(path) for path in checkpoint]


def _explain(graph: Graph) -> str:
    edges, vectors = graph.edge_index.cpu().numpy(), displacements(graph).cpu().numpy()
    return explain_failure(edges, vectors, graph.numbers.cpu().numpy())


def _check_stress(atoms: Atoms) -> None:
    if not atoms.pbc.any():
        raise StressUndefinedError("stress of a molecule: expected a periodic structure")
    if atoms.cell.volume == 0:
        raise StressUndefinedError(
            "stress needs a volume: give the cell a vector in its non-periodic direction too"
        )


def _equal(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.shape == b.shape and bool((a == b).all())
