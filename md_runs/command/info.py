"""`tensormd info`."""

from __future__ import annotations

from ..runs.models import describe_checkpoint
from .console import show_json, show_tree
from .options import Checkpoint, Json, Units, parse_units


def info(checkpoint: Checkpoint, units: Units = None, as_json: Json = False) -> None:
    """Show what a checkpoint holds: architecture, elements, cutoff (A), units, errors, licence."""
    found = describe_checkpoint(checkpoint, parse_units(units))
    (show_json if as_json else show_tree)(found)
