"""Geometry relaxation with ASE's optimizers, each in a run folder of its own."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE, LBFGS

from ...calculators import PotentialCalculator
from ...calculators.checks import check_elements
from ...models.units import bar_in_ev_per_angstrom3, ev_per_angstrom3_in_gpa
from ..runs.errors import RunStopped
from ..runs.folder import RELAXED, RunFolder, refuse_existing
from ..runs.models import input_record, load_calculator
from ..runs.settings import ModelSettings, RelaxSettings, to_json
from ..runs.signals import StopRequest
from ..runs.structures import (
    Failed,
    format_of,
    frame_text,
    read_each,
    runnable,
    stem_of,
    with_results,
    write_structure,
)
from ..runs.versions import versions
from .ase_engine import warm_up
from .doubt import Doubt, check_doubt, doubt_of
from .launch import resolve_model

OPTIMIZERS = {"lbfgs": LBFGS, "fire": FIRE, "bfgs": BFGS}

StepObserver = Callable[[int, float, float], None]
"""Called with the step, the energy in eV and the largest force in eV/A."""


@dataclass(frozen=True)
class RelaxResult:
    """Result of one relaxation."""

    source: str
    folder: str
    output: str
    converged: bool
    steps: int
    energy_before_ev: float
    energy_ev: float
    fmax_ev_per_a: float
    volume_a3: float | None
    max_stress_gpa: float | None
    doubt_ev_per_a: float | None = None
    """Largest standard deviation of a force over the committee, where doubt is watched."""

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Task:
    """One structure to relax, and where the results go."""

    source: str
    structure: Atoms | Exception
    """Or why it cannot be read."""
    folder: Path
    file: Path | None
    """A file in the user's format, besides the folder."""

    @property
    def atoms(self) -> Atoms:
        """The structure; raises the error if it cannot be read."""
        if isinstance(self.structure, Exception):
            raise self.structure
        return self.structure


def relax_files(
    sources: Sequence[str],
    model: ModelSettings,
    settings: RelaxSettings,
    out: Path | None = None,
    *,
    observer: Callable[[Task], StepObserver] | None = None,
    done: Callable[[RelaxResult], None] | None = None,
    failed: Failed | None = None,
) -> list[RelaxResult]:
    """Relax every structure of some files.

    Where fused kernels run on a CPU, as many structures as torch has threads are relaxed side by
    side, if there are so many: with the results that each has alone, to the last bit.

    Parameters
    ----------
    sources
        Files, each as ``file`` or ``file@index``.
    model, settings
        The model and the options.
    out
        Folder of the results (of several structures: the folder of their folders); for one
        structure also a file name, which gets the relaxed structure in its own format.
    observer
        Called for each structure; what it returns is called after every step, in the thread that
        relaxes the structure.
    done
        Called with each result, in the order of the structures.
    failed
        Called with the name of each structure that cannot be relaxed, ``file@number``, and the
        reason: the others are relaxed. All are checked before the first is run. None raises the
        first error.

    Raises
    ------
    ValueError, OSError
        For inputs that cannot be used, before anything is computed or written; with ``failed``
        only if there is no other input, or for an option that does not fit.
    """
    failures: list[tuple[str, Exception]] = []

    def passing(tasks: list[Task], check: Callable[[Task], None]) -> list[Task]:
        """Tasks that a check lets through; those that failed so far are told of."""
        rest = [task for task in tasks if _passes(task, check, failures)]
        if not rest and failures:
            raise _nothing_left(failures, failed)
        for name, error in failures:
            if failed is None:
                raise error
            failed(name, error)
        failures.clear()
        return rest

    entries = plan(sources, out)
    failures += [(e.source, e.structure) for e in entries if isinstance(e.structure, Exception)]
    tasks = [entry for entry in entries if not isinstance(entry.structure, Exception)]
    tasks = passing(tasks, lambda task: check_relaxation(task.atoms, settings, task.source))
    model = resolve_model(model, [task.atoms for task in tasks])
    calculator, record = load_calculator(model)
    elements = calculator.potential.elements
    tasks = passing(tasks, lambda task: check_elements(task.atoms.numbers, elements))
    results: list[RelaxResult] = []
    team = calculator.team()
    if len(tasks) < len(team):
        team = [calculator]  # with all threads
    idle: queue.SimpleQueue[PotentialCalculator] = queue.SimpleQueue()
    for each in team:
        idle.put(each)

    def run(task: Task) -> RelaxResult:
        if stop.asked():
            raise stop.interrupted(f"stopped before {task.source} was begun")
        task.atoms.calc = mine = idle.get()
        try:
            return relax(
                task.atoms,
                settings,
                task.folder,
                file=task.file,
                record=input_record(task.source, task.atoms, model, record),
                observer=observer(task) if observer else None,
                stop=stop,
            )
        finally:
            idle.put(mine)

    running: dict[Path, Future[RelaxResult]] = {}

    def collect(task: Task) -> None:
        result = running[task.folder].result() if running else run(task)
        results.append(result)
        if done:
            done(result)

    with StopRequest() as stop, ThreadPoolExecutor(len(team)) as pool:
        if len(team) > 1:
            running = {task.folder: pool.submit(run, task) for task in tasks}
        try:
            passing(tasks, collect)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return results


