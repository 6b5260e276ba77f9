"""The table of all quantities that label frames, are predicted by models or are reported.

A new property needs a head (see `heads.base.Head`) and a row here: data sets, losses, evaluation
and calculators read the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from .heads.base import Head
from .heads.charges import ChargeReadout
from .heads.dipole import NO_DIPOLE, DipoleReadout, along_x, length
from .heads.polarizability import PolarizabilityReadout, anisotropy, isotropic, spherical
from .units import (
    DIPOLE_UNITS_IN_E_ANGSTROM,
    ENERGY_UNITS_IN_EV,
    POLARIZABILITY_UNITS_IN_E2_ANGSTROM2_PER_EV,
    STRESS_UNITS_IN_EV_PER_ANGSTROM3,
    bohr3_in_e2_angstrom2_per_ev,
    debye_in_e_angstrom,
)

VOIGT = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])
"""Rows and columns of the six components of a symmetric tensor in ASE's order: xx, yy, zz, yz,
xz, xy."""
FROM_VOIGT = [[0, 5, 4], [5, 1, 3], [4, 3, 2]]
"""Index in that order of each component of the tensor."""


class Reported(NamedTuple):
    """A unit in which errors are reported."""

    factor: float
    """Factor from eV, A and e to this unit."""
    unit: str
    """Name of the unit."""


@dataclass(frozen=True)
class Quantity:
    """One row of the table."""

    name: str
    """Name of its labels, its head and its result in ASE."""
    shape: tuple[int, ...]
    """Shape of the value of one system, or of one atom."""
    unit: str
    """Unit of labels and predictions."""
    text: str
    """Name in a sentence."""
    reported: Reported
    """Unit of errors in training logs and results."""
    weight_unit: str
    """Unit of its weight in the loss."""
    units: Mapping[str, float]
    """Units of data sets, lower case, and their size in ``unit``; the first one is the default."""
    customary: Reported | None = None
    """Unit of errors in an evaluation; None: ``reported``."""
    per_atom: bool = False
    """Whether each atom has a value; otherwise each system has one."""
    weight_key: str = ""
    """Name of its weight in the loss; empty: ``{name}_weight``."""
    per_length: int | None = None
    """Power of length in the denominator of a derivative of the energy. Its default unit in a data
    set is the unit of energy divided by this power of the unit of length."""
    head: type[Head] | None = None
    """Readout that predicts it; None for the energy, its derivatives and quantities computed from
    another one."""
    of: str | None = None
    """Name of the quantity that it is computed from."""
    derive: Callable[[Tensor], Tensor] | None = None
    """Function from values of that quantity, (B, ...), to values of this one."""
    inverse: Callable[[Tensor], Tensor] | None = None
    """Function from a value of this quantity to one possible value of that one, which standardises
    its head; None if the value does not determine enough."""
    not_periodic: str = ""
    """Reason why it is undefined for a periodic system; empty if it is defined."""
    voigt: bool = field(default=False)
    """Whether ASE stores it as six components, in the order of `VOIGT`."""

    @property
    def weight(self) -> str:
        """Name of its loss weight in the training settings."""
        return self.weight_key or f"{self.name}_weight"

    @property
    def source(self) -> str | None:
        """Name of the head that it needs; None if it comes with the energy."""
        return self.name if self.head is not None else self.of

    @property
    def evaluated(self) -> Reported:
        """Unit of errors in an evaluation."""
        return self.customary or self.reported


_DIPOLE: dict[str, Any] = {
    "unit": "e A",
    "reported": Reported(1.0, "e A"),
    "customary": Reported(1 / debye_in_e_angstrom, "D"),
    "weight_unit": "1/(e Å)",
    "units": DIPOLE_UNITS_IN_E_ANGSTROM,
}
_POLARIZABILITY: dict[str, Any] = {
    "unit": "e^2 A^2/eV",
    "reported": Reported(1.0, "e^2 A^2/eV"),
    "customary": Reported(1 / bohr3_in_e2_angstrom2_per_ev, "a0^3"),
    "weight_unit": "eV/(e² Å²)",
    "units": POLARIZABILITY_UNITS_IN_E2_ANGSTROM2_PER_EV,
}
_ROWS = (
    Quantity(
        name="energy",
        shape=(),
        unit="eV",
        text="the energy of a frame",
        reported=Reported(1e3, "meV"),
        weight_unit="1/eV",
        units=ENERGY_UNITS_IN_EV,
    ),
    Quantity(
        name="forces",
        shape=(3,),
        per_atom=True,
        unit="eV/A",
        text="the forces",
        reported=Reported(1e3, "meV/A"),
        weight_key="force_weight",
        weight_unit="Å/eV",
        units={},
        per_length=1,
    ),
    Quantity(
        name="stress",  # with ASE's sign
        shape=(3, 3),
        unit="eV/A^3",
        text="the stress",
        reported=Reported(1e3, "meV/A^3"),
        weight_unit="Å³/eV",
        units=STRESS_UNITS_IN_EV_PER_ANGSTROM3,
        per_length=3,
        voigt=True,
    ),
    Quantity(
        name="dipole",
        shape=(3,),
        text="the dipole",
        head=DipoleReadout,
        not_periodic=NO_DIPOLE,
        **_DIPOLE,
    ),
    Quantity(
        name="dipole_norm",
        shape=(),
        text="the length of the dipole",
        of="dipole",
        derive=length,
        inverse=along_x,
        not_periodic=NO_DIPOLE,
        **_DIPOLE,
    ),
    Quantity(
        name="polarizability",
        shape=(3, 3),
        text="the polarizability",
        head=PolarizabilityReadout,
        **_POLARIZABILITY,
    ),
    Quantity(
        name="polarizability_isotropic",
        shape=(),
        text="a third of the trace of the polarizability",
        of="polarizability",
        derive=isotropic,
        inverse=spherical,
        **_POLARIZABILITY,
    ),
    Quantity(
        name="polarizability_anisotropy",
        shape=(),
        text="the anisotropy of the polarizability",
        of="polarizability",
        derive=anisotropy,
        **_POLARIZABILITY,
    ),
    Quantity(
        name="charges",
        shape=(),
        per_atom=True,
        unit="e",
        text="the charges of the atoms",
        reported=Reported(1e3, "me"),
        weight_unit="1/e",
        units={"e": 1.0},
        head=ChargeReadout,
    ),
)
QUANTITIES = {row.name: row for row in _ROWS}
"""Rows of the table by name."""
HEADS: dict[str, type[Head]] = {
    name: row.head for name, row in QUANTITIES.items() if row.head is not None
}
"""Readouts by the property that they predict."""


def with_derived(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values (B, ...) of quantities, with all values that can be computed from them."""
    found = dict(values)
    for name, row in QUANTITIES.items():
        if name not in found and row.derive is not None and row.of in found:
            found[name] = row.derive(found[row.of])
    return found
