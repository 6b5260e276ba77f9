"""Settings turned into ASE's integrators, and what of them a restart must hold."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.bussi import Bussi
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet

from ...models.units import bar_in_ev_per_angstrom3
from ..runs.settings import MDSettings
from .barostat import StochasticCellRescaling
from .velocities import degrees_of_freedom, remove_rigid_motion, rigid_energy

BAROSTAT_STRIDE = 10
"""Steps between two moves of the barostat: each costs one more evaluation of the model."""


class Integrator:
    """Advances atoms by one step at a time, resumably.

    Parameters
    ----------
    atoms
        With a calculator and momenta.
    settings
        Ensemble and its parameters.
    rng
        The only source of random numbers.
    state
        State to resume from, which `state` of an earlier integrator returned.
    """

    def __init__(
        self,
        atoms: Atoms,
        settings: MDSettings,
        rng: np.random.Generator,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.atoms = atoms
        self.rng = rng
        self.step_number = 0
        # Counted at the start only: a linear molecule that has bent since would count as bent.
        self.freedom = (
            degrees_of_freedom(atoms, rigid=thermalizes_rigid_motion(settings))
            if state is None
            else int(state["freedom"])
        )
        self._dynamics = _dynamics(atoms, settings, rng, self.freedom)
        self._barostat = _barostat(settings) if settings.ensemble == "npt" else None
        self._barostat_work = 0.0
        if state is not None:
            self._restore(state)

    def step(self) -> None:
        """One time step."""
        self._dynamics.step()
        self.step_number += 1
        if self._barostat is not None and self.step_number % BAROSTAT_STRIDE == 0:
            before = self._total_energy()
            self._barostat.apply(self.atoms, self.rng)
            self._barostat_work += self._total_energy() - before

    @property
    def conserved(self) -> float | None:
        """Conserved quantity of the equations of motion, eV; None for Langevin, which has none.

        The total energy, less what thermostat and barostat put into it.
        """
        if isinstance(self._dynamics, Langevin):
            return None
        heat = getattr(self._dynamics, "transferred_energy", 0.0)
        return self._total_energy() - float(heat) - self._barostat_work

    def state(self) -> dict[str, Any]:
        """State of a restart besides positions, momenta and the cell, as JSON data."""
        state: dict[str, Any] = {
            "step": self.step_number,
            "freedom": self.freedom,
            "rng": self.rng.bit_generator.state,
            "barostat_work": self._barostat_work,
        }
        if isinstance(self._dynamics, Bussi):
            state["transferred_energy"] = float(self._dynamics.transferred_energy)
        return dict(json.loads(json.dumps(state)))

    def _restore(self, state: dict[str, Any]) -> None:
        self.step_number = state["step"]
        self.rng.bit_generator.state = state["rng"]
        self._barostat_work = state["barostat_work"]
        if isinstance(self._dynamics, Bussi):
            self._dynamics.transferred_energy = state["transferred_energy"]

    def _total_energy(self) -> float:
        return float(self.atoms.get_potential_energy() + self.atoms.get_kinetic_energy())


def thermalizes_rigid_motion(settings: MDSettings) -> bool:
    """Whether the molecule as a whole is thermal: Langevin's noise acts on each atom."""
    return settings.ensemble != "nve" and settings.thermostat == "langevin"


def take_velocities(atoms: Atoms, settings: MDSettings) -> None:
    """Make the velocities of a structure those that a run starts with.

    Bussi's thermostat scales all velocities by one factor, so motion as a whole would take its
    share of the heat for good: it is stopped, with a warning. Langevin's noise thermalises it,
    and nve keeps it as it is.
    """
    if not _scales_velocities(settings):
        return
    whole, total = rigid_energy(atoms), float(atoms.get_kinetic_energy())
    if whole > 1e-9 * total:
        remove_rigid_motion(atoms)
        warnings.warn(
            f"--keep-velocities: {whole:.4g} eV of the kinetic energy ({total:.4g} eV) is motion "
            "as a whole, which bussi would keep for ever: it is stopped",
            UserWarning,
            stacklevel=2,
        )


def _scales_velocities(settings: MDSettings) -> bool:
    return settings.ensemble != "nve" and settings.thermostat == "bussi"


def check_ensemble(atoms: Atoms, settings: MDSettings) -> None:
    """Raise a ValueError if the structure cannot be run in this ensemble."""
    bussi = _scales_velocities(settings)
    if bussi and degrees_of_freedom(atoms, rigid=False) <= 0:
        raise ValueError(
            "--thermostat bussi scales internal motion, but this structure has no degree of "
            "freedom for it: "
            + (
                "its constraints hold every atom; free some"
                if atoms.constraints
                else "a single atom; use --thermostat langevin, or --ensemble nve"
            )
        )
    if bussi and settings.keep_velocities and atoms.has("momenta"):
        total = float(atoms.get_kinetic_energy())
        if total - rigid_energy(atoms) <= 1e-9 * total:
            raise ValueError(
                "--keep-velocities: apart from motion as a whole all atoms are at rest, and bussi "
                "only scales velocities: draw them (without --keep-velocities), or use "
                "--thermostat langevin"
            )
    if settings.ensemble != "npt":
        return
    if not atoms.pbc.all():
        raise ValueError(
            "npt needs a structure that is periodic in all three directions: "
            f"pbc is {atoms.pbc.tolist()}; use --ensemble nvt"
        )
    if atoms.constraints:
        raise ValueError("npt moves every atom, but the structure holds constraints: use nvt")


def _dynamics(
    atoms: Atoms, settings: MDSettings, rng: np.random.Generator, freedom: int
) -> VelocityVerlet | Langevin | Bussi:
    timestep = settings.timestep * units.fs
    time = settings.thermostat_time * units.fs
    if settings.ensemble == "nve":
        return VelocityVerlet(atoms, timestep)
    if settings.thermostat == "langevin":
        return Langevin(
            atoms,
            timestep,
            temperature_K=settings.temperature,
            friction=1 / time,
            fixcm=False,  # fixing it does not sample the canonical distribution
            rng=rng,
        )
    bussi = Bussi(atoms, timestep, settings.temperature, time, rng=rng)
    # ASE counts 3 N degrees of freedom; those of the whole are at rest and stay so. With the
    # 9 atoms of ethanol the inner ones would come out at 386 K instead of 300 K.
    bussi.ndof = freedom
    bussi.target_kinetic_energy = 0.5 * freedom * units.kB * settings.temperature
    return bussi


def _barostat(settings: MDSettings) -> StochasticCellRescaling:
    if settings.compressibility is None:
        raise ValueError("no compressibility: estimate it before the run starts")
    return StochasticCellRescaling(
        temperature=settings.temperature,
        pressure=settings.pressure * bar_in_ev_per_angstrom3,
        compressibility=settings.compressibility / bar_in_ev_per_angstrom3,
        time=settings.barostat_time * units.fs,
        timestep=BAROSTAT_STRIDE * settings.timestep * units.fs,
    )
