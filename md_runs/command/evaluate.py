"""`tensormd evaluate`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from .console import SECONDS_BETWEEN_LINES, say, show_json
from .options import Backend, Charge, Device, Dtype, OtherMembers, Units, pairs, parse_units


def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="A file, a folder or a registry name.")],
    data: Annotated[
        Path,
        typer.Argument(
            help="Frames with energies and forces: an npz file of revised MD17 (kcal/mol, A), "
            "anything that ASE reads (eV, eV/A): extended XYZ, ASE database, ...; an LMDB file."
        ),
    ],
    model: OtherMembers = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the results (NAME_evaluation).")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="The first N frames; by default all.")
    ] = None,
    format_name: Annotated[
        str | None,
        typer.Option("--format", metavar="NAME", help="Of the data; by default told by its name."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=NAME",
            help="Name of a label in the file, such as energy=REF_energy; as often as needed. "
            "Without NAME the label is left out.",
        ),
    ] = None,
    data_units: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=UNIT",
            help="Unit of energy, length, forces or stress in the file, such as energy=kcal/mol.",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Frames at once; by default as many as make up 2000 atoms."
        ),
    ] = None,
    worst: Annotated[int, typer.Option(metavar="N", help="Worst frames to write.")] = 10,
    charge: Charge = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    backend: Backend = "auto",
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Processor threads; by default all.")
    ] = None,
    units: Units = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="One more file for all numbers; - prints them."
        ),
    ] = None,
) -> None:
    """Errors of a checkpoint on labelled frames: energies (meV), forces (meV/A), stress."""
    if worst < 1:
        raise ValueError(f"--worst is {worst}: expected 1 or more")
    folder = Path(f"{data.name.partition('.')[0]}_evaluation") if out is None else out
    to_file = json_file is not None and str(json_file) != "-"
    if to_file and json_file is not None and not json_file.parent.is_dir():
        raise ValueError(f"{json_file}: there is no folder {json_file.parent}")
    from ..evaluate.evaluation import evaluate_checkpoint
    from ..runs.folder import refuse_existing

    refuse_existing(folder, "choose another folder with -o")
    spoke = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal spoke
        if time.monotonic() - spoke > SECONDS_BETWEEN_LINES:
            spoke = time.monotonic()
            say(f"{done} of {total} frames")

    found = evaluate_checkpoint(
        [checkpoint, *(model or ())],
        data,
        limit=limit,
        format=format_name,
        keys={name: key or None for name, key in pairs(label, "--label").items()},
        data_units=pairs(data_units, "--data-units") or None,
        batch=batch,
        charge=charge,
        dtype=dtype,
        device=device,
        backend=backend,
        threads=threads,
        units=parse_units(units),
        tell=tell,
    )
    from ..reports.evaluation import tables, write_evaluation
    from ..runs.files import write_json

    summary = write_evaluation(found, folder, worst)
    if to_file and json_file is not None:
        write_json(json_file, summary)
    if json_file is not None and not to_file:
        show_json(summary)
        return
    from rich.console import Console

    console = Console()
    for table in tables(summary):
        console.print(table)
    for name, file in summary["files"].items():
        print(f"{name.replace('_', ' ') + ':':19}{file}")
