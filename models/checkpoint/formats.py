"""Interface of checkpoint formats, and of requests to their readers.

A format is a module of this folder with a `Format` at its end, and a row in ``loading.FORMATS``.
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
    """Information from the caller about a checkpoint, and assumptions made in reading it."""

    units: Units | None
    """Units of length and energy, if the caller gave them."""
    elements: list[int] | None
    """Atomic numbers, if the caller gave them."""
    assumed: list[str] = field(default_factory=list)
    """Files whose units were assumed."""


class Format(NamedTuple):
    """A format of checkpoints with one potential."""

    name: str
    """Name in error messages."""
    container: Literal["file", "torch", "folder"]
    """Input of its functions: the bytes of a file; the contents of a torch file, loaded without
    running code; or the bytes of the ``files`` of a folder, by name."""
    recognises: Callable[[Any], bool]
    """Function that tells whether contents have this format."""
    reads: Callable[[Any, str, Request], Potential | TorchMDNetPotential]
    """Function from contents, the name for error messages and the request to a potential."""
    units: Units | None
    """Units of all files of this format; None: the reader determines them, see `agreed`."""
    files: tuple[str, ...] = ()
    """Required files of a folder, the weights last."""


def agreed(stated: Units, given: Units | None, name: str) -> Units:
    """Units of a file that states them.

    Raises
    ------
    ValueError
        If the caller gave other units.
    """
    if given is None:
        return stated
    ours = length_in_angstrom(stated[0]), energy_in_ev(stated[1])
    if ours != (length_in_angstrom(given[0]), energy_in_ev(given[1])):
        raise ValueError(f"units is {given!r}, but {name} states {stated!r}: leave units out")
    return stated
