"""Molecular dynamics in a run folder: start, resume, and the loop they share."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.calculators.calculator import Calculator

from ..runs.errors import RunStopped
from ..runs.folder import RESTART, TRAJECTORY, Restart, RunFolder, refuse_existing
from ..runs.settings import MDSettings, md_settings, to_json
from ..runs.signals import StopRequest
from ..runs.structures import frame_text, runnable, warn_of_frames
from ..runs.versions import versions
from .choose import make_engine
from .doubt import Doubt
from .engine import BreakdownError, Engine, Row, set_state
from .trajectories import convert_trajectory

ALREADY = "resume it with --resume {}, or choose another folder with -o"

Observer = Callable[[int, "Row | None"], None]
"""Called with the number of steps done, and the line of the log where one was written: after every
step with ASE, after several with OpenMM."""


@dataclass(frozen=True)
class MDSummary:
    """Steps and times of a run since it was started or resumed."""

    folder: Path
    first_step: int
    last_step: int
    wall_seconds: float
    timestep: float

    @property
    def milliseconds_per_step(self) -> float:
        """Wall time of a step, logging included."""
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
    topology: Path | None = None,
    record: dict[str, Any] | None = None,
    observer: Observer | None = None,
    save_every: float = 10.0,
) -> MDSummary:
    """Run molecular dynamics from a structure into a new run folder.

    Parameters
    ----------
    atoms
        With a calculator. ASE moves it in place; OpenMM takes the calculator's potential.
    settings
        Options of the run.
    path
        Run folder to make.
    topology
        The PDB or mmCIF file of the structure, which ``ml_atoms`` needs.
    record
        Content of config.json besides the settings: the model, the structure's source.
    observer
        Called after every step, or several.
    save_every
        Wall time between restarts, s.

    Raises
    ------
    ValueError
        If the structure, the settings or the folder do not fit.
    RunStopped
        If a position or an energy is not finite, or an atom jumps; or at a doubtful frame, if the
        settings ask for it.
    Interrupted
        After SIGINT or SIGTERM, with everything saved.
    """
    path = Path(path)
    refuse_existing(path, ALREADY.format(path))
    # What is wrong with the structure shows before a folder is made.
    engine = make_engine(atoms, settings, topology)
    warn_of_frames(engine.atoms, path / TRAJECTORY)
    with RunFolder.create(path, ALREADY.format(path)) as folder:
        folder.write_start(runnable(engine.atoms))
        if topology is not None:
            folder.keep_topology(topology)
        folder.write_config(
            {
                "kind": "md",
                "settings": to_json(engine.settings),
                "versions": versions(optional=settings.engine == "openmm"),
                **(record or {}),
            }
        )
        return _Run(folder, engine, None).until(settings.steps, observer, save_every)


def resume_md(
    folder: RunFolder,
    calculator: Calculator,
    *,
    steps: int | None = None,
    observer: Observer | None = None,
    save_every: float = 10.0,
) -> MDSummary:
    """Resume a run, to the last bit as if it had never stopped.

    Parameters
    ----------
    folder
        An existing run folder; locked here.
    calculator
        The same potential, set up the same.
    steps
        New total number of steps, to extend the run; None keeps what it was started with.
    observer, save_every
        See `start_md`.

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
        engine = make_engine(atoms, settings, folder.topology())
        return _Run(folder, engine, restart).until(settings.steps, observer, save_every)