def _passes(
    task: Task, check: Callable[[Task], None], failures: list[tuple[str, Exception]]
) -> bool:
    try:
        check(task)
    except (ValueError, RunStopped) as error:
        failures.append((task.source, error))
        return False
    return True


def _nothing_left(failures: list[tuple[str, Exception]], failed: Failed | None) -> Exception:
    """The error of a command that can run none of its structures."""
    if len(failures) == 1 or failed is None:
        return failures[0][1]
    for name, error in failures:
        failed(name, error)
    broke_down = any(isinstance(error, RunStopped) for _, error in failures)
    return (RunStopped if broke_down else ValueError)(
        f"none of {len(failures)} structures could be relaxed"
    )


def plan(sources: Sequence[str], out: Path | None) -> list[Task]:
    """Read all structures and decide where each one's results go.

    A structure that cannot be read is a task too, which keeps the error: the others are numbered
    as in their files.

    Raises
    ------
    ValueError
        If something is there already or cannot be written in that format.
    """
    found: list[tuple[str, str, Atoms | Exception]] = []
    for source in sources:
        try:
            found += [(source, name, structure) for name, structure in read_each(source)]
        except (ValueError, OSError) as error:
            found.append((source, source, error))
    file: Path | None = None
    if len(found) == 1:
        folder = Path(f"{stem_of(found[0][0])}_relaxed") if out is None else out
        if out is not None and out.suffix[1:].isalpha() and not out.is_dir():
            format_of(out)
            file, folder = out, out.with_suffix("")
            if file.exists():
                raise ValueError(f"{file} exists already: choose another name with -o")
        folders = [folder]
    else:
        parent = Path("relaxed") if out is None else out
        if parent.suffix[1:].isalpha() and not parent.is_dir():
            raise ValueError(
                f"-o {parent} names a file, but there are {len(found)} structures: "
                "expected a folder"
            )
        folders = [parent / name for name in _names([source for source, _, _ in found])]
    for folder in folders:
        refuse_existing(folder, "choose another folder with -o")
    return [
        Task(name, structure, folder, file)
        for (_, name, structure), folder in zip(found, folders, strict=True)
    ]


def check_relaxation(atoms: Atoms, settings: RelaxSettings, source: str) -> None:
    """Raise a ValueError if there is no cell to relax."""
    if settings.cell and not atoms.pbc.all():
        raise ValueError(
            f"--cell relaxes the cell, but {source} is not periodic in all three directions "
            f"(pbc is {atoms.pbc.tolist()})"
        )


