"""`tensormd eos`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..workflows.eos import EosSettings, eos_of_file
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


def eos(
    structure: Annotated[
        str, typer.Argument(help="File that ASE reads; FILE@INDEX takes one of several.")
    ],
    model: Model = None,
    range_: Annotated[
        float, typer.Option("--range", help="Largest change of the volume, as a fraction.")
    ] = EosSettings.range,
    points: Annotated[int, typer.Option(help="Number of volumes.")] = EosSettings.points,
    fmax: Annotated[
        float, typer.Option(metavar="EV/A", help="Largest force on an atom at each volume, eV/A.")
    ] = EosSettings.fmax,
    steps: Annotated[
        int, typer.Option(help="Maximum number of relaxation steps at each volume.")
    ] = EosSettings.steps,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run folder (default NAME_eos).")
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
    """Fit the energy of a crystal against its volume (Birch-Murnaghan).

    Exit code 1 if the lowest energy is not within the range.
    """
    settings = EosSettings(range=range_, points=points, fmax=fmax, steps=steps)
    how = model_settings(
        model, charge, dtype, device, backend, threads, units, coulomb_cutoff, dispersion
    )
    results = eos_of_file(structure, how, settings, out)
    if as_json:
        show_json(results)
        return
    print(f"volume        {results['volume_a3']:.4f} A^3")
    print(f"energy        {results['energy_ev']:.6f} eV")
    print(f"bulk modulus  {results['bulk_modulus_gpa']:.2f} GPa")
    print(f"derivative    {results['bulk_modulus_derivative']:.2f}")
    say(f"figure: tensormd report {results['folder']}")
