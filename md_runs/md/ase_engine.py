"""ASE's side of the loop: its integrators, one step at a time."""

from __future__ import annotations

import dataclasses

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from ...models.units import bar_in_ev_per_angstrom3
from ..runs.folder import Restart
from ..runs.settings import MDSettings
from ..runs.structures import runnable
from .barostat import estimate_compressibility, pressure_of
from .doubt import check_doubt, doubt_of
from .engine import BreakdownError, Sample, frame_properties, set_state, trouble_with
from .ensembles import Integrator, take_velocities, thermalizes_rigid_motion
from .velocities import temperature_of, thermalize


class ASEEngine:
    """ASE's integrators, one step at a time.

    Parameters
    ----------
    atoms
        With a calculator. Moved in place.
    settings
        Options of the run.
    """

    def __init__(self, atoms: Atoms, settings: MDSettings) -> None:
        check_doubt(atoms.calc, settings.doubt)
        warm_up(atoms)
        if settings.ensemble == "npt" and settings.compressibility is None:
            found = estimate_compressibility(atoms)
            settings = dataclasses.replace(settings, compressibility=found)
        self.atoms = atoms
        self.settings = settings
        self.step_number = 0
        self._rigid = thermalizes_rigid_motion(settings)
        known = atoms.calc.implemented_properties
        self._has_stress = bool(atoms.pbc.all()) and "stress" in known
        self._kept = frame_properties(atoms.calc, bool(atoms.pbc.any()))

    def begin(self) -> None:
        """Draw velocities, unless the structure's own are wanted."""
        rng = np.random.Generator(np.random.PCG64(self.settings.seed))
        if self.settings.keep_velocities:
            take_velocities(self.atoms, self.settings)
        else:
            thermalize(self.atoms, self.settings.temperature, rng, rigid=self._rigid)
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
            *(("doubt_ev_per_a",) if self.settings.doubt is not None else ()),
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
            frame=runnable(atoms),
            potential_ev=potential,
            kinetic_ev=float(atoms.get_kinetic_energy()),
            temperature_k=temperature_of(atoms, self._integrator.freedom, rigid=self._rigid),
            conserved_ev=self._integrator.conserved,
        )
        if self._has_stress:
            found.pressure_bar = pressure_of(atoms) / bar_in_ev_per_angstrom3
            found.volume_a3 = float(atoms.get_volume())
            results["stress"] = atoms.get_stress(apply_constraint=False)
        for name in self._kept:
            results[name] = atoms.calc.get_property(name, atoms)
        if self.settings.doubt is not None:
            found.forces_std = atoms.calc.get_property("forces_std", atoms)
            found.doubt_ev_per_a = doubt_of(found.forces_std)
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


def warm_up(atoms: Atoms) -> None:
    """Evaluate until the numbers are those of every later evaluation, to the last bit.

    TorchScript runs its first call unoptimised, and rounds otherwise from the second on: a run
    that was resumed would differ from one that was not.
    """
    for _ in range(3):
        atoms.calc.reset()
        atoms.get_forces()
        atoms.get_potential_energy()
