"""What integrates a run: the interface that the loop drives, and ASE's side of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator

from ..models.units import bar_in_ev_per_angstrom3
from .barostat import estimate_compressibility, pressure_of
from .ensembles import Integrator, check_ensemble, thermalizes_rigid_motion
from .run_folder import RESTART, START, Restart
from .settings import MDSettings
from .velocities import temperature_of, thermalize

LARGEST_STEP_ANGSTROM = 1.0
"""An atom that moves further in one step has left physics behind."""

Row = dict[str, float]


class BreakdownError(Exception):
    """The numbers went wrong in the step ``step``."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(reason)
        self.step = step


@dataclass
class Sample:
    """What the log and the trajectory show of one moment; None where it has no meaning."""

    frame: Atoms
    """Positions and momenta; energy, forces, stress or dipole in a `SinglePointCalculator`."""
    potential_ev: float
    kinetic_ev: float
    temperature_k: float
    conserved_ev: float | None = None
    pressure_bar: float | None = None
    volume_a3: float | None = None


class Engine(Protocol):
    """Advances a structure, resumably.

    Making one checks everything that can be wrong, before a folder is made. Then comes either
    `begin` or `restore`, once.
    """

    atoms: Atoms
    """The structure as the run starts from it."""
    settings: MDSettings
    """With everything decided that was left open."""
    step_number: int
    columns: tuple[str, ...]
    """Of the log, between ``total_ev`` and the end: the fields of `Sample` that have a value."""

    def begin(self) -> None:
        """Start at step 0 with new velocities."""

    def restore(self, restart: Restart) -> None:
        """Go on from what `restart` returned."""

    def advance(self, most: int) -> None:
        """At least one step and at most ``most``; a `BreakdownError` if they go wrong."""

    def sample(self) -> Sample:
        """The present moment."""

    def restart(self) -> Restart:
        """All that going on needs."""


def make_engine(atoms: Atoms, settings: MDSettings, topology: Path | None) -> Engine:
    """The engine that the settings name, for a structure with a calculator.

    Parameters
    ----------
    atoms
        ASE moves it in place; OpenMM takes a copy.
    settings
        What to run.
    topology
        The PDB or mmCIF file of the structure, which ``ml_atoms`` needs.

    Raises
    ------
    ValueError
        If structure and settings do not fit.
    """
    check_ensemble(atoms, settings)
    if settings.keep_velocities and not atoms.has("momenta"):
        raise ValueError("--keep-velocities: the structure has no velocities")
    if settings.engine == "openmm":
        from .openmm_engine import OpenMMEngine

        return OpenMMEngine(atoms, settings, topology)
    return ASEEngine(atoms, settings)


