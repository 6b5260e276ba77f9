"""`tensormd vibrations`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..workflows.vibrations import VibrationsSettings, vibrations_of_file
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


def vibrations(
    structure: Annotated[
        str, typer.Argument(help="File that ASE reads; FILE@INDEX takes one of several.")
    ],
    model: Model = None,
    fmax: Annotated[
        float, typer.Option(metavar="EV/A", help="Largest force at the minimum, eV/A.")
    ] = VibrationsSettings.fmax,
    steps: Annotated[
        int, typer.Option(help="Maximum number of relaxation steps.")
    ] = VibrationsSettings.steps,
    temperature: Annotated[
        float, typer.Option(metavar="K", help="Temperature of the thermochemistry, K.")
    ] = VibrationsSettings.temperature,
    pressure: Annotated[
        float, typer.Option(metavar="BAR", help="Pressure of the ideal gas, bar.")
    ] = VibrationsSettings.pressure,
    symmetry: Annotated[
        int, typer.Option(metavar="N", help="Rotational symmetry number (water 2, benzene 12).")
    ] = VibrationsSettings.symmetry,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run folder (default NAME_vibrations).")
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
    """Relax a molecule and compute harmonic vibrations and thermochemistry.

    Exit code 1 if the relaxation does not converge.
    """
    settings = VibrationsSettings(
        fmax=fmax, steps=steps, temperature=temperature, pressure=pressure, symmetry=symmetry
    )
    how = model_settings(
        model, charge, dtype, device, backend, threads, units, coulomb_cutoff, dispersion
    )
    results = vibrations_of_file(structure, how, settings, out)
    if as_json:
        show_json(results)
        return
    print("1/cm:", " ".join(f"{value:.0f}" for value in results["frequencies_inv_cm"]))
    print(f"zero-point energy  {results['zero_point_ev']:.4f} eV")
    if "gibbs_ev" in results:
        print(f"enthalpy           {results['enthalpy_ev']:.4f} eV at {temperature:g} K")
        print(f"entropy            {1e3 * results['entropy_ev_per_k']:.4f} meV/K")
        print(f"free energy        {results['gibbs_ev']:.4f} eV at {pressure:g} bar")
    else:
        say(
            f"{results['imaginary']} imaginary frequencies (negative): a saddle point, without "
            "thermochemistry; move the atoms off it to find the minimum"
        )
    say(f"modes to watch: tensormd report {results['folder']}")
