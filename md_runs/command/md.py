"""`tensormd md`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ..md.launch import launch_md, relaunch_md
from ..runs.folder import RunFolder
from ..runs.settings import MDSettings
from .console import given_options, say, show_json
from .options import (
    Backend,
    Charge,
    CoulombCutoff,
    Device,
    Dispersion,
    Doubt,
    Dtype,
    Json,
    Model,
    StopOnDoubt,
    Threads,
    Units,
    model_settings,
    parse_units,
    split,
)
from .progress import md_progress

OPENMM = "Options of --engine openmm"


def md(
    context: typer.Context,
    structure: Annotated[
        str | None,
        typer.Argument(help="File that ASE reads; FILE@INDEX takes one of several structures."),
    ] = None,
    model: Model = None,
    engine: Annotated[str, typer.Option(help="Integrator: ase or openmm.")] = MDSettings.engine,
    ensemble: Annotated[
        str, typer.Option(help="Ensemble: nve, nvt or npt.")
    ] = MDSettings.ensemble,
    thermostat: Annotated[
        str, typer.Option(help="nvt, npt: langevin, or with --engine ase also bussi.")
    ] = MDSettings.thermostat,
    temperature: Annotated[
        float,
        typer.Option(
            metavar="K", help="Temperature of the initial velocities and the thermostat, K."
        ),
    ] = MDSettings.temperature,
    pressure: Annotated[
        float, typer.Option(metavar="BAR", help="npt: pressure, bar.")
    ] = MDSettings.pressure,
    timestep: Annotated[
        float, typer.Option(metavar="FS", help="Time step, fs.")
    ] = MDSettings.timestep,
    steps: Annotated[
        int,
        typer.Option(help="Total number of steps; with --resume a larger one extends the run."),
    ] = MDSettings.steps,
    seed: Annotated[
        int | None, typer.Option(help="Seed of all random numbers. Default: drawn at random.")
    ] = None,
    interval: Annotated[
        int, typer.Option(help="Steps between log lines and trajectory frames.")
    ] = MDSettings.interval,
    thermostat_time: Annotated[
        float,
        typer.Option(
            metavar="FS", help="Time constant, fs: 1/friction of langevin, tau of bussi."
        ),
    ] = MDSettings.thermostat_time,
    barostat_time: Annotated[
        float, typer.Option(metavar="FS", help="npt, --engine ase: time constant, fs.")
    ] = MDSettings.barostat_time,
    compressibility: Annotated[
        float | None,
        typer.Option(
            metavar="1/BAR",
            help="npt, --engine ase: compressibility, 1/bar, which sets the pace of the volume. "
            "Default: estimated from the model.",
        ),
    ] = None,
    keep_velocities: Annotated[
        bool,
        typer.Option("--keep-velocities", help="Start with the velocities in the file."),
    ] = False,
    barostat: Annotated[
        str,
        typer.Option(help="npt: scale the box isotropic or anisotropic.", rich_help_panel=OPENMM),
    ] = MDSettings.barostat,
    minimize: Annotated[
        bool,
        typer.Option("--minimize", help="Minimise the energy first.", rich_help_panel=OPENMM),
    ] = False,
    trajectory: Annotated[
        str,
        typer.Option(
            help="Format of the trajectory: extxyz, or dcd or xtc for a copy in that format.",
            rich_help_panel=OPENMM,
        ),
    ] = MDSettings.trajectory,
    ml_atoms: Annotated[
        str | None,
        typer.Option(
            metavar="ATOMS",
            help="Atoms that the potential describes, such as 0-21,30, or resname LIG, or "
            "chain A; a force field describes the others. The structure is a PDB or mmCIF file.",
            rich_help_panel=OPENMM,
        ),
    ] = None,
    force_field: Annotated[
        list[str] | None,
        typer.Option(
            metavar="XML",
            help="Force field of the other atoms; several files separated by commas, for example "
            "amber14-all.xml,amber14/tip3p.xml.",
            rich_help_panel=OPENMM,
        ),
    ] = None,
    constraints: Annotated[
        str,
        typer.Option(
            help="Constraints of the force field's atoms: none, or hbonds (and rigid water).",
            rich_help_panel=OPENMM,
        ),
    ] = MDSettings.constraints,
    hydrogen_mass: Annotated[
        float | None,
        typer.Option(
            metavar="U",
            help="Mass of the force field's hydrogens, u, taken from the bonded atom.",
            rich_help_panel=OPENMM,
        ),
    ] = None,
    platform: Annotated[
        str | None,
        typer.Option(
            help="OpenMM platform: Reference, CPU, CUDA or OpenCL. Default: chosen by the model's "
            "device and the force field.",
            rich_help_panel=OPENMM,
        ),
    ] = None,
    engine_force: Annotated[
        str,
        typer.Option(
            help="How OpenMM calls the potential: auto, torchforce or python.",
            rich_help_panel=OPENMM,
        ),
    ] = MDSettings.engine_force,
    doubt: Doubt = None,
    stop_on_doubt: StopOnDoubt = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run folder (default NAME_md).")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Run folder to resume; only --steps may change.")
    ] = None,
    save_every: Annotated[
        float,
        typer.Option(
            metavar="S", help="Wall time between restarts, s: at most this much is lost to a kill."
        ),
    ] = 10.0,
    charge: Charge = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    backend: Backend = "auto",
    threads: Threads = None,
    units: Units = None,
    coulomb_cutoff: CoulombCutoff = None,
    dispersion: Dispersion = None,
    as_json: Json = False,
) -> None:
    """Run molecular dynamics of a structure, in a run folder that survives a kill."""
    if resume is not None:
        given = {
            name: context.params[name]
            for name in given_options(context)
            if name not in ("resume", "save_every", "as_json")
        }
        if "units" in given:
            given["units"] = parse_units(units)
        if "force_field" in given:
            given["force_field"] = split(force_field)
        total = given.get("steps", RunFolder.open(resume).config["settings"]["steps"])
        with md_progress(total) as observer:
            summary = relaunch_md(resume, given, observer=observer, save_every=save_every)
    else:
        if structure is None:
            raise ValueError("no structure: give a file, or --resume RUN_DIR to resume a run")
        values = {name: context.params[name] for name in MDSettings.__dataclass_fields__}
        values["force_field"] = split(force_field)
        values["seed"] = int.from_bytes(os.urandom(4), "big") if seed is None else seed
        settings = MDSettings(**values)
        how = model_settings(
            model, charge, dtype, device, backend, threads, units, coulomb_cutoff, dispersion
        )
        folder = Path(f"{Path(structure.partition('@')[0]).name.partition('.')[0]}_md")
        with md_progress(steps) as observer:
            summary = launch_md(
                structure, how, settings, out or folder, observer=observer, save_every=save_every
            )
    say(
        f"done: steps {summary.first_step} to {summary.last_step}, "
        f"{summary.milliseconds_per_step:.2f} ms a step ({summary.nanoseconds_per_day:.2f} ns/day)"
        f"; look at it with: tensormd report {summary.folder}"
    )
    if as_json:
        show_json(summary.to_json())
