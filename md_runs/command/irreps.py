"""`tensormd irreps`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from ..evaluate.irreps import run_irreps
from ..reports.irreps import COLORS, console_tables, write_irreps
from ..runs.folder import refuse_existing
from .console import say, show_files, show_json
from .options import AllThreads, Json, Units, parse_units


def irreps(
    checkpoint: Annotated[
        str, typer.Argument(help="A TensorNet or TDN: a file, a folder or a registry name.")
    ],
    data: Annotated[
        Path,
        typer.Argument(
            help="Frames with energies, forces or both: extended XYZ, an npz file of revised "
            "MD17, an ASE database, ..."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the results (default NAME_irreps)."),
    ] = None,
    limit: Annotated[
        int, typer.Option(metavar="N", help="Analyse at most this many frames, from the start.")
    ] = 200,
    prune: Annotated[
        str | None,
        typer.Option(
            metavar="ORDER",
            help="Write the checkpoint without this order: A or S for a TensorNet, l=1, l=2, ... "
            "for a TDN.",
        ),
    ] = None,
    fine_tune: Annotated[
        int,
        typer.Option(
            metavar="EPOCHS",
            help="Train each pruned network for this many epochs, on up to 1000 frames after "
            "those analysed; --prune then writes the trained one.",
        ),
    ] = 0,
    color: Annotated[
        str,
        typer.Option(help="Colour of the maps of embeddings: energy (per atom), atoms or forces."),
    ] = "energy",
    threads: AllThreads = None,
    units: Units = None,
    as_json: Json = False,
) -> None:
    """Find out which orders (irreps) of a network matter: shares, errors without each, advice."""
    folder = Path(f"{data.name.partition('.')[0]}_irreps") if out is None else out
    if color not in COLORS:
        raise ValueError(f"--color is {color!r}: expected one of {', '.join(COLORS)}")
    if threads is not None:
        if threads < 1:
            raise ValueError(f"--threads is {threads}: expected 1 or more")
        torch.set_num_threads(threads)
    refuse_existing(folder, "choose another folder with -o")
    found = run_irreps(
        checkpoint,
        data,
        folder,
        limit=limit,
        prune=prune,
        epochs=fine_tune,
        units=parse_units(units),
        tell=say,
    )
    content = write_irreps(found, folder, color)
    if as_json:
        show_json(content)
        return
    console = Console()
    for table in console_tables(content):
        console.print(table)
    console.print(content["recommendation"]["text"], highlight=False)
    show_files(content["files"])