def relax(
    atoms: Atoms,
    settings: RelaxSettings,
    path: Path | str,
    *,
    file: Path | None = None,
    record: dict[str, Any] | None = None,
    observer: StepObserver | None = None,
    stop: StopRequest | None = None,
) -> RelaxResult:
    """Relax one structure into a new run folder.

    Parameters
    ----------
    atoms
        With a calculator. Moved in place.
    settings
        Options.
    path
        Run folder to make.
    file
        Where the relaxed structure is written besides, in the format of this name.
    record
        Content of config.json besides the settings.
    observer
        Called after every step.
    stop
        The request to stop that the caller has entered; None makes one.

    Returns
    -------
    RelaxResult
        Its ``converged`` says whether the forces came below ``fmax``; the structure is saved
        either way.

    Raises
    ------
    ValueError, OSError
        If the structure does not fit the model, or something cannot be written.
    RunStopped
        If an energy or a force is not finite; or at a doubtful step, if the settings ask for it,
        with the structure so far saved.
    Interrupted
        After SIGINT or SIGTERM, with the structure so far saved.
    """
    source = (record or {}).get("structure", {}).get("source", "structure")
    check_relaxation(atoms, settings, source)
    check_doubt(atoms.calc, settings.doubt)
    warm_up(atoms)  # fails before a folder is made
    before = float(atoms.get_potential_energy())
    target = (
        FrechetCellFilter(atoms, scalar_pressure=settings.pressure * bar_in_ev_per_angstrom3)
        if settings.cell
        else atoms
    )
    with RunFolder.create(path, "choose another folder with -o") as folder:
        folder.write_start(runnable(atoms))
        folder.write_config(
            {
                "kind": "relax",
                "settings": to_json(settings),
                "versions": versions(),
                **(record or {}),
            }
        )
        has_stress = settings.cell or (
            bool(atoms.pbc.all()) and "stress" in atoms.calc.implemented_properties
        )
        columns = ["step", "energy_ev", "fmax_ev_per_a"]
        columns += ["volume_a3", "max_stress_gpa"] if has_stress else []
        columns += [] if settings.doubt is None else ["doubt_ev_per_a"]
        folder.open_streams(columns, doubt=settings.doubt is not None)
        doubt, why = None, ""
        if settings.doubt is not None:
            doubt = Doubt(folder, settings.doubt, settings.stop_on_doubt)
        optimizer = OPTIMIZERS[settings.optimizer](target, logfile=None)
        converged = False
        try:
            with StopRequest() if stop is None else nullcontext(stop) as stop:
                for finished in optimizer.irun(fmax=settings.fmax, steps=settings.steps):
                    converged = bool(finished)
                    row, why = _record(folder, atoms, target, optimizer.nsteps, has_stress, doubt)
                    if observer:
                        observer(optimizer.nsteps, row["energy_ev"], row["fmax_ev_per_a"])
                    if why or stop.asked():
                        break
        except ValueError as error:  # the calculator refuses positions that are no numbers
            raise RunStopped(
                f"the relaxation broke down at step {optimizer.nsteps + 1}: {error}; the steps "
                f"before are in {folder.path}"
            ) from error
        result = RelaxResult(
            source=source,
            folder=str(folder.path),
            output=str(file or folder.path / RELAXED),
            converged=converged,
            steps=int(optimizer.nsteps),
            energy_before_ev=before,
            energy_ev=row["energy_ev"],
            fmax_ev_per_a=row["fmax_ev_per_a"],
            volume_a3=row.get("volume_a3"),
            max_stress_gpa=row.get("max_stress_gpa"),
            doubt_ev_per_a=row.get("doubt_ev_per_a"),
        )
        relaxed = with_results(atoms, has_stress)
        write_structure(folder.path / RELAXED, relaxed)
        if file is not None:
            write_structure(file, relaxed)
    if why:
        raise RunStopped(f"{why}; the structure so far is {result.output}")
    if stop.asked() and not converged:
        raise stop.interrupted(
            f"stopped at step {result.steps}, before it converged (fmax "
            f"{result.fmax_ev_per_a:.4f} eV/A); the structure so far is {result.output}"
        )
    return result


def _record(
    folder: RunFolder,
    atoms: Atoms,
    target: Any,
    step: int,
    has_stress: bool,
    doubt: Doubt | None,
) -> tuple[dict[str, float], str]:
    """The line of the log, and why the relaxation is to end, if so."""
    assert folder.log is not None
    assert folder.trajectory is not None
    row: dict[str, float] = {
        "step": step,
        "energy_ev": float(atoms.get_potential_energy()),
        "fmax_ev_per_a": float(np.linalg.norm(target.get_forces(), axis=1).max()),
    }
    if not np.isfinite(list(row.values())).all():
        raise ValueError(f"energy {row['energy_ev']} eV, force {row['fmax_ev_per_a']} eV/A")
    if has_stress:
        row["volume_a3"] = float(atoms.get_volume())
        row["max_stress_gpa"] = float(np.abs(atoms.get_stress()).max() * ev_per_angstrom3_in_gpa)
    frame = with_results(atoms, has_stress)
    frame.info["step"] = step
    folder.trajectory.append(frame_text(frame))
    why = ""
    if doubt is not None:
        forces_std = atoms.calc.get_property("forces_std", atoms)
        row["doubt_ev_per_a"] = doubt_of(forces_std)
        why = doubt.see(frame, forces_std, step)
    folder.log.add(row)
    return row, why


def _names(sources: Sequence[str]) -> list[str]:
    """A name for each structure; those of one name are numbered."""
    stems = [stem_of(source) for source in sources]
    seen: dict[str, int] = {}
    names = []
    for stem in stems:
        seen[stem] = seen.get(stem, 0) + 1
        names.append(f"{stem}-{seen[stem]}" if stems.count(stem) > 1 else stem)
    return names
