"""What a format of checkpoints is, and what its reader is told.

A format is one file of this folder that ends in a `Format`, and its row in ``loading.FORMATS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from ..networks.torchmdnet import TorchMDNetPotential
from ..potential import Potential
from ..units import energy_in_ev, length_in_angstrom

Units = tuple[str, str]
"""Names of the units of length and energy."""


@dataclass
class Request:
    """What the caller said of the checkpoint, and what had to be assumed."""

    units: Units | None
    elements: list[int] | None
    assumed: list[str] = field(default_factory=list)
    """Files whose units nobody states."""


class Format(NamedTuple):
    """One kind of checkpoint that holds one potential."""

    name: str
    """As error messages list it."""
    container: Literal["file", "torch", "folder"]
    """What its functions are given: the bytes of a file; the contents of a file that torch wrote,
    loaded without running code; or the bytes of the ``files`` of a folder, by name."""
    recognises: Callable[[Any], bool]
    """Whether contents are of this format."""
    reads: Callable[[Any, str, Request], Potential | TorchMDNetPotential]
    """The potential, from the contents, the name for error messages, and what the caller said."""
    units: Units | None
    """Those of every file of this format; None: its reader finds out, see `agreed`."""
    files: tuple[str, ...] = ()
    """Of a folder: the files that it has to have, the weights last."""


def agreed(stated: Units, given: Units | None, name: str) -> Units:
    """The units of a file that states them.

    Raises
    ------
    ValueError
        If the caller gave others.
    """
    if given is None:
        return stated
    ours = length_in_angstrom(stated[0]), energy_in_ev(stated[1])
    if ours != (length_in_angstrom(given[0]), energy_in_ev(given[1])):
        raise ValueError(f"units is {given!r}, but {name} states {stated!r}: leave units out")
    return stated
