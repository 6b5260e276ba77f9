"""Molecular dynamics with ASE in a run folder: start, resume, and the loop they share."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator

from ..models.units import bar_in_ev_per_angstrom3
from .barostat import estimate_compressibility, pressure_of
from .ensembles import Integrator, check_ensemble, thermalizes_rigid_motion
from .errors import Interrupted, RunStopped
from .run_folder import RESTART, START, Restart, RunFolder, refuse_existing
from .settings import MDSettings, md_settings, to_json
from .signals import StopRequest
from .structures import frame_text
from .velocities import temperature_of, thermalize
from .versions import versions

ALREADY = "continue it with --resume {}, or choose another folder with -o"
LARGEST_STEP_ANGSTROM = 1.0
"""An atom that moves further in one step has left physics behind."""

Row = dict[str, float]
Observer = Callable[[int, "Row | None"], None]
"""Called after every step with its number, and the line of the log where one was written."""


@dataclass(frozen=True)
class MDSummary:
    """What a run did since it was started or resumed."""

    folder: Path
    first_step: int
    last_step: int
    wall_seconds: float
    timestep: float

    @property
    def milliseconds_per_step(self) -> float:
        """Wall-clock time of a step, logging included."""
        return 1e3 * self.wall_seconds / max(self.last_step - self.first_step, 1)

    @property
    def nanoseconds_per_day(self) -> float:
        """Simulated time in a day at this speed."""
        return self.timestep * 1e-6 * 86400e3 / max(self.milliseconds_per_step, 1e-9)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            **dataclasses.asdict(self),
            "folder": str(self.folder),
            "milliseconds_per_step": self.milliseconds_per_step,
            "nanoseconds_per_day": self.nanoseconds_per_day,
        }


def start_md(
    atoms: Atoms,
    settings: MDSettings,
    path: Path | str,
    *,
    record: dict[str, Any] | None = None,
    observer: Observer | None = None,
    save_every: float = 10.0,
) -> MDSummary:
    """Run molecular dynamics from a structure into a new run folder.

    Parameters
    ----------
    atoms
        With a calculator. Moved in place.
    settings
        What to run.
    path
        Run folder to make.
    record
        What config.json says besides the settings: the model, the structure's source.
    observer
        Called after every step.
    save_every
        Seconds of wall-clock time between restarts.

    Raises
    ------
    ValueError
        If the structure, the settings or the folder do not fit.
    RunStopped
        If a position or an energy is no number any more, or an atom jumps.
    Interrupted
        After SIGINT or SIGTERM, with everything saved.
    """
    path = Path(path)
    refuse_existing(path, ALREADY.format(path))
    check_ensemble(atoms, settings)
    _warm_up(atoms)  # what is wrong with the structure shows before a folder is made
    if settings.keep_velocities and not atoms.has("momenta"):
        raise ValueError("--keep-velocities: the structure has no velocities")
    if settings.ensemble == "npt" and settings.compressibility is None:
        found = estimate_compressibility(atoms)
        settings = dataclasses.replace(settings, compressibility=found)
    with RunFolder.create(path, ALREADY.format(path)) as folder:
        folder.write_start(atoms)
        folder.write_config(
            {"kind": "md", "settings": to_json(settings), "versions": versions(), **(record or {})}
        )
        return _Run(folder, atoms, settings, None).until(settings.steps, observer, save_every)


def resume_md(
    folder: RunFolder,
    calculator: Calculator,
    *,
    steps: int | None = None,
    observer: Observer | None = None,
    save_every: float = 10.0,
) -> MDSummary:
    """Go on with a run, as if it had never stopped.

    Parameters
    ----------
    folder
        An existing run folder; locked here.
    calculator
        The same potential, set up the same.
    steps
        New total number of steps, to extend the run; None keeps what it was started with.
    observer, save_every
        As for `start_md`.

    Raises
    ------
    ValueError
        If the folder is in use or damaged, or ``steps`` lies behind what is done.
    """
    with folder:
        folder.lock()
        config = folder.config
        settings = md_settings(config["settings"])
        restart = folder.read_restart() if (folder.path / RESTART).exists() else None
        done = 0 if restart is None else int(restart.state["step"])
        if steps is not None:
            if steps < done:
                raise ValueError(f"--steps is {steps}, but the run has done {done} already")
            settings = dataclasses.replace(settings, steps=steps)
            folder.write_config({**config, "settings": to_json(settings)})
        atoms = folder.start()
        atoms.calc = calculator
        _warm_up(atoms)
        return _Run(folder, atoms, settings, restart).until(settings.steps, observer, save_every)


class _Run:
    """The loop, from the start (``restart`` None) or from a restart."""

    def __init__(
        self, folder: RunFolder, atoms: Atoms, settings: MDSettings, restart: Restart | None
    ) -> None:
        self.folder = folder
        self.atoms = atoms
        self.settings = settings
        self.fresh = restart is None
        rng = np.random.Generator(np.random.PCG64(settings.seed))
        if restart is not None:
            _set_state(atoms, restart.arrays)
        elif not settings.keep_velocities:
            thermalize(atoms, settings.temperature, rng, rigid=thermalizes_rigid_motion(settings))
        state = None if restart is None else restart.state
        self.integrator = Integrator(atoms, settings, rng, state)
        self.has_stress = bool(atoms.pbc.all()) and "stress" in atoms.calc.implemented_properties
        folder.open_streams(self._columns(), restart)
        self.saved_step: int | None = None if restart is None else self.integrator.step_number

    def until(self, last: int, observer: Observer | None, save_every: float) -> MDSummary:
        """Run to step ``last``, or to a signal."""
        first = self.integrator.step_number
        began = time.monotonic()
        try:
            with StopRequest() as stop:
                self._loop(last, stop, observer or (lambda step, row: None), save_every)
        except OSError as error:
            if self.saved_step is None:
                raise
            raise OSError(
                f"{error}. The run folder keeps step {self.saved_step}; then go on with: "
                f"{self._resume_command()}"
            ) from error
        if stop.signal is not None and self.integrator.step_number < last:
            raise Interrupted(
                f"stopped at step {self.integrator.step_number} of {last}; all is saved, go on "
                f"with: {self._resume_command()}",
                stop.signal,
            )
        return MDSummary(
            self.folder.path,
            first,
            self.integrator.step_number,
            time.monotonic() - began,
            self.settings.timestep,
        )

    def _loop(self, last: int, stop: StopRequest, tell: Observer, save_every: float) -> None:
        if self.fresh:
            tell(0, self._record())
            self._save()
        saved = time.monotonic()
        while self.integrator.step_number < last and stop.signal is None:
            self._step()
            row = None
            if self.integrator.step_number % self.settings.interval == 0:
                row = self._record()
            if time.monotonic() - saved >= save_every:
                self._save()
                saved = time.monotonic()
            tell(self.integrator.step_number, row)
        if self.saved_step != self.integrator.step_number:
            self._save()

    def _step(self) -> None:
        number = self.integrator.step_number + 1
        try:
            self.integrator.step()
            trouble = self._trouble()
        except ValueError as error:  # the calculator refuses positions that are no numbers
            trouble = str(error)
        if trouble:
            raise RunStopped(
                f"the run broke down at step {number}: {trouble}. {self.folder.path} keeps the "
                f"state of step {self.saved_step}. Try a shorter --timestep or a relaxed "
                "structure, and make sure that the model knows such structures"
            )

    def _trouble(self) -> str:
        energy = float(self.atoms.get_potential_energy())
        speeds = np.linalg.norm(self.atoms.get_velocities(), axis=1)
        moved = float(speeds.max()) * self.settings.timestep * units.fs
        if not np.isfinite([energy, moved]).all():
            return f"an energy or a velocity is no number (energy {energy} eV)"
        if moved > LARGEST_STEP_ANGSTROM:
            return f"atom {int(speeds.argmax())} moves {moved:.3g} A in one step"
        return ""

    def _columns(self) -> list[str]:
        names = ["step", "time_ps", "potential_ev", "kinetic_ev", "total_ev"]
        if self.integrator.conserved is not None:
            names.append("conserved_ev")
        names.append("temperature_k")
        if self.has_stress:
            names += ["pressure_bar", "volume_a3"]
        return names

    def _record(self) -> Row:
        """Append a line to the log and a frame to the trajectory."""
        assert self.folder.log is not None
        assert self.folder.trajectory is not None
        atoms, step = self.atoms, self.integrator.step_number
        potential = float(atoms.get_potential_energy())
        kinetic = float(atoms.get_kinetic_energy())
        row: Row = {
            "step": step,
            "time_ps": step * self.settings.timestep * 1e-3,
            "potential_ev": potential,
            "kinetic_ev": kinetic,
            "total_ev": potential + kinetic,
            "temperature_k": temperature_of(atoms, self.integrator.freedom),
        }
        conserved = self.integrator.conserved
        if conserved is not None:
            row["conserved_ev"] = conserved
        if self.has_stress:
            row["pressure_bar"] = pressure_of(atoms) / bar_in_ev_per_angstrom3
            row["volume_a3"] = float(atoms.get_volume())
        frame = atoms.copy()
        frame.info.update(step=step, time_ps=row["time_ps"])
        results = {"energy": potential, "forces": atoms.get_forces(apply_constraint=False)}
        if self.has_stress:
            results["stress"] = atoms.get_stress(apply_constraint=False)
        frame.calc = SinglePointCalculator(frame, **results)
        self.folder.trajectory.append(frame_text(frame))
        self.folder.log.add(row)
        return row

    def _save(self) -> None:
        self.folder.save(Restart(_state(self.atoms), self.integrator.state()))
        self.saved_step = self.integrator.step_number

    def _resume_command(self) -> str:
        return f"tensormd md --resume {self.folder.path}"


def last_state(folder: RunFolder) -> Atoms:
    """The atoms of a run as its restart holds them, to the last bit, without a calculator."""
    atoms = folder.start()
    if (folder.path / RESTART).exists():
        _set_state(atoms, folder.read_restart().arrays)
    return atoms


def _warm_up(atoms: Atoms) -> None:
    """Evaluate until the numbers are those of every later evaluation, to the last bit.

    TorchScript runs its first call unoptimised, and rounds otherwise from the second on: a run
    that was resumed would differ from one that was not.
    """
    for _ in range(3):
        atoms.calc.reset()
        atoms.get_forces()
        atoms.get_potential_energy()


def _state(atoms: Atoms) -> dict[str, Any]:
    return {
        "positions": atoms.positions.copy(),
        "momenta": atoms.arrays["momenta"].copy(),
        "cell": atoms.cell.array.copy(),
    }


def _set_state(atoms: Atoms, arrays: dict[str, Any]) -> None:
    # Set directly: constraints would adjust what was saved after they had done so.
    for name in ("positions", "momenta"):
        if arrays[name].shape != atoms.positions.shape:
            raise ValueError(
                f"{RESTART} and {START} hold different structures: the folder is damaged"
            )
    atoms.set_cell(arrays["cell"])
    atoms.arrays["positions"][:] = arrays["positions"]
    atoms.arrays["momenta"] = np.array(arrays["momenta"])
