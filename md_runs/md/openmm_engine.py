"""OpenMM's side of the loop: integrators, constant pressure, checkpoints.

openmm is imported where it is used, after torch.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from numpy.typing import NDArray

from ...models.units import bar_in_ev_per_angstrom3, kj_per_mol_in_ev, nm_in_angstrom
from ..runs.folder import Restart
from ..runs.settings import MDSettings
from ..runs.structures import runnable
from .doubt import check_doubt, doubt_of
from .engine import BreakdownError, Sample, frame_properties, set_state, trouble_with
from .ensembles import thermalizes_rigid_motion
from .openmm_barostat import STRIDE, MonteCarloBarostat, molecular_pressure
from .openmm_system import (
    check_boundaries,
    choose_force_engine,
    choose_platform,
    fixed_atoms,
    learned_system,
    mixed_system,
    read_topology,
    reduced,
    require_openmm,
)
from .velocities import degrees_of_freedom, temperature_of, thermalize

if TYPE_CHECKING:
    import openmm

Array = NDArray[np.float64]

SECONDS_AT_ONCE = 0.2
"""Time of a batch of steps, s: Ctrl-C may take that long."""
CONSTRAINT_TOLERANCE = 1e-6
VELOCITY = 1e3 * units.fs / nm_in_angstrom
"""A per ASE time unit, in nm/ps."""


class OpenMMEngine:
    """A structure in an OpenMM Context.

    Parameters
    ----------
    atoms
        With a `PotentialCalculator`, whose potential runs; a copy is taken.
    settings
        Options of the run.
    topology
        The PDB or mmCIF file of the structure, for ``ml_atoms``.

    Raises
    ------
    ValueError
        If something does not fit, or OpenMM or the platform is not there.
    """

    columns: tuple[str, ...]

    def __init__(self, atoms: Atoms, settings: MDSettings, topology: Path | None) -> None:
        require_openmm()
        import openmm

        calculator = atoms.calc
        if not hasattr(calculator, "potential"):
            raise ValueError(
                "--engine openmm takes the potential of a PotentialCalculator, but the structure "
                f"has {type(calculator).__name__}"
            )
        if calculator.dispersion is not None:
            raise ValueError(
                f"--dispersion {calculator.dispersion.functional} is not for --engine openmm, "
                "which runs the network alone: use --engine ase"
            )
        check_doubt(calculator, settings.doubt)
        check_boundaries(atoms)
        platform = choose_platform(settings, calculator.device)
        force = choose_force_engine(settings, calculator.device, platform)
        self.settings = dataclasses.replace(settings, platform=platform, engine_force=force)
        self.atoms = reduced(runnable(atoms))
        if settings.ml_atoms is None:
            prepared = learned_system(self.atoms, calculator, force)
        elif topology is None:
            raise ValueError("--ml-atoms needs the PDB or mmCIF file of the structure")
        else:
            found, _ = read_topology(topology)
            prepared = mixed_system(found, self.atoms, calculator, settings, force)
            system = prepared.system
            masses = [system.getParticleMass(k)._value for k in range(len(self.atoms))]
            self.atoms.set_masses(masses)
            self.atoms.info.pop("charge", None)  # that of the chosen atoms, not of all
        self.step_number = 0
        self._molecules = prepared.molecules
        self._constraints = prepared.constraints
        self._masses = np.array(self.atoms.get_masses())
        self._inverse_masses = 1.0 / self._masses
        self._inverse_masses[fixed_atoms(self.atoms)] = 0.0
        self._periodic = bool(self.atoms.pbc.all())
        self._langevin = settings.ensemble != "nve"
        self._rng = np.random.Generator(np.random.PCG64(settings.seed))
        self._rigid = thermalizes_rigid_motion(settings)
        self.freedom = degrees_of_freedom(self.atoms, rigid=self._rigid)
        self.freedom -= self._constraints
        # Where the potential describes all atoms.
        whole = settings.ml_atoms is None
        self._calculator = calculator
        self._kept = frame_properties(calculator, bool(self.atoms.pbc.any())) if whole else ()
        self._barostat = self._make_barostat() if settings.ensemble == "npt" else None
        self._pace = SECONDS_AT_ONCE
        self.columns = (
            *(() if self._langevin else ("conserved_ev",)),
            "temperature_k",
            *(("pressure_bar", "volume_a3") if self._periodic else ()),
            *(("doubt_ev_per_a",) if settings.doubt is not None else ()),
        )
        self._integrator = self._make_integrator()
        try:
            self._context = _context(prepared.system, self._integrator, platform)
            # A second one asks for energies elsewhere without disturbing the run.
            self._probe = _context(prepared.system, openmm.VerletIntegrator(1e-3), platform)
            self._warm_up()
        except openmm.OpenMMException as error:  # such as a box too small for the force field
            raise ValueError(f"OpenMM cannot run this: {error}") from error

    def _make_integrator(self) -> openmm.Integrator:
        import openmm

        timestep = self.settings.timestep * 1e-3
        if not self._langevin:
            integrator = openmm.VerletIntegrator(timestep)
        else:
            integrator = openmm.LangevinMiddleIntegrator(
                self.settings.temperature, 1e3 / self.settings.thermostat_time, timestep
            )
            # 0 would have OpenMM draw one.
            integrator.setRandomNumberSeed(1 + self.settings.seed % (2**31 - 2))
        integrator.setConstraintTolerance(CONSTRAINT_TOLERANCE)
        return integrator

    def _make_barostat(self) -> MonteCarloBarostat:
        return MonteCarloBarostat(
            self._molecules,
            self.settings.temperature,
            self.settings.pressure * bar_in_ev_per_angstrom3,
            self.settings.barostat == "anisotropic",
            float(self.atoms.get_volume()),
        )

    def _warm_up(self) -> None:
        """Evaluate until the numbers are those of every later evaluation, to the last bit."""
        for context in (self._context, self._probe):
            _place(context, self.atoms.positions, self._box())
            for _ in range(3):
                state = context.getState(getEnergy=True, getForces=True)
        energy = state.getPotentialEnergy()._value
        forces = np.array(state.getForces(asNumpy=True)._value)
        if not (np.isfinite(energy) and np.isfinite(forces).all()):
            raise ValueError(
                f"the energy ({energy} kJ/mol) or a force of this structure is no number: are two "
                "atoms in one place?"
            )

    def begin(self) -> None:
        """Minimise if asked, then draw velocities, unless the structure's own are wanted."""
        import openmm

        settings, atoms, context = self.settings, self.atoms, self._context
        if self._constraints:
            context.applyConstraints(CONSTRAINT_TOLERANCE)
        if settings.minimize:
            openmm.LocalEnergyMinimizer.minimize(context)
        if settings.minimize or self._constraints:
            moved = self._positions()
            if not np.isfinite(moved).all():
                raise BreakdownError(0, "the minimisation ended in positions that are no numbers")
            atoms.arrays["positions"][:] = moved
        if not settings.keep_velocities:
            thermalize(atoms, settings.temperature, self._rng, rigid=self._rigid)
        velocities = self._allowed(atoms.get_velocities())
        if self._constraints and not settings.keep_velocities:
            atoms.arrays["momenta"] = self._masses[:, None] * velocities
            found = temperature_of(atoms, self.freedom, rigid=self._rigid)
            velocities *= np.sqrt(settings.temperature / found) if found > 0 else 0.0
        atoms.arrays["momenta"] = self._masses[:, None] * velocities
        if not self._langevin:  # OpenMM's Verlet keeps velocities of half a step before
            velocities = self._allowed(velocities - self._half_kick(self._forces()))
        context.setVelocities(velocities * VELOCITY)

    def restore(self, restart: Restart) -> None:
        """Go on from a restart.

        Raises
        ------
        ValueError
            If it was written by another engine, platform or version of OpenMM.
        """
        import openmm

        set_state(self.atoms, restart.arrays)
        state = restart.state
        self.step_number = int(state["step"])
        self.freedom = int(state["freedom"])
        self._rng.bit_generator.state = state["rng"]
        if self._barostat is not None:
            self._barostat.restore(state["barostat"])
        try:
            self._context.loadCheckpoint(restart.arrays["checkpoint"].tobytes())
        except (KeyError, openmm.OpenMMException) as error:
            raise ValueError(
                f"the restart is not one of OpenMM's platform {self.settings.platform} and the "
                f"version installed ({openmm.version.version}): {error}"
            ) from None

    def advance(self, most: int) -> None:
        """As many steps as fit into a moment, then a move of the barostat if one is due."""
        import openmm

        number = min(most, max(1, int(SECONDS_AT_ONCE / self._pace)))
        if self._barostat is not None:
            number = min(number, STRIDE - self.step_number % STRIDE)
        before = self._context.createCheckpoint()
        began = time.perf_counter()
        try:
            self._integrator.step(number)
            trouble = self._trouble()
        except openmm.OpenMMException as error:
            trouble = str(error).splitlines()[0]
        if trouble:
            raise self._breakdown(before, number, trouble)
        self._pace = (time.perf_counter() - began) / number
        self.step_number += number
        if self._barostat is not None and self.step_number % STRIDE == 0:
            moved = self._barostat.move(
                self._positions(), self._current_box(), self._energy, self._rng
            )
            if moved is not None:
                _place(self._context, *moved)

    def _trouble(self) -> str:
        state = self._context.getState(getPositions=True, getVelocities=True)
        if not np.isfinite(state.getPositions(asNumpy=True)._value).all():
            return "a position is no number"
        velocities = np.array(state.getVelocities(asNumpy=True)._value) / VELOCITY
        return trouble_with(velocities, self.settings.timestep)

    def _breakdown(self, before: bytes, number: int, trouble: str) -> BreakdownError:
        """Do the steps once more, one by one, to find the first that goes wrong."""
        import openmm

        self._context.loadCheckpoint(before)
        for step in range(self.step_number + 1, self.step_number + number + 1):
            try:
                self._integrator.step(1)
                found = self._trouble()
            except openmm.OpenMMException as error:
                found = str(error).splitlines()[0]
            if found:
                return BreakdownError(step, found)
        return BreakdownError(self.step_number + number, trouble)

    def sample(self) -> Sample:
        """The present moment: one more evaluation, and two for the pressure of a box."""
        state = self._context.getState(getEnergy=True, getForces=True)
        forces = _forces(state)
        frame = self._frame(forces)
        potential = float(state.getPotentialEnergy()._value) * kj_per_mol_in_ev
        results = {"energy": potential, "forces": forces}
        for name in self._kept:
            results[name] = self._calculator.get_property(name, frame)
        frame.calc = SinglePointCalculator(frame, **results)
        found = Sample(
            frame=frame,
            potential_ev=potential,
            kinetic_ev=float(frame.get_kinetic_energy()),
            temperature_k=temperature_of(frame, self.freedom, rigid=self._rigid),
        )
        if not self._langevin:
            found.conserved_ev = found.potential_ev + found.kinetic_ev
        if self._periodic:
            pressure = molecular_pressure(
                frame.positions,
                frame.arrays["momenta"],
                self._masses,
                frame.cell.array,
                self._energy,
                self._molecules,
            )
            found.pressure_bar = pressure / bar_in_ev_per_angstrom3
            found.volume_a3 = float(frame.get_volume())
        if self.settings.doubt is not None:
            found.forces_std = self._calculator.get_property("forces_std", frame)
            found.doubt_ev_per_a = doubt_of(found.forces_std)
        return found

    def restart(self) -> Restart:
        """OpenMM's checkpoint, and positions, momenta and cell for other programs."""
        frame = self._frame(None if self._langevin else self._forces())
        state: dict[str, Any] = {
            "step": self.step_number,
            "freedom": self.freedom,
            "rng": self._rng.bit_generator.state,
        }
        if self._barostat is not None:
            state["barostat"] = self._barostat.state()
        checkpoint = np.frombuffer(self._context.createCheckpoint(), dtype=np.uint8)
        arrays: dict[str, NDArray[Any]] = {
            "positions": frame.positions.copy(),
            "momenta": frame.arrays["momenta"].copy(),
            "cell": frame.cell.array.copy(),
            "checkpoint": checkpoint,
        }
        return Restart(arrays, json.loads(json.dumps(state)))

    def _frame(self, forces: Array | None) -> Atoms:
        """Positions, momenta and cell of one moment; Verlet's velocities lag by half a step."""
        state = self._context.getState(getPositions=True, getVelocities=True)
        velocities = np.array(state.getVelocities(asNumpy=True)._value) / VELOCITY
        frame = self.atoms.copy()
        frame.arrays["positions"][:] = _angstrom(state.getPositions(asNumpy=True))
        if self._periodic:
            frame.set_cell(_angstrom(state.getPeriodicBoxVectors(asNumpy=True)))
        if not self._langevin:
            assert forces is not None
            velocities = velocities + self._half_kick(forces)
            velocities = self._allowed(velocities, frame.positions)
        frame.arrays["momenta"] = self._masses[:, None] * velocities
        return frame

    def _half_kick(self, forces: Array) -> Array:
        """Change of velocities (ASE's units) by forces (eV/A) in half a time step."""
        half = 0.5 * self.settings.timestep * units.fs
        return np.asarray(half * forces * self._inverse_masses[:, None])

    def _allowed(self, velocities: Array, positions: Array | None = None) -> Array:
        """Velocities that constraints leave as they are."""
        if not self._constraints:
            return velocities
        _place(self._probe, self._positions() if positions is None else positions, None)
        self._probe.setVelocities(velocities * VELOCITY)
        self._probe.applyVelocityConstraints(CONSTRAINT_TOLERANCE)
        state = self._probe.getState(getVelocities=True)
        return np.array(state.getVelocities(asNumpy=True)._value) / VELOCITY

    def _positions(self) -> Array:
        return _angstrom(self._context.getState(getPositions=True).getPositions(asNumpy=True))

    def _forces(self) -> Array:
        return _forces(self._context.getState(getForces=True))

    def _current_box(self) -> Array:
        return _angstrom(self._context.getState().getPeriodicBoxVectors(asNumpy=True))

    def _energy(self, positions: Array, box: Array) -> float:
        """Potential energy of other positions in another box, eV."""
        _place(self._probe, positions, box)
        state = self._probe.getState(getEnergy=True)
        return float(state.getPotentialEnergy()._value) * kj_per_mol_in_ev

    def _box(self) -> Array | None:
        return self.atoms.cell.array if self._periodic else None


def _context(
    system: openmm.System, integrator: openmm.Integrator, platform: str
) -> openmm.Context:
    import openmm

    properties = {}
    if platform == "CPU":  # otherwise sums depend on the order in which threads finish
        properties = {"Threads": str(torch.get_num_threads()), "DeterministicForces": "true"}
    found = openmm.Platform.getPlatformByName(platform)
    return openmm.Context(system, integrator, found, properties)


def _place(context: openmm.Context, positions: Array, box: Array | None) -> None:
    if box is not None:
        context.setPeriodicBoxVectors(*(box / nm_in_angstrom))
    context.setPositions(positions / nm_in_angstrom)


def _angstrom(quantity: Any) -> Array:
    return np.array(quantity._value, dtype=np.float64) * nm_in_angstrom


def _forces(state: openmm.State) -> Array:
    """eV/A."""
    forces = np.array(state.getForces(asNumpy=True)._value)
    return forces * (kj_per_mol_in_ev / nm_in_angstrom)
