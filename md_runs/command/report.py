"""`tensormd report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..reports.runs import write_report
from .console import show_json
from .options import Json


def report(
    run_dir: Annotated[Path, typer.Argument(help="Folder that md, relax or train wrote.")],
    as_json: Json = False,
) -> None:
    """Write figures and an HTML page of a run: energies (eV), temperature (K), distances (A)."""
    page, numbers = write_report(run_dir)
    if as_json:
        show_json({**numbers, "report": str(page)})
        return
    for name, value in {**numbers, "report": page}.items():
        print(f"{name:28}{value if value is not None else '-'}")
