"""`tensormd serve`."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from ...calculators.sockets import LOOPBACK
from ...calculators.sockets import serve as serve_calculator
from ..md.launch import resolve_model
from ..runs.models import load_calculator
from ..runs.signals import StopRequest
from ..runs.structures import read_structure
from .console import say
from .options import (
    Backend,
    Charge,
    CoulombCutoff,
    Device,
    Dispersion,
    Dtype,
    Model,
    Threads,
    Units,
    model_settings,
)


def serve(
    structure: Annotated[
        str,
        typer.Argument(
            help="File with the atoms in the order of the other program; FILE@INDEX takes one."
        ),
    ],
    model: Model = None,
    socket: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="UNIX socket: the program listens at /tmp/ipi_NAME, as i-PI does."
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(metavar="N", help="TCP port instead of a UNIX socket.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="With --port: the machine; nothing is encrypted.")
    ] = LOOPBACK,
    wait: Annotated[
        float, typer.Option(metavar="S", help="Seconds to wait for the program to listen.")
    ] = 30.0,
    charge: Charge = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    backend: Backend = "auto",
    threads: Threads = None,
    units: Units = None,
    coulomb_cutoff: CoulombCutoff = None,
    dispersion: Dispersion = None,
) -> None:
    """Serve a potential to i-PI or another program with its protocol, until that program ends."""
    if (socket is None) == (port is None):
        raise ValueError("give --socket NAME or --port N: where the program listens")
    atoms = read_structure(structure)
    how = model_settings(
        model, charge, dtype, device, backend, threads, units, coulomb_cutoff, dispersion
    )
    atoms.calc, record = load_calculator(resolve_model(how, [atoms]))
    atoms.get_forces()  # compiles, and finds what does not fit, before anybody waits
    say(f"{atoms.get_chemical_formula()} with {record['name']} ({record['engine']})")
    began, served = time.monotonic(), 0

    def count(number: int) -> None:
        nonlocal served
        served = number

    with StopRequest(at_once=True) as stop:
        try:
            serve_calculator(atoms, socket=socket, port=port, host=host, wait=wait, step=count)
        except KeyboardInterrupt:
            raise stop.interrupted(f"interrupted after {served} evaluations") from None
    seconds = time.monotonic() - began
    say(f"the program has ended after {served} evaluations in {seconds:.1f} s")
