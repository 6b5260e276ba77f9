"""`tensormd evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..evaluate.evaluation import evaluate_checkpoint
from ..reports.evaluation import tables, write_evaluation
from ..runs.files import write_json
from ..runs.folder import refuse_existing
from ..runs.signals import StopRequest
from .console import show_files, show_json
from .options import (
    AllThreads,
    Backend,
    Charge,
    Checkpoint,
    CoulombCutoff,
    DataUnits,
    Device,
    Dispersion,
    Dtype,
    JsonFile,
    Labels,
    OtherMembers,
    Units,
    json_file,
    pairs,
    parse_units,
)
from .progress import frames_progress


def evaluate(
    checkpoint: Checkpoint,
    data: Annotated[
        Path,
        typer.Argument(
            help="Labelled frames: an npz file of revised MD17 (kcal/mol, A), anything that ASE "
            "reads (eV, eV/A): extended XYZ, ASE database, ...; an LMDB file; QM9."
        ),
    ],
    model: OtherMembers = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the results (default NAME_evaluation)."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Read at most N frames. Default: all.")
    ] = None,
    format_name: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="NAME", help="Format of the data. Default: by the file's name."
        ),
    ] = None,
    label: Labels = None,
    data_units: DataUnits = None,
    batch: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Frames in a batch. Default: as many as have 2000 atoms together."
        ),
    ] = None,
    worst: Annotated[int, typer.Option(metavar="N", help="Write the N worst frames.")] = 10,
    charge: Charge = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    backend: Backend = "auto",
    threads: AllThreads = None,
    units: Units = None,
    coulomb_cutoff: CoulombCutoff = None,
    dispersion: Dispersion = None,
    json: JsonFile = None,
) -> None:
    """Compute the errors of a checkpoint on labelled frames, of all that it predicts."""
    if worst < 1:
        raise ValueError(f"--worst is {worst}: expected 1 or more")
    folder = Path(f"{data.name.partition('.')[0]}_evaluation") if out is None else out
    to_file = json_file(json)
    refuse_existing(folder, "choose another folder with -o")
    progress = frames_progress()

    def tell(done: int, total: int) -> None:
        progress(done, total)
        if stop.asked():
            raise stop.interrupted(f"interrupted after {done} of {total} frames, nothing written")

    with StopRequest() as stop:
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
            coulomb_cutoff=coulomb_cutoff,
            dispersion=dispersion,
            tell=tell,
        )
    summary = write_evaluation(found, folder, worst)
    if to_file is not None:
        write_json(to_file, summary)
    elif json is not None:
        show_json(summary)
        return
    console = Console()
    for table in tables(summary):
        console.print(table)
    show_files(summary["files"])
