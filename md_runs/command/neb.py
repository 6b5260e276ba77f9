"""`tensormd neb`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..workflows.neb import NebSettings, neb_of_files
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
from .progress import neb_progress


def neb(
    first: Annotated[
        str, typer.Argument(help="File of one end; FILE@INDEX takes one of several.")
    ],
    last: Annotated[
        str, typer.Argument(help="File of the other end: the same atoms in the same order.")
    ],
    model: Model = None,
    images: Annotated[
        int, typer.Option(help="Number of structures between the ends.")
    ] = NebSettings.images,
    fmax: Annotated[
        float, typer.Option(metavar="EV/A", help="Largest force of the band, eV/A.")
    ] = NebSettings.fmax,
    steps: Annotated[int, typer.Option(help="Maximum number of steps.")] = NebSettings.steps,
    keep_ends: Annotated[
        bool, typer.Option("--keep-ends", help="Take both ends as they are: do not relax them.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run folder (default NAME_neb).")
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
    """Find the lowest path between two structures: nudged elastic band with a climbing image.

    Exit code 1 if it does not converge.
    """
    settings = NebSettings(images=images, fmax=fmax, steps=steps, relax_ends=not keep_ends)
    how = model_settings(
        model, charge, dtype, device, backend, threads, units, coulomb_cutoff, dispersion
    )
    results = neb_of_files(first, last, how, settings, out, observer=neb_progress())
    if as_json:
        show_json(results)
    else:
        print(f"barrier          {results['barrier_ev']:.4f} eV")
        print(f"way back         {results['reverse_barrier_ev']:.4f} eV")
        print(f"reaction energy  {results['reaction_energy_ev']:+.4f} eV")
        say(f"path to play: tensormd report {results['folder']}")
    if not results["converged"]:
        say("not converged: the path so far is saved; allow more --steps or a larger --fmax")
        raise typer.Exit(1)
