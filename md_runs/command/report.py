"""`tensormd report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..reports.runs import write_report
from .console import show_json, show_tree
from .options import Json


def report(
    run_dir: Annotated[
        Path, typer.Argument(help="Folder that md, relax or train wrote, or a folder of such.")
    ],
    as_json: Json = False,
) -> None:
    """Write figures and an HTML page of a run: energies (eV), temperature (K), distances (A)."""
    page, numbers = write_report(run_dir)
    if as_json:
        show_json({**numbers, "report": str(page)})
        return
    show_tree({**numbers, "report": page}, width=28)