class _Run:
    """The loop, from the start (``restart`` None) or from a restart."""

    def __init__(self, folder: RunFolder, engine: Engine, restart: Restart | None) -> None:
        self.folder = folder
        self.engine = engine
        self.settings = engine.settings
        self.fresh = restart is None
        if restart is None:
            self._begin()
        else:
            engine.restore(restart)
        columns = ("step", "time_ps", "potential_ev", "kinetic_ev", "total_ev", *engine.columns)
        folder.open_streams(columns, restart, doubt=self.settings.doubt is not None)
        self.doubt: Doubt | None = None
        if self.settings.doubt is not None:
            self.doubt = Doubt(folder, self.settings.doubt, self.settings.stop_on_doubt)
        self.saved_step: int | None = None if restart is None else engine.step_number

    def until(self, last: int, observer: Observer | None, save_every: float) -> MDSummary:
        """Run to step ``last``, or to a signal."""
        first = self.engine.step_number
        began = time.monotonic()
        try:
            with StopRequest() as stop:
                self._loop(last, stop, observer or (lambda step, row: None), save_every)
            self._convert()
        except RunStopped:
            self._convert()
            raise
        except OSError as error:
            if self.saved_step is None:
                raise
            raise OSError(
                f"{error}. The run folder keeps step {self.saved_step}; then resume with: "
                f"{self._resume_command()}"
            ) from error
        if stop.asked() and self.engine.step_number < last:
            raise stop.interrupted(
                f"stopped at step {self.engine.step_number} of {last}; everything is saved, "
                f"resume with: {self._resume_command()}"
            )
        return MDSummary(
            self.folder.path,
            first,
            self.engine.step_number,
            time.monotonic() - began,
            self.settings.timestep,
        )

    def _loop(self, last: int, stop: StopRequest, tell: Observer, save_every: float) -> None:
        row: Row | None
        if self.fresh:
            row, why = self._record()
            tell(0, row)
            self._save()
            self._end(why)
        saved = time.monotonic()
        while self.engine.step_number < last and not stop.asked():
            interval = self.settings.interval
            next_line = interval * (self.engine.step_number // interval + 1)
            self._advance(min(next_line, last) - self.engine.step_number)
            row, why = self._record() if self.engine.step_number == next_line else (None, "")
            if why or time.monotonic() - saved >= save_every:
                self._save()
                saved = time.monotonic()
            tell(self.engine.step_number, row)
            self._end(why)
        if self.saved_step != self.engine.step_number:
            self._save()

    def _begin(self) -> None:
        try:
            self.engine.begin()
        except BreakdownError as error:
            raise RunStopped(f"the run broke down before its first step: {error}") from error

    def _advance(self, most: int) -> None:
        try:
            self.engine.advance(most)
        except BreakdownError as error:
            raise RunStopped(
                f"the run broke down at step {error.step}: {error}. {self.folder.path} keeps the "
                f"state of step {self.saved_step}. Try a shorter --timestep or a relaxed "
                "structure, and make sure that the model knows such structures"
            ) from error

    def _end(self, why: str) -> None:
        """Raise a RunStopped if there is a reason to end the run, once everything is saved."""
        if why:
            raise RunStopped(
                f"{why}, and the run is saved; resume it with: {self._resume_command()}"
            )

    def _convert(self) -> None:
        """Copy the trajectory to the format of other programs."""
        kind, settings = self.settings.trajectory, self.settings
        if kind != "extxyz":
            convert_trajectory(self.folder, kind, settings.timestep, settings.interval)

    def _record(self) -> tuple[Row, str]:
        """Append a line to the log and a frame to the trajectory.

        Also returns why the run is to end, if so.
        """
        assert self.folder.log is not None
        assert self.folder.trajectory is not None
        step, sample = self.engine.step_number, self.engine.sample()
        row: Row = {
            "step": step,
            "time_ps": step * self.settings.timestep * 1e-3,
            "potential_ev": sample.potential_ev,
            "kinetic_ev": sample.kinetic_ev,
            "total_ev": sample.potential_ev + sample.kinetic_ev,
            **{name: getattr(sample, name) for name in self.engine.columns},
        }
        sample.frame.info.update(step=step, time_ps=row["time_ps"])
        self.folder.trajectory.append(frame_text(sample.frame))
        self.folder.log.add(row)
        if self.doubt is None:
            return row, ""
        return row, self.doubt.see(sample.frame, sample.forces_std, step)

    def _save(self) -> None:
        self.folder.save(self.engine.restart())
        self.saved_step = self.engine.step_number

    def _resume_command(self) -> str:
        return f"tensormd md --resume {self.folder.path}"


def last_state(folder: RunFolder) -> Atoms:
    """The atoms of a run as its restart holds them, to the last bit, without a calculator."""
    atoms = folder.start()
    if (folder.path / RESTART).exists():
        set_state(atoms, folder.read_restart().arrays)
    return atoms
