"""The interface of an engine, which the loop drives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from ase import Atoms, units

from ...models.quantities import QUANTITIES
from ..runs.folder import RESTART, START, Restart
from ..runs.settings import MDSettings

LARGEST_STEP_ANGSTROM = 1.0
"""An atom that moves further in one step has left physics behind."""

Row = dict[str, float]


IN_FRAMES = ("dipole", "charges")
"""Properties besides the energy and its derivatives that frames keep."""


def frame_properties(calculator: Any, periodic: bool) -> tuple[str, ...]:
    """Properties that a calculator predicts and frames keep; a cell has no dipole."""
    if periodic and getattr(calculator, "unbounded", False):
        return ()  # it cannot evaluate a cell; OpenMM's force was given a Coulomb cutoff
    return tuple(
        name
        for name in IN_FRAMES
        if name in calculator.implemented_properties
        and not (periodic and QUANTITIES[name].not_periodic)
    )


class BreakdownError(Exception):
    """The numbers went wrong in the step ``step``."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(reason)
        self.step = step


@dataclass
class Sample:
    """Quantities of one step in the log and the trajectory; None where one has no meaning."""

    frame: Atoms
    """Positions and momenta; energy, forces, stress, dipole, charges in a
    `SinglePointCalculator`."""
    potential_ev: float
    kinetic_ev: float
    temperature_k: float
    conserved_ev: float | None = None
    pressure_bar: float | None = None
    volume_a3: float | None = None
    doubt_ev_per_a: float | None = None
    forces_std: Any = None
    """Standard deviations over a committee (N, 3), eV/A, where doubt is watched."""


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
    """Columns of the log after ``total_ev``: the fields of `Sample` that have a value."""

    def begin(self) -> None:
        """Start at step 0 with new velocities."""

    def restore(self, restart: Restart) -> None:
        """Go on from what `restart` returned."""

    def advance(self, most: int) -> None:
        """At least one step and at most ``most``; a `BreakdownError` if they go wrong."""

    def sample(self) -> Sample:
        """The present moment."""

    def restart(self) -> Restart:
        """State to resume from."""


def trouble_with(velocities: Any, timestep: float) -> str:
    """The fault of velocities (N, 3), in ASE's units; empty if there is none.

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
