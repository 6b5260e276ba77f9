"""One run of a campaign, as a worker does it: begun, resumed, and recorded."""

from __future__ import annotations

import datetime
import functools
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.vibrations import VibrationsData

from ...calculators import PotentialCalculator
from ...calculators.checks import check_elements
from ..md.ase_engine import warm_up
from ..md.engine import frame_properties
from ..md.launch import resolve_model
from ..md.loop import resume_md, start_md
from ..md.relax import relax
from ..reports.analysis import drift_mev_per_atom_ps
from ..runs.errors import RunStopped
from ..runs.folder import CONFIG, EVALUATED, RELAXED, RunFolder, locked
from ..runs.models import input_record, load_calculator
from ..runs.settings import ModelSettings, RelaxSettings, md_settings
from ..runs.structures import read_structure, runnable, with_results, write_structure
from ..runs.versions import versions
from .folder import (
    DONE,
    FAILED,
    INDEX,
    RUNNING,
    STRUCTURES,
    given_structure,
    lock_file,
    read_record,
    run_folder,
    write_record,
)
from .plan import Task

Summary = dict[str, Any]

_ONE_AT_A_TIME = threading.Lock()
"""A calculator serves one run: a worker with several threads runs one task at a time."""


@dataclass(frozen=True)
class Work:
    """A run with all that it needs."""

    path: Path
    """The campaign's folder."""
    task: Task
    model: ModelSettings
    digest: str
    """SHA-256 of the weights that the campaign was begun with."""

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return run_folder(self.path, self.task.name)

    def begun(self) -> bool:
        """Whether there is something to resume, or to discard."""
        return (self.folder / CONFIG).exists()

    def prepared(self) -> tuple[Atoms, dict[str, Any]]:
        """The structure with its calculator, and what the run's config records of both.

        Raises
        ------
        ValueError
            If the model is not for the structure.
        RuntimeError
            If it is not the one that the campaign was begun with.
        """
        if self.task.after is None:
            source = f"{self.path / STRUCTURES}@{self.task.structure}"
            atoms = given_structure(self.path, self.task.structure)
        else:
            source = str(run_folder(self.path, self.task.after) / RELAXED)
            atoms = read_structure(source)
        model = resolve_model(self.model, [atoms])
        calculator, record = _calculator(model)
        if record["sha256"] != self.digest:
            raise RuntimeError(
                f"the weights on {socket.gethostname()} are not those that the campaign was begun "
                "with"
            )
        check_elements(atoms.numbers, calculator.potential.elements)
        atoms.calc = calculator
        return atoms, input_record(source, atoms, model, record)


@functools.lru_cache(maxsize=1)
def _calculator(model: ModelSettings) -> tuple[PotentialCalculator, dict[str, Any]]:
    """The calculator of this worker: loading takes as long as a short run."""
    return load_calculator(model)


def run_task(path: str, task: Task, model: ModelSettings, digest: str) -> str:
    """Run a task of a campaign, or resume it, unless it has ended before.

    A run that cannot succeed (the model does not know an element, the dynamics break down) is
    recorded as failed. After other errors, such as a full disk, the scheduler tries again.

    Parameters
    ----------
    path
        The campaign's folder, on a file system that driver and workers share.
    task, model, digest
        From the campaign's index.

    Returns
    -------
    The state in its record.

    Raises
    ------
    FileNotFoundError, RuntimeError
        If something else than the run is to blame.
    """
    work = Work(Path(path), task, model, digest)
    if not (work.path / INDEX).is_file():
        raise FileNotFoundError(
            f"the worker on {socket.gethostname()} does not see {path}: a campaign's folder has "
            "to be on a file system that all workers share"
        )
    lock = lock_file(work.path, task.name)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with _ONE_AT_A_TIME, locked(lock, wait=True):
        try:
            return _run_locked(work)
        except Exception as error:
            problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
    # Words only: dask never ends a task whose exception or traceback it cannot send.
    raise RuntimeError(problem)


