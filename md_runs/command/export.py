"""`tensormd export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from torch import nn

from ...calculators.checks import charge_of, check_elements, warn_of_charge
from ...models import export_torchscript, load_potential
from ...models.inference.torchscript import TARGETS
from ...models.potential import parse_dtype
from ..runs.models import parse_elements
from ..runs.structures import read_structure
from .console import say
from .options import Checkpoint, Dtype, OtherMembers, Units, check_folder_of, parse_units


def export(
    checkpoint: Checkpoint,
    output: Annotated[Path, typer.Argument(help="TorchScript file to write, such as model.pt.")],
    model: OtherMembers = None,
    target: Annotated[
        str,
        typer.Option(
            help="portable: any program with libtorch (A, eV); openmm: TorchForce (nm, kJ/mol); "
            "gromacs: NNPot of GROMACS 2025 and newer (nm, kJ/mol)."
        ),
    ] = "portable",
    numbers: Annotated[
        str | None,
        typer.Option(
            metavar="Z", help="openmm: elements of the atoms in order, such as O,H,H or 8,1,1."
        ),
    ] = None,
    structure: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="openmm: a structure with the atoms and the periodicity."
        ),
    ] = None,
    charge: Annotated[
        int | None,
        typer.Option(
            metavar="E",
            help="openmm, gromacs: total charge, e. Default: that of the structure, or 0.",
        ),
    ] = None,
    periodic: Annotated[
        bool | None,
        typer.Option(
            "--periodic/--no-periodic",
            help="openmm: whether the box is periodic. Default: as in the structure.",
        ),
    ] = None,
    tables: Annotated[
        bool,
        typer.Option(
            help="Tabulate the radial networks: faster; forces within 2e-5 eV/A of the network's."
        ),
    ] = True,
    dtype: Dtype = "float32",
    units: Units = None,
) -> None:
    """Write a TorchScript file that needs neither tensormd nor Python; a committee's mean."""
    if target not in TARGETS:
        raise ValueError(f"--target is {target!r}: expected one of {', '.join(TARGETS)}")
    check_folder_of(output)
    atoms: list[int] | None = None
    box = False
    if target == "openmm":
        atoms, box, charge = topology(numbers, structure, charge, periodic)
    potential = load_for_export([checkpoint, *(model or ())], dtype, parse_units(units), atoms)
    warn_of_charge(potential, charge or 0)
    export_torchscript(
        potential,
        output,
        target,
        numbers=atoms,
        charge=charge or 0,
        periodic=box,
        tables=tables,
    )
    say(f"wrote {output}")


def topology(
    numbers: str | None, structure: str | None, charge: int | None, periodic: bool | None
) -> tuple[list[int], bool, int]:
    """Atomic numbers, periodicity and charge (e) of the system that OpenMM will run.

    Raises
    ------
    ValueError, OSError
        If neither or both of numbers and structure are given, a structure cannot be read, or it
        is periodic in some directions only, which OpenMM does not know.
    """
    if (numbers is None) == (structure is None):
        raise ValueError(
            "--target openmm is made for one topology: give its atoms by --structure FILE or by "
            "--numbers such as O,H,H"
        )
    if numbers is not None:
        return parse_elements(numbers, "--numbers"), bool(periodic), charge or 0
    atoms = read_structure(str(structure))
    if periodic is None and atoms.pbc.any() and not atoms.pbc.all():
        raise ValueError(
            f"{structure} is periodic in some directions only, and OpenMM's boxes in all: give "
            "--periodic or --no-periodic"
        )
    box = bool(atoms.pbc.all()) if periodic is None else periodic
    return atoms.numbers.tolist(), box, charge_of(atoms) if charge is None else charge


def load_for_export(
    names: list[str], dtype: str, units: tuple[str, str] | None, atoms: list[int] | None
) -> nn.Module:
    """The potential, or the committee, in a dtype, for the elements of ``atoms``.

    Raises
    ------
    ValueError, OSError
        If it cannot be read, or does not know an element.
    """
    precision = parse_dtype(dtype)
    potential = load_potential(names[0] if len(names) == 1 else names, units=units)
    if atoms is not None:
        check_elements(np.array(atoms), potential.elements)
    return potential.to(precision).eval()