class ASEEngine:
    """ASE's integrators, one step at a time.

    Parameters
    ----------
    atoms
        With a calculator. Moved in place.
    settings
        What to run.
    """

    def __init__(self, atoms: Atoms, settings: MDSettings) -> None:
        _warm_up(atoms)
        if settings.ensemble == "npt" and settings.compressibility is None:
            found = estimate_compressibility(atoms)
            settings = dataclasses.replace(settings, compressibility=found)
        self.atoms = atoms
        self.settings = settings
        self.step_number = 0
        known = atoms.calc.implemented_properties
        self._has_stress = bool(atoms.pbc.all()) and "stress" in known
        self._has_dipole = not atoms.pbc.any() and "dipole" in known

    def begin(self) -> None:
        """Draw velocities, unless the structure's own are wanted."""
        rng = np.random.Generator(np.random.PCG64(self.settings.seed))
        if not self.settings.keep_velocities:
            rigid = thermalizes_rigid_motion(self.settings)
            thermalize(self.atoms, self.settings.temperature, rng, rigid=rigid)
        self._integrate(Integrator(self.atoms, self.settings, rng))

    def restore(self, restart: Restart) -> None:
        """Go on from a restart."""
        set_state(self.atoms, restart.arrays)
        rng = np.random.Generator(np.random.PCG64(self.settings.seed))
        self._integrate(Integrator(self.atoms, self.settings, rng, restart.state))

    def _integrate(self, integrator: Integrator) -> None:
        self._integrator = integrator
        self.step_number = integrator.step_number
        conserves = integrator.conserved is not None
        self.columns = (
            *(("conserved_ev",) if conserves else ()),
            "temperature_k",
            *(("pressure_bar", "volume_a3") if self._has_stress else ()),
        )

    def advance(self, most: int) -> None:
        """One step."""
        number = self.step_number + 1
        try:
            self._integrator.step()
            trouble = self._trouble()
        except ValueError as error:  # the calculator refuses positions that are no numbers
            raise BreakdownError(number, str(error)) from error
        if trouble:
            raise BreakdownError(number, trouble)
        self.step_number = number

    def sample(self) -> Sample:
        """The present moment; the calculator still knows it."""
        atoms = self.atoms
        potential = float(atoms.get_potential_energy())
        results = {"energy": potential, "forces": atoms.get_forces(apply_constraint=False)}
        found = Sample(
            frame=atoms.copy(),
            potential_ev=potential,
            kinetic_ev=float(atoms.get_kinetic_energy()),
            temperature_k=temperature_of(atoms, self._integrator.freedom),
            conserved_ev=self._integrator.conserved,
        )
        if self._has_stress:
            found.pressure_bar = pressure_of(atoms) / bar_in_ev_per_angstrom3
            found.volume_a3 = float(atoms.get_volume())
            results["stress"] = atoms.get_stress(apply_constraint=False)
        if self._has_dipole:
            results["dipole"] = atoms.get_dipole_moment()
        found.frame.calc = SinglePointCalculator(found.frame, **results)
        return found

    def restart(self) -> Restart:
        """Positions, momenta, the cell, and what the integrator remembers."""
        arrays = {
            "positions": self.atoms.positions.copy(),
            "momenta": self.atoms.arrays["momenta"].copy(),
            "cell": self.atoms.cell.array.copy(),
        }
        return Restart(arrays, self._integrator.state())

    def _trouble(self) -> str:
        energy = float(self.atoms.get_potential_energy())
        if not np.isfinite(energy):
            return f"an energy or a velocity is no number (energy {energy} eV)"
        return trouble_with(self.atoms.get_velocities(), self.settings.timestep)


def trouble_with(velocities: Any, timestep: float) -> str:
    """What is wrong with velocities (N, 3), in ASE's units; empty if nothing is.

    Parameters
    ----------
    velocities
        In A per ASE time unit.
    timestep
        fs.
    """
    speeds = np.linalg.norm(velocities, axis=1)
    moved = float(speeds.max()) * timestep * units.fs
    if not np.isfinite(moved):
        return "an energy or a velocity is no number"
    if moved > LARGEST_STEP_ANGSTROM:
        return f"atom {int(speeds.argmax())} moves {moved:.3g} A in one step"
    return ""


def set_state(atoms: Atoms, arrays: dict[str, Any]) -> None:
    """Give a structure the positions, momenta and cell of a restart.

    Raises
    ------
    ValueError
        If the restart is that of another structure.
    """
    # Set directly: constraints would adjust what was saved after they had done so.
    for name in ("positions", "momenta"):
        if arrays[name].shape != atoms.positions.shape:
            raise ValueError(
                f"{RESTART} and {START} hold different structures: the folder is damaged"
            )
    atoms.set_cell(arrays["cell"])
    atoms.arrays["positions"][:] = arrays["positions"]
    atoms.arrays["momenta"] = np.array(arrays["momenta"])


def _warm_up(atoms: Atoms) -> None:
    """Evaluate until the numbers are those of every later evaluation, to the last bit.

    TorchScript runs its first call unoptimised, and rounds otherwise from the second on: a run
    that was resumed would differ from one that was not.
    """
    for _ in range(3):
        atoms.calc.reset()
        atoms.get_forces()
        atoms.get_potential_energy()
