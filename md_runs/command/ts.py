"""`tensormd ts`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..workflows.ts import TsSettings, ts_of_file
from .console import say, show_json
from .options import (
    Backend,
    Charge,
    CoulombCutoff,
    Device,
    Dispersion,
    Dtype,
    Json,
    Model,
    Threads,
    Units,
    model_settings,
)
from .progress import ts_progress


def ts(
    structure: Annotated[
        str, typer.Argument(help="File that ASE reads; FILE@INDEX takes one of several.")
    ],
    model: Model = None,
    fmax: Annotated[
        float, typer.Option(metavar="EV/A", help="Largest force at convergence, eV/A.")
    ] = TsSettings.fmax,
    steps: Annotated[int, typer.Option(help="Maximum number of steps.")] = TsSettings.steps,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run folder (default NAME_ts).")
    ] = None,
    charge: Charge = None,
    dtype: Dtype = "float64",
    device: Device = "auto",
    backend: Backend = "auto",
    threads: Threads = None,
    units: Units = None,
    coulomb_cutoff: CoulombCutoff = None,
    dispersion: Dispersion = None,
    as_json: Json = False,
) -> None:
    """Find the transition state near a structure (Sella), with the exact Hessian.

    Exit code 1 if it does not converge, or not to a saddle point of first order.
    """
    settings = TsSettings(fmax=fmax, steps=steps)
    how = model_settings(
        model, charge, dtype, device, backend, threads, units, coulomb_cutoff, dispersion
    )
    results = ts_of_file(structure, how, settings, out, observer=ts_progress())
    if as_json:
        show_json(results)
    else:
        modes = results["frequencies_inv_cm"]
        print(f"energy            {results['energy_ev']:.6f} eV")
        print(f"since the start   {results['energy_change_ev']:+.4f} eV")
        print(f"imaginary modes   {results['imaginary']}")
        print(f"lowest frequency  {modes[0]:.0f} 1/cm (imaginary: negative)")
        say(f"modes to watch: tensormd report {results['folder']}")
    if not results["converged"]:
        say("not converged: the structure so far is saved; allow more --steps or a larger --fmax")
    elif results["imaginary"] != 1:
        say(
            f"no transition state: {results['imaginary']} imaginary modes, expected 1; begin "
            "nearer to it, such as at the highest image of tensormd neb"
        )
    if not results["converged"] or results["imaginary"] != 1:
        raise typer.Exit(1)
