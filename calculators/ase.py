"""Potentials as ASE calculators."""

from __future__ import annotations

import copy
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
    external_calculators,
    register_calculator_class,
)
from numpy.typing import NDArray
from torch import nn

from ..models.committee import Committee, members_of
from ..models.inference.heat_flux import HeatFlux
from ..models.neighbors import SKIN, same_values
from ..models.potential import parse_dtype
from ..models.quantities import HEADS, QUANTITIES, VOIGT
from .checks import UntrainedError, charge_of, check_energies, parse_charge
from .dispersion import Dispersion, refuse_twice
from .domain import DEFAULT, why_not
from .evaluator import Checkpoint, Evaluation, Evaluator, Structure


class StressUndefinedError(PropertyNotImplementedError, ValueError):
    """Stress was requested for a structure that has no volume."""


class DipoleUndefinedError(PropertyNotImplementedError, ValueError):
    """The dipole was requested for a periodic structure."""


class PotentialCalculator(Calculator):
    """Energies and forces of a potential for ASE.

    Parameters
    ----------
    checkpoint
        A path, a registry name, a sequence of paths (a committee) or a loaded potential. None:
        the potential that ships for neutral molecules of H, C, N, O, F, S and Cl, which refuses
        other structures.
    device
        ``"auto"`` (CUDA if available), ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
    dtype
        Precision of weights and arithmetic, ``"float32"`` or ``"float64"``. Geometry, sums over
        atoms and results are float64 either way.
    backend
        ``"fused"``: compiled kernels with radial tables, within 2e-5 eV/A of the network;
        ``"reference"``: plain torch operators, compiled by TorchScript; ``"auto"``: fused where
        it exists, in float32.
    skin
        Verlet skin of the neighbour list, Angstrom.
    charge
        Total charge, e; None reads ``atoms.info["charge"]``, or takes 0 if it is absent.
    units
        The checkpoint's units of length and energy, needed if its file does not state them, for
        example ``("angstrom", "kcal/mol")``.
    coulomb_cutoff
        Cutoff of a Coulomb energy of predicted charges (TensorNet2), Angstrom, with a reaction
        field beyond it, which periodic structures need; infinity: all pairs of a molecule; None:
        as in the checkpoint.
    dispersion
        Functional whose D3(BJ) dispersion is added, such as ``"wb97x"``: see `Dispersion`; for a
        potential trained on energies without dispersion. None: none.

    Raises
    ------
    ValueError
        If the checkpoint cannot be read or an option is invalid; in a calculation, if the model
        does not know an element or the geometry is impossible.

    Notes
    -----
    Properties: energy and free_energy (eV), energies (eV, per atom), forces (eV/A), stress
    (eV/A^3, Voigt; periodic structures) and, on request, stresses (N, 6), the atoms' shares in
    the stress, which sum to it. A committee adds energy_std and forces_std, the sample standard
    deviations over its members. With dispersion there are no energies and stresses of atoms.

    A checkpoint with the corresponding heads also gives dipole (3,), e A, and polarizability
    (3, 3), e^2 A^2/eV, on request, which the network itself computes, without tables. A TensorNet2
    also gives its charges (N,), e. A checkpoint whose ``metadata["trained_on"]`` lacks the energy
    gives no energies, forces or stress.
    """

    name = "tensormd"
    architectures: tuple[str, ...] = ()
    """Architectures that this class accepts; empty: all."""

    def __init__(
        self,
        checkpoint: Checkpoint | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "float32",
        backend: str = "auto",
        skin: float = SKIN,
        charge: int | None = None,
        units: tuple[str, str] | None = None,
        coulomb_cutoff: float | None = None,
        dispersion: str | None = None,
    ) -> None:
        super().__init__()
        self.atoms: Atoms | None
        self.results: dict[str, Any]
        self._last: Evaluation | None = None
        """What `results` come from, as long as they are those of `atoms`."""
        self._copied: Atoms | None = None
        """The last copy of a structure, whose cell the next one shares while it is the same."""
        self.use_cache = False  # ASE's copy of the atoms before a calculation: it makes its own
        self.charge = None if charge is None else parse_charge(charge)
        self._chosen = checkpoint is not None
        if checkpoint is None:
            checkpoint = DEFAULT
        self.coulomb_cutoff = coulomb_cutoff
        self.evaluator = Evaluator(
            checkpoint,
            device=device,
            dtype=dtype,
            backend=backend,
            skin=skin,
            units=units,
            coulomb_cutoff=coulomb_cutoff,
        )
        self.potential, self.neighbors = self.evaluator.potential, self.evaluator.neighbors
        self.device, self.backend = self.evaluator.device, self.evaluator.backend
        self.dtype = parse_dtype(dtype)
        self._check_architecture()
        self.dispersion = None if dispersion is None else Dispersion(dispersion)
        if self.dispersion is not None:
            refuse_twice(self.potential)
        self._arguments: dict[str, Any] = {
            "checkpoint": _describe_source(checkpoint, self.potential),
            "device": str(device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "backend": backend,
            "skin": skin,
            "charge": self.charge,
            "units": units,
            "coulomb_cutoff": coulomb_cutoff,
            "dispersion": None if self.dispersion is None else self.dispersion.functional,
        }
        self._charge_read: float | None = None
        self._energies, self.heads = _properties_of(self.potential)
        """Properties that come with the energy, and properties with their own readout."""
        if self.dispersion is not None:  # it has no shares of atoms
            self._energies = [n for n in self._energies if n not in ("energies", "stresses")]
        self.implemented_properties = [*self._energies, *self.heads]
        try:
            check_energies(self.potential)
        except UntrainedError:
            self.implemented_properties = self.heads

    @property
    def unbounded(self) -> bool:
        """Whether all pairs of a molecule interact, so that it cannot evaluate a cell."""
        return not np.isfinite(float(self.potential.cutoff))

    def _check_architecture(self) -> None:
        found = str(self.potential.architecture)
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
        """Compute properties of ``atoms`` (ASE calls this when something has changed).

        Energies, forces and stress are computed together. If ``properties`` is None, they are
        computed, or, for a model without energies, all properties that it has.

        Raises
        ------
        ValueError
            If the model does not know an element, the geometry is impossible, or a property is
            undefined for this structure or was not trained.
        """
        structure = self.atoms if atoms is None else atoms
        if structure is None:
            raise ValueError("no structure: pass atoms to the calculator")
        energies, heads = self._wanted(properties)
        if {"stress", "stresses"} & set(properties or ()):
            _check_stress(structure)
        for reason in filter(None, (QUANTITIES[name].not_periodic for name in heads)):
            if structure.pbc.any():
                raise DipoleUndefinedError(reason)
        if system_changes or self.atoms is None:
            self.reset()
        kept, last = self.results, self._last
        self.reset()  # a failure leaves nothing behind
        given = self._structure(structure)
        if {"numbers", "pbc", "charge"} & set(system_changes):
            self._refuse_undescribed(structure)
            self.evaluator.check_domain(structure)
        graph = self.evaluator.graph(given, system_changes)
        results = dict(kept)
        if energies:
            last = last or self._with_dispersion(self.evaluator.evaluate(graph), [given])
            asked = properties is None or "stresses" in properties
            with_stresses = asked and "stresses" in self._energies
            results |= self._results(last, [structure], with_stresses)[0]
        if heads:
            results |= _results_of_heads(self.evaluator.properties(graph, heads), [structure])[0]
        self.results, self._last = results, last
        self.atoms = self._copied = self._copy(structure)
        self._charge_read = given.charge

    def _copy(self, atoms: Atoms) -> Atoms:
        """A copy of a structure; ASE's own takes as long as all else here."""
        last = self._copied
        if (
            last is None
            or type(last) is not type(atoms)
            or atoms.constraints
            or last.constraints
            or not _equal(atoms.pbc, last.pbc)
            or not _equal(atoms.cell.array, last.cell.array)
        ):
            return atoms.copy()
        copied = copy.copy(last)
        copied.arrays = {name: array.copy() for name, array in atoms.arrays.items()}
        copied.info = dict(atoms.info)
        return copied

    def evaluate(self, structures: Sequence[Atoms]) -> list[dict[str, Any]]:
        """Compute the results of many structures, in the given order, in one batch.

        Fused kernels on a CPU run several batches side by side, in as many threads as torch has;
        each structure's results are those that it has alone, to the last bit. The state kept for
        molecular dynamics (results, neighbour list) does not change.
        """
        if len(structures) == 0:
            return []
        for atoms in structures:
            self._refuse_undescribed(atoms)
            self.evaluator.check_domain(atoms)
        given = [self._structure(atoms) for atoms in structures]
        results: list[dict[str, Any]] = [{} for _ in structures]
        if "energy" in self.implemented_properties:
            found = self._with_dispersion(self.evaluator.evaluate_many(given), given)
            results = self._results(found, structures, "stresses" in self._energies)
        if self.heads:
            of_heads = self.evaluator.properties(self.evaluator.batch(given), self.heads)
            others = _results_of_heads(of_heads, structures)
            results = [{**a, **b} for a, b in zip(results, others, strict=True)]
        return results

    def team(self) -> list[PotentialCalculator]:
        """Calculators for threads that work side by side, one each: see `Evaluator.team`."""
        team = []
        for evaluator in self.evaluator.team(self.neighbors.skin):
            twin = copy.copy(self)
            twin.evaluator, twin.neighbors = evaluator, evaluator.neighbors
            twin.reset()
            team.append(twin)
        return team

    def get_property(
        self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        """Return a property by its ASE name, computing it if necessary."""
        if name in self._energies:
            self._require_energies()
        return super().get_property(name, atoms, allow_calculation)

    def _refuse_undescribed(self, atoms: Atoms) -> None:
        """Raise a ValueError for a structure that nobody chose this model for."""
        if not self._chosen and (reason := why_not(atoms, self._charge_of(atoms))):
            raise ValueError(reason)

    def _wanted(self, properties: Sequence[str] | None) -> tuple[bool, list[str]]:
        """Whether energies are requested, and which heads."""
        if properties is None:
            energies = "energy" in self.implemented_properties
            return energies, [] if energies else self.heads
        heads = [name for name in self.heads if name in properties]
        energies = len(heads) < len(set(properties))
        if energies:
            self._require_energies()
        return energies, heads

    def _require_energies(self) -> None:
        if "energy" not in self.implemented_properties:
            check_energies(self.potential)

    def get_hessian(self, atoms: Atoms | None = None) -> NDArray[np.float64]:
        """Second derivatives of the energy, (3N, 3N), eV/A^2."""
        structure = self.atoms if atoms is None else atoms
        if structure is None:
            raise ValueError("no structure: pass atoms to get_hessian")
        self._require_energies()
        given = self._structure(structure)
        found = self.evaluator.hessian(self.evaluator.graph(given))
        return found if self.dispersion is None else found + self.dispersion.hessian(given)

    def get_heat_flux(self, atoms: Atoms | None = None) -> HeatFlux:
        """Heat flux of a structure with velocities, eV A / t with ASE's unit of time t.

        From the network itself, on images of the atoms several cutoffs away: exact, and slow.

        Raises
        ------
        ValueError
            If the potential has charges or dispersion, which reach further than that.
        """
        structure = self.atoms if atoms is None else atoms
        if structure is None:
            raise ValueError("no structure: pass atoms to get_heat_flux")
        self._require_energies()
        if self.dispersion is not None:
            raise ValueError(
                "there is no heat flux of the dispersion: make a calculator without it"
            )
        graph = self.evaluator.graph(self._structure(structure))
        masses = structure.get_masses()
        return self.evaluator.heat_flux(graph, structure.get_velocities(), masses)

    def _with_dispersion(self, found: Evaluation, given: Sequence[Structure]) -> Evaluation:
        return found if self.dispersion is None else self.dispersion.add(found, given)

    def _structure(self, atoms: Atoms) -> Structure:
        """The part of ``atoms`` that a potential reads."""
        arrays = atoms.arrays
        return Structure(
            arrays["numbers"],
            arrays["positions"],
            atoms.cell.array,
            atoms.pbc,
            self._charge_of(atoms),
        )

    def _charge_of(self, atoms: Atoms) -> int:
        return charge_of(atoms) if self.charge is None else self.charge

    def _results(
        self, found: Evaluation, structures: Sequence[Atoms], with_stresses: bool = True
    ) -> list[dict[str, Any]]:
        """Results under ASE's names, one dictionary per structure of a batch."""
        results, end = [], 0
        for b, atoms in enumerate(structures):
            part = slice(end, end + len(atoms))
            end = part.stop
            energy = float(found.energy[b])
            result = {"energy": energy, "free_energy": energy, "forces": found.forces[part]}
            if "energies" in self._energies:
                result["energies"] = found.energies[part]
            if atoms.pbc.any() and atoms.cell.volume > 0:
                result["stress"] = -found.virial[b][VOIGT] / atoms.cell.volume
                if with_stresses:
                    rows, columns = VOIGT
                    shares = found.virials[part, rows, columns]
                    result["stresses"] = -shares / atoms.cell.volume
            if found.energy_std is not None and found.forces_std is not None:
                result["energy_std"] = float(found.energy_std[b])
                result["forces_std"] = found.forces_std[part]
            results.append(result)
        return results

    # What ASE asks of a calculator

    def reset(self) -> None:
        """Forget the last structure and its results."""
        super().reset()
        self._last = None

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """Inputs of the model that changed since the last calculation, compared bit by bit."""
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
        """Arguments that recreate this calculator."""
        defaults = {"device": "auto", "dtype": "float32", "backend": "auto", "skin": SKIN}
        return {
            key: value
            for key, value in self._arguments.items()
            if not skip_default or (value is not None and defaults.get(key) != value)
        }

    def info(self) -> dict[str, Any]:
        """Options, engine, device, properties and metadata of the weights."""
        return {
            **self._arguments,
            **self.evaluator.info(),
            "properties": self.implemented_properties,
        }


class TensorNetCalculator(PotentialCalculator):
    """A TensorNet, a TensorNet2 or a QET as an ASE calculator.

    See `PotentialCalculator` for the parameters.

    Examples
    --------
    >>> from ase.build import molecule
    >>> atoms = molecule("CH3CH2OH")
    >>> atoms.calc = TensorNetCalculator("ethanol")
    >>> atoms.get_forces().shape
    (9, 3)
    """

    architectures = ("TensorNet", "TensorNet2", "QET")


class TDNCalculator(PotentialCalculator):
    """A TDN as an ASE calculator; see `PotentialCalculator` for the parameters."""

    architectures = ("TDN",)


# ase.db keeps this name and what `todict` gives: they make the calculator again.
if PotentialCalculator.name not in external_calculators:
    register_calculator_class(PotentialCalculator.name, PotentialCalculator)


def _properties_of(potential: nn.Module) -> tuple[list[str], list[str]]:
    """ASE's names of the properties that come with the energy, and of those from other heads."""
    members = members_of(potential)
    energies = ["energy", "free_energy", "forces", "stress", "stresses"]
    if all(getattr(member, "has_atom_energies", True) for member in members):
        energies.append("energies")
    if isinstance(potential, Committee):
        energies += ["energy_std", "forces_std"]
    heads = [name for name in HEADS if all(name in getattr(m, "heads", ()) for m in members)]
    return energies, heads


def _results_of_heads(
    found: dict[str, NDArray[np.float64]], structures: Sequence[Atoms]
) -> list[dict[str, Any]]:
    """Properties of each structure of a batch; periodic structures have no dipole."""
    ends = np.cumsum([len(atoms) for atoms in structures])[:-1]
    parts = {
        name: np.split(values, ends) if QUANTITIES[name].per_atom else values
        for name, values in found.items()
    }
    return [
        {
            name: part[b]
            for name, part in parts.items()
            if not (QUANTITIES[name].not_periodic and atoms.pbc.any())
        }
        for b, atoms in enumerate(structures)
    ]


def _describe_source(checkpoint: Checkpoint, potential: nn.Module) -> Any:
    if isinstance(checkpoint, nn.Module):
        return potential.metadata.get("name", type(checkpoint).__name__)  # type: ignore[operator, union-attr]
    if isinstance(checkpoint, (str, os.PathLike)):
        return os.fspath(checkpoint)
    return [os.fspath(path) for path in checkpoint]


def _check_stress(atoms: Atoms) -> None:
    if not atoms.pbc.any():
        raise StressUndefinedError("stress of a molecule: expected a periodic structure")
    if atoms.cell.volume == 0:
        raise StressUndefinedError(
            "stress needs a volume: give the cell a vector in its non-periodic direction too"
        )


def _equal(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.shape == b.shape and same_values(a, b)
