"""Units of a data set, and their conversion to eV and Angstrom."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ..quantities import QUANTITIES
from ..units import (
    ENERGY_UNITS_IN_EV,
    LENGTH_UNITS_IN_ANGSTROM,
    energy_in_ev,
    length_in_angstrom,
    unit_factor,
)

_SPELLED = {
    "a": "angstrom",
    "ang": "angstrom",
    "å": "angstrom",
    "ha": "hartree",
    "kcal mol-1": "kcal/mol",
    "kj mol-1": "kj/mol",
}
_NAMED = ("length", *(name for name, row in QUANTITIES.items() if row.derive is None))
"""Quantities with a unit of their own; derived quantities have the unit of their source."""


class DataUnits:
    """Units of all labels of a data set.

    Parameters
    ----------
    units
        Units by quantity, and of ``length``; None: the default. Defaults are Angstrom, the first
        unit of the quantity's row (that of ASE), and for forces and stress the unit of energy
        divided by the unit of length or its cube. Forces may have a unit such as
        ``hartree/bohr``.

    Raises
    ------
    ValueError
        If a quantity or a unit is unknown.
    """

    def __init__(self, **units: str | None) -> None:
        self._units: dict[str, str] = {}
        for name, unit in units.items():
            if name not in _NAMED:
                raise ValueError(f"units: unknown {name!r}: expected {', '.join(_NAMED)}")
            if unit is not None and not isinstance(unit, str):
                raise ValueError(f"units: {name} is {unit!r}: expected the name of a unit")
            if unit is not None:
                self._units[name] = unit
        for name in _NAMED:
            self.factor(name)

    def with_changes(self, units: Mapping[str, Any] | None) -> DataUnits:
        """These units, except those that a user gives.

        Raises
        ------
        ValueError
            If a quantity or a unit is unknown.
        """
        return DataUnits(**{**self._units, **(units or {})})

    def factor(self, name: str) -> float:
        """Size of the unit of a label, or of ``length``, in eV, Angstrom and e."""
        if name == "length":
            return length_in_angstrom(_plain(self._units.get(name, "angstrom")))
        row = QUANTITIES[name]
        name = row.of or name
        unit = self._units.get(name)
        if unit is None:
            if row.per_length is not None:
                return self.factor("energy") / self.factor("length") ** row.per_length
            return next(iter(row.units.values()))
        if name == "forces":
            return _force(unit)
        return unit_factor(_plain(unit), row.units, name)

    def require(self, stated: object, trusted: bool = False) -> None:
        """Check the units that a frame states.

        Parameters
        ----------
        stated
            Names of units, in a string or a mapping; None: the frame states none.
        trusted
            Whether to ignore unknown names.

        Raises
        ------
        ValueError
            If the frame states other units.
        """
        if stated is None:
            return
        said = stated.values() if isinstance(stated, Mapping) else re.split(r"[,;|]", str(stated))
        for unit in filter(None, (_plain(str(word)) for word in said)):
            kind, factor = _meaning(unit)
            if not kind and not trusted:
                raise ValueError(
                    f"it states the unit {unit!r}, which is unknown: give its units by units, "
                    "such as {energy: ev, length: angstrom}"
                )
            if kind and not math.isclose(factor, self.factor(kind), rel_tol=1e-6):
                raise ValueError(
                    f"it states the unit {unit!r} of {kind}, but is read in another: give units "
                    f"{{{kind}: {unit}}} to all files, and do not mix units"
                )


def _force(unit: str) -> float:
    energy, _, length = _plain(unit).rpartition("/")
    if not energy:
        raise ValueError(
            f"unknown unit of forces {unit!r}: expected energy/length, such as hartree/bohr"
        )
    return energy_in_ev(_plain(energy)) / length_in_angstrom(_plain(length))


def _meaning(unit: str) -> tuple[str, float]:
    """Label to which a unit belongs, and its factor; an empty name if it is unknown."""
    for kind in _NAMED:
        table = LENGTH_UNITS_IN_ANGSTROM if kind == "length" else QUANTITIES[kind].units
        if unit in table:
            return kind, table[unit]
    energy, _, length = unit.rpartition("/")
    length, cube, _ = length.partition("^3")
    energy, length = _plain(energy), _plain(length)
    if energy in ENERGY_UNITS_IN_EV and length in LENGTH_UNITS_IN_ANGSTROM:
        power = 3 if cube else 1
        factor = ENERGY_UNITS_IN_EV[energy] / LENGTH_UNITS_IN_ANGSTROM[length] ** power
        return ("stress" if cube else "forces"), factor
    return "", 0.0


def _plain(unit: str) -> str:
    unit = unit.strip().lower()
    return _SPELLED.get(unit, unit)
