"""`tensormd elastic`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..workflows.elastic import ElasticSettings, elastic_of_file
from ..workflows.single import STRESSED
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


def elastic(
    structure: Annotated[
        str, typer.Argument(help="File that ASE reads; FILE@INDEX takes one of several.")
    ],
    model: Model = None,
    strain: Annotated[float, typer.Option(help="Largest strain.")] = ElasticSettings.strain,
    fmax: Annotated[
        float, typer.Option(metavar="EV/A", help="Largest force on an atom at each strain, eV/A.")
    ] = ElasticSettings.fmax,
    steps: Annotated[
        int,
        typer.Option(help="Maximum number of relaxation steps at each strain; 0: clamped atoms."),
    ] = ElasticSettings.steps,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run folder (default NAME_elastic).")
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
    """Compute elastic constants of a crystal, and the moduli of a polycrystal."""
    settings = ElasticSettings(strain=strain, fmax=fmax, steps=steps)
    how = model_settings(
        model, charge, dtype, device, backend, threads, units, coulomb_cutoff, dispersion
    )
    results = elastic_of_file(structure, how, settings, out)
    if results["max_stress_gpa"] > STRESSED:
        say(
            f"warning: the cell has a stress of {results['max_stress_gpa']:.2f} GPa: relax it "
            "first (tensormd relax --cell)"
        )
    if not results["stable"]:
        say(
            f"warning: the crystal is unstable: its stiffness has an eigenvalue of "
            f"{results['lowest_eigenvalue_gpa']:.2f} GPa"
        )
    if as_json:
        show_json(results)
        return
    print("stiffness / GPa (xx, yy, zz, yz, xz, xy)")
    for row in results["stiffness_gpa"]:
        print(" ".join(f"{value:9.2f}" for value in row))
    if results["stable"]:
        print(f"bulk modulus     {results['bulk_modulus_gpa']['hill']:.2f} GPa (Hill)")
        print(f"shear modulus    {results['shear_modulus_gpa']['hill']:.2f} GPa (Hill)")
        print(f"Young's modulus  {results['young_modulus_gpa']:.2f} GPa")
        print(f"Poisson's ratio  {results['poisson_ratio']:.3f}")
    say(f"figure: tensormd report {results['folder']}")
