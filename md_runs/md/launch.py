"""Runs by file name: structure and checkpoint loaded, checked, and handed to the run itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ase import Atoms

from ..runs.folder import RunFolder, refuse_existing
from ..runs.models import absolute, default_model, default_threads, input_record, load_calculator
from ..runs.settings import MDSettings, ModelSettings, model_settings, option
from ..runs.structures import read_structure
from .loop import ALREADY, MDSummary, Observer, resume_md, start_md
from .openmm_system import read_topology, require_openmm, select_atoms


def launch_md(
    source: str,
    model: ModelSettings,
    settings: MDSettings,
    path: Path,
    *,
    observer: Observer | None = None,
    save_every: float = 10.0,
) -> MDSummary:
    """Start a run of the structure in a file; see `start_md`."""
    refuse_existing(path, ALREADY.format(path))  # before anything slow
    if model.device == "cpu" and (settings.platform or "").upper() == "CUDA":
        raise ValueError(
            "--device cpu keeps the run off the GPU, but --platform CUDA is the GPU: leave one of "
            "the two out"
        )
    atoms, learned, topology = _read(source, settings)
    files = tuple(absolute_file(name) for name in settings.force_field)
    settings = dataclasses.replace(settings, force_field=files)
    model = resolve_model(model, [learned], len(atoms))
    atoms.calc, record = load_calculator(model)
    return start_md(
        atoms,
        settings,
        path,
        topology=topology,
        record=input_record(source, atoms, model, record),
        observer=observer,
        save_every=save_every,
    )


def _read(source: str, settings: MDSettings) -> tuple[Atoms, Atoms, Path | None]:
    """The structure, the part of it that the model describes, and the file of its topology."""
    if settings.engine != "openmm":
        atoms = read_structure(source)
        return atoms, atoms, None
    require_openmm()
    path = Path(source)
    if settings.ml_atoms is not None:
        topology, atoms = read_topology(path)
        return atoms, atoms[select_atoms(settings.ml_atoms, topology)], path
    atoms = read_structure(source)
    return atoms, atoms, None


def relaunch_md(
    path: Path,
    given: dict[str, Any],
    *,
    observer: Observer | None = None,
    save_every: float = 10.0,
) -> MDSummary:
    """Resume the run in a folder.

    Parameters
    ----------
    path
        The run folder.
    given
        Other options of the command line: only ``steps`` may differ from the run's own.
    observer, save_every
        See `start_md`.

    Raises
    ------
    ValueError
        If another setting differs, or the weights are not those that the run began with.
    """
    folder = RunFolder.open(path)
    config = folder.config
    if config.get("kind") != "md":
        raise ValueError(f"{path} is no molecular dynamics run: there is nothing to resume")
    if "model_settings" not in config:
        raise ValueError(f"{path} was started from Python: resume it with resume_md")
    if "force_field" in given:
        given = {**given, "force_field": tuple(map(absolute_file, given["force_field"]))}
    refuse_changes(given, {**config["model_settings"], **config["settings"]})
    model = model_settings(config["model_settings"])
    if "model" in given:
        model = dataclasses.replace(model, model=tuple(given["model"]))
    calculator, record = load_calculator(model)
    if record["sha256"] != config["model"]["sha256"]:
        raise ValueError(
            f"the weights of {', '.join(model.model)} are not those that the run began with "
            f"(SHA-256 {record['sha256'][:12]}, not {config['model']['sha256'][:12]}): point -m "
            "to the old ones, or start a new run"
        )
    return resume_md(
        folder, calculator, steps=given.get("steps"), observer=observer, save_every=save_every
    )


def refuse_changes(given: dict[str, Any], own: dict[str, Any]) -> None:
    """Raise a ValueError that names the first option that differs from the run's own.

    ``steps`` may: it extends the run. ``model`` may be another file: its weights are compared.
    """
    for name, value in given.items():
        if name in ("steps", "model"):
            continue
        if name not in own:
            raise ValueError(f"{option(name)} cannot be given with --resume")
        kept = own[name]
        if isinstance(value, tuple):
            value = list(value)
        if value == math.inf:
            value = "inf"  # as `to_json` has it
        if value != kept and not (name == "platform" and value.lower() == kept.lower()):
            raise ValueError(
                f"{option(name)} is {value}, but the run was started with {kept}: a resumed run "
                "keeps its settings; only --steps may change"
            )


def absolute_file(name: str) -> str:
    """A file's full name, so that a run resumes from any folder; other names as they are."""
    return str(Path(name).resolve()) if Path(name).is_file() else name


def resolve_model(
    model: ModelSettings, structures: Sequence[Atoms], size: int = 0
) -> ModelSettings:
    """The settings with everything decided that was left open.

    Absolute file names, or the shipped model where none was named; the number of threads, for
    ``size`` atoms if the model describes only some of them.
    """
    names = absolute(model.model)
    for atoms in structures:
        names = names or default_model(atoms, model.charge)
    size = max(size, *(len(atoms) for atoms in structures))
    threads = model.threads or default_threads(size, model)
    return dataclasses.replace(model, model=names, threads=threads)
