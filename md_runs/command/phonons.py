"""`tensormd phonons`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from ..workflows.phonons import PhononsSettings, phonons_of_file
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
    split,
)


def phonons(
    structure: Annotated[
        str, typer.Argument(help="File that ASE reads; FILE@INDEX takes one of several.")
    ],
    model: Model = None,
    supercell: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,N",
            help="Repetitions of the cell. Default: until each vector is 10 A or longer.",
        ),
    ] = None,
    displacement: Annotated[
        float, typer.Option(metavar="A", help="Length of a displacement, A.")
    ] = PhononsSettings.displacement,
    mesh: Annotated[
        float,
        typer.Option(
            metavar="A",
            help="Density of the mesh of wave vectors: a vector of 5 A gets a tenth of 50.",
        ),
    ] = PhononsSettings.mesh,
    temperature: Annotated[
        float, typer.Option(metavar="K", help="Highest temperature of thermal properties, K.")
    ] = PhononsSettings.temperature,
    fmax: Annotated[
        float,
        typer.Option(metavar="EV/A", help="Largest force before displacements, eV/A; fixed cell."),
    ] = PhononsSettings.fmax,
    steps: Annotated[
        int, typer.Option(help="Maximum number of relaxation steps.")
    ] = PhononsSettings.steps,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run folder (default NAME_phonons).")
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
    """Compute phonons of a crystal: bands, density of states, thermal properties (phonopy)."""
    settings = PhononsSettings(
        supercell=None if supercell is None else parse_repeats(supercell),
        displacement=displacement,
        mesh=mesh,
        temperature=temperature,
        fmax=fmax,
        steps=steps,
    )
    how = model_settings(
        model, charge, dtype, device, backend, threads, units, coulomb_cutoff, dispersion
    )
    results = phonons_of_file(structure, how, settings, out)
    if results["imaginary"]:
        say(
            f"warning: imaginary modes down to i {-results['lowest_thz']:.2f} THz: the structure "
            "is no minimum, the supercell too small, or the model wrong here; thermal properties "
            "leave these modes out"
        )
    if (results["max_stress_gpa"] or 0) > STRESSED:
        say(
            f"warning: the cell has a stress of {results['max_stress_gpa']:.2f} GPa: relax it "
            "first (tensormd relax --cell)"
        )
    if as_json:
        show_json(results)
        return
    thermal = results["thermal"]
    at = int(np.argmin(np.abs(np.array(thermal["temperatures_k"]) - 300)))
    print(f"frequencies        {results['lowest_thz']:.3f} to {results['highest_thz']:.3f} THz")
    print(f"zero-point energy  {results['zero_point_ev']:.4f} eV per {results['atoms']} atoms")
    print(f"free energy        {thermal['free_energy_ev'][at]:.4f} eV at "
          f"{thermal['temperatures_k'][at]:g} K")  # fmt: skip
    print(f"entropy            {1e3 * thermal['entropy_ev_per_k'][at]:.4f} meV/K")
    print(f"heat capacity      {1e3 * thermal['heat_capacity_ev_per_k'][at]:.4f} meV/K")
    say(f"bands and density of states: tensormd report {results['folder']}")


def parse_repeats(text: str) -> tuple[int, int, int]:
    """``2,2,2`` as numbers.

    Raises
    ------
    ValueError
        If there are not three numbers.
    """
    parts = split([text])
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise ValueError(f"--supercell is {text!r}: expected three numbers such as 2,2,2")
    a, b, c = map(int, parts)
    return a, b, c
