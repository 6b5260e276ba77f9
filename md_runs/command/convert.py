"""`tensormd convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..runs.models import convert_checkpoint
from .console import say
from .options import Checkpoint, Units, parse_units


def convert(
    checkpoint: Checkpoint,
    output: Annotated[
        Path,
        typer.Argument(help="File to write: model.safetensors, or torchmd-net's model.ckpt."),
    ],
    units: Units = None,
    elements: Annotated[
        str | None,
        typer.Option(
            help="Elements it was trained on, where its file does not state them: symbols or "
            "atomic numbers, for example H,C,O."
        ),
    ] = None,
) -> None:
    """Convert a checkpoint to the native format, or a TensorNet's to torchmd-net's (.ckpt)."""
    say(f"wrote {convert_checkpoint(checkpoint, output, parse_units(units), elements)}")
