"""The units of a data set, and how they become eV and Angstrom."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from ..units import (
    DIPOLE_UNITS_IN_E_ANGSTROM,
    ENERGY_UNITS_IN_EV,
    LENGTH_UNITS_IN_ANGSTROM,
    POLARIZABILITY_UNITS_IN_E2_ANGSTROM2_PER_EV,
    dipole_in_e_angstrom,
    energy_in_ev,
    ev_per_angstrom3_in_gpa,
    length_in_angstrom,
    polarizability_in_e2_angstrom2_per_ev,
)

_SPELLED = {
    "a": "angstrom",
    "ang": "angstrom",
    "å": "angstrom",
    "ha": "hartree",
    "kcal mol-1": "kcal/mol",
    "kj mol-1": "kj/mol",
}
_STRESS_IN_EV_PER_ANGSTROM3 = {
    "gpa": 1 / ev_per_angstrom3_in_gpa,
    "kbar": 0.1 / ev_per_angstrom3_in_gpa,
}


@dataclass(frozen=True)
class DataUnits:
    """The unit of every label of a data set; the defaults are those of ASE."""

    length: str = "angstrom"
    energy: str = "ev"
    forces: str | None = None
    """As ``hartree/bohr``; None: energy by length."""
    stress: str | None = None
    """``GPa``, ``kbar`` (with ASE's sign), or None: energy by length cubed."""
    dipole: str = "e*angstrom"
    polarizability: str = "e^2*angstrom^2/ev"

    def __post_init__(self) -> None:
        for field in fields(self):
            self.factor(field.name)

    def with_changes(self, units: Mapping[str, str] | None) -> DataUnits:
        """These units, but for those that a user gives.

        Raises
        ------
        ValueError
            If a quantity or a unit is unknown.
        """
        valid = [field.name for field in fields(self)]
        for name, unit in (units or {}).items():
            if name not in valid:
                raise ValueError(f"units: unknown {name!r}: expected {', '.join(valid)}")
            if not isinstance(unit, str):
                raise ValueError(f"units: {name} is {unit!r}: expected the name of a unit")
        return replace(self, **(units or {}))

    def factor(self, name: str) -> float:
        """What turns a label, or ``length``, into eV, Angstrom and e."""
        if name == "length":
            return length_in_angstrom(_plain(self.length))
        if name == "energy":
            return energy_in_ev(_plain(self.energy))
        if name == "forces":
            return self._force()
        if name == "stress":
            return self._stress()
        if name.startswith("dipole"):
            return dipole_in_e_angstrom(_plain(self.dipole))
        return polarizability_in_e2_angstrom2_per_ev(_plain(self.polarizability))

    def _force(self) -> float:
        if self.forces is None:
            return self.factor("energy") / self.factor("length")
        energy, _, length = _plain(self.forces).rpartition("/")
        if not energy:
            raise ValueError(
                f"unknown unit of forces {self.forces!r}: expected energy/length, such as "
                "hartree/bohr"
            )
        return energy_in_ev(_plain(energy)) / length_in_angstrom(_plain(length))

    def _stress(self) -> float:
        if self.stress is None:
            return self.factor("energy") / self.factor("length") ** 3
        unit = _plain(self.stress)
        if unit not in _STRESS_IN_EV_PER_ANGSTROM3:
            valid = ", ".join(_STRESS_IN_EV_PER_ANGSTROM3)
            raise ValueError(f"unknown unit of stress {self.stress!r}: expected one of {valid}")
        return _STRESS_IN_EV_PER_ANGSTROM3[unit]

    def require(self, stated: object, trusted: bool = False) -> None:
        """Compare with what a frame says of its own units.

        Parameters
        ----------
        stated
            Names of units in one text or a mapping; None says nothing.
        trusted
            Whether to pass over a name that is unknown.

        Raises
        ------
        ValueError
            If they are not these units.
        """
        if stated is None:
            return
        said = stated.values() if isinstance(stated, Mapping) else re.split(r"[,;|]", str(stated))
        for unit in filter(None, (_plain(str(word)) for word in said)):
            kind, factor = _meaning(unit)
            if not kind and not trusted:
                raise ValueError(
                    f"it states the unit {unit!r}, which is unknown: say by units, such as "
                    "{energy: ev, length: angstrom}, what its units are"
                )
            if kind and not math.isclose(factor, self.factor(kind), rel_tol=1e-6):
                raise ValueError(
                    f"it states the unit {unit!r} of {kind}, and is read in another: give units "
                    f"{{{kind}: {unit}}} to all files, and do not mix units"
                )


def _meaning(unit: str) -> tuple[str, float]:
    """The label that has a unit, and its factor; an empty name if there is none."""
    tables = {
        "energy": ENERGY_UNITS_IN_EV,
        "length": LENGTH_UNITS_IN_ANGSTROM,
        "dipole": DIPOLE_UNITS_IN_E_ANGSTROM,
        "polarizability": POLARIZABILITY_UNITS_IN_E2_ANGSTROM2_PER_EV,
        "stress": _STRESS_IN_EV_PER_ANGSTROM3,
    }
    for kind, table in tables.items():
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