def _run_locked(work: Work) -> str:
    record = read_record(work.path, work.task.name)
    if record.state in (DONE, FAILED):
        return record.state
    began = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
    attempt = {"host": socket.gethostname(), "pid": os.getpid(), "began": began}
    record = replace(record, state=RUNNING, attempts=[*record.attempts, attempt], cause="")
    write_record(work.path, work.task.name, record)
    start = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            record.summary = RUNS[work.task.kind](work)
            record.state = DONE
            if record.summary.get("converged") is False:
                record.state = FAILED
                record.cause = f"not converged in {record.summary['steps']} steps"
        except (ValueError, RunStopped) as error:
            record.state, record.cause = FAILED, " ".join(str(error).split())
    record.seconds += time.monotonic() - start
    texts = (str(each.message) for each in caught if each.category is UserWarning)
    record.warnings = [" ".join(text.split()) for text in dict.fromkeys(texts)]
    write_record(work.path, work.task.name, record)
    return record.state


def _relax(work: Work) -> Summary:
    settings = RelaxSettings(**work.task.settings)
    if not (work.folder / RELAXED).exists():
        if work.begun():
            RunFolder.discard(work.folder)
        atoms, record = work.prepared()
        relax(atoms, settings, work.folder, record=record)
    log = RunFolder.open(work.folder).read_log()
    return {
        "converged": bool(log["fmax_ev_per_a"][-1] < settings.fmax),
        "steps": int(log["step"][-1]),
        "energy_before_ev": float(log["energy_ev"][0]),
        "energy_ev": float(log["energy_ev"][-1]),
        "fmax_ev_per_a": float(log["fmax_ev_per_a"][-1]),
        **({"volume_a3": float(log["volume_a3"][-1])} if "volume_a3" in log else {}),
    }


def _md(work: Work) -> Summary:
    settings = md_settings(work.task.settings)
    atoms, record = work.prepared()
    if work.begun():
        folder = RunFolder.open(work.folder)
        resume_md(folder, atoms.calc, save_every=work.task.save_every)
    else:
        start_md(atoms, settings, work.folder, record=record, save_every=work.task.save_every)
    log = RunFolder.open(work.folder).read_log()
    found: Summary = {
        "steps": settings.steps,
        "time_ps": settings.steps * settings.timestep * 1e-3,
        "energy_ev": float(log["potential_ev"][-1]),
        "mean_potential_ev": float(log["potential_ev"].mean()),
        "mean_temperature_k": float(log["temperature_k"].mean()),
    }
    if "conserved_ev" in log:
        found["drift_mev_per_atom_ps"] = drift_mev_per_atom_ps(
            log["time_ps"], log["conserved_ev"], len(atoms)
        )
    if "volume_a3" in log:
        found["mean_volume_a3"] = float(log["volume_a3"].mean())
    return found


def _evaluate(work: Work) -> Summary:
    with _one_result(work) as (_, atoms):
        calc, periodic = atoms.calc, atoms.pbc
        frame = with_results(
            atoms, bool(periodic.all()) and "stress" in calc.implemented_properties
        )
        for name in frame_properties(calc, bool(periodic.any())):
            frame.calc.results[name] = calc.get_property(name, atoms)
        write_structure(work.folder / EVALUATED, frame)
    forces = np.linalg.norm(frame.get_forces(), axis=1)
    return {
        "energy_ev": float(frame.get_potential_energy()),
        "fmax_ev_per_a": float(forces.max()),
    }


def _hessian(work: Work) -> Summary:
    with _one_result(work) as (folder, atoms):
        hessian = atoms.calc.get_hessian(atoms)
        folder.write_hessian(hessian)
    vibrations = VibrationsData.from_2d(atoms, hessian)
    # Imaginary wavenumbers are shown as negative ones.
    wavenumbers = [float(each.real - each.imag) for each in vibrations.get_frequencies()]
    return {
        "energy_ev": float(atoms.get_potential_energy()),
        "lowest_wavenumber_inv_cm": wavenumbers[0],
        "zero_point_energy_ev": float(vibrations.get_zero_point_energy()),
        "wavenumbers_inv_cm": wavenumbers,
    }


@contextmanager
def _one_result(work: Work) -> Iterator[tuple[RunFolder, Atoms]]:
    """A new folder, and a structure of which something is computed."""
    if work.begun():
        RunFolder.discard(work.folder)
    atoms, record = work.prepared()
    warm_up(atoms)
    with RunFolder.create(work.folder) as folder:
        folder.write_start(runnable(atoms))
        folder.write_config(
            {"kind": work.task.kind, "settings": {}, "versions": versions(), **record}
        )
        yield folder, atoms


RUNS: dict[str, Callable[[Work], Summary]] = {
    "relax": _relax,
    "md": _md,
    "evaluate": _evaluate,
    "hessian": _hessian,
}
"""What a run of each kind does; all may be called again after a kill."""
