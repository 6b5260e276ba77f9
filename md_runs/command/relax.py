"""`tensormd relax`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..md.relax import RelaxResult, relax_files
from ..runs.settings import RelaxSettings
from .console import say, show_json
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
)
from .progress import relax_progress


def relax(
    structures: Annotated[
        list[str],
        typer.Argument(
            metavar="STRUCTURE...",
            help="Files that ASE reads, with all their structures; FILE@INDEX takes one.",
        ),
    ],
    model: Model = None,
    fmax: Annotated[
        float, typer.Option(metavar="EV/A", help="Largest force at convergence, eV/A.")
    ] = RelaxSettings.fmax,
    cell: Annotated[bool, typer.Option("--cell", help="Relax the cell as well.")] = False,
    pressure: Annotated[
        float, typer.Option(metavar="BAR", help="External pressure, bar; with --cell only.")
    ] = RelaxSettings.pressure,
    optimizer: Annotated[
        str, typer.Option(help="Optimizer: lbfgs, fire or bfgs.")
    ] = RelaxSettings.optimizer,
    steps: Annotated[int, typer.Option(help="Maximum number of steps.")] = RelaxSettings.steps,
    doubt: Doubt = None,
    stop_on_doubt: StopOnDoubt = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder of the results (default NAME_relaxed), or for one structure a file "
            "such as relaxed.cif.",
        ),
    ] = None,
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
    """Relax structures with ASE's optimizers. Exit code 1 if one does not converge or fails."""
    settings = RelaxSettings(
        fmax=fmax,
        optimizer=optimizer,
        steps=steps,
        cell=cell,
        pressure=pressure,
        doubt=doubt,
        stop_on_doubt=stop_on_doubt,
    )
    how = model_settings(
        model, charge, dtype, device, backend, threads, units, coulomb_cutoff, dispersion
    )

    def done(result: RelaxResult) -> None:
        say(
            f"{result.source}  {'converged' if result.converged else 'NOT CONVERGED'} after "
            f"{result.steps} steps  {result.energy_ev:.6f} eV  fmax {result.fmax_ev_per_a:.4f} "
            f"eV/A (wanted {fmax:g})  -> {result.output}"
        )

    failures: list[str] = []

    def failed(name: str, error: Exception) -> None:
        failures.append(name)
        reason = " ".join(str(error).split())
        say(f"tensormd: {reason if reason.startswith(name) else f'{name}: {reason}'}")

    results = relax_files(
        structures, how, settings, out, observer=relax_progress, done=done, failed=failed
    )
    if as_json:
        show_json([result.to_json() for result in results])
    if failures:
        say(f"failed: {', '.join(failures)}; the others are done")
    if not all(result.converged for result in results):
        say(
            "not converged: the structures so far are saved; allow more --steps or a larger --fmax"
        )
    if failures or not all(result.converged for result in results):
        raise typer.Exit(1)
