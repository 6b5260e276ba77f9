"""Every conversion factor of the package, computed from CODATA 2022 constants.

The models work in eV and Angstrom (and e for charges); quantities in other
units are converted on input and output. A factor is named after both units:
``kcal_per_mol_in_ev * x`` is ``x`` kcal/mol in eV.
"""

from __future__ import annotations

from collections.abc import Mapping

# Exact in the SI.
AVOGADRO_PER_MOL = 6.02214076e23
ELEMENTARY_CHARGE_C = 1.602176634e-19
BOLTZMANN_J_PER_K = 1.380649e-23
SPEED_OF_LIGHT_CM_PER_S = 2.99792458e10
PLANCK_J_S = 6.62607015e-34
CALORIE_J = 4.184
# Measured (CODATA 2022).
BOHR_M = 5.29177210544e-11
HARTREE_J = 4.3597447222060e-18
COULOMB_J_M = HARTREE_J * BOHR_M  # e^2 / (4 pi epsilon_0)

ANGSTROM_M = 1e-10

boltzmann_ev_per_k = BOLTZMANN_J_PER_K / ELEMENTARY_CHARGE_C
hartree_in_ev = HARTREE_J / ELEMENTARY_CHARGE_C
kj_per_mol_in_ev = 1e3 / AVOGADRO_PER_MOL / ELEMENTARY_CHARGE_C
kcal_per_mol_in_ev = CALORIE_J * kj_per_mol_in_ev
bohr_in_angstrom = BOHR_M / ANGSTROM_M
nm_in_angstrom = 10.0
ev_per_angstrom3_in_gpa = ELEMENTARY_CHARGE_C / ANGSTROM_M**3 / 1e9
bar_in_pascal = 1e5
bar_in_ev_per_angstrom3 = 1e-4 / ev_per_angstrom3_in_gpa
inverse_cm_in_ev = PLANCK_J_S * SPEED_OF_LIGHT_CM_PER_S / ELEMENTARY_CHARGE_C
coulomb_ev_angstrom = COULOMB_J_M / ELEMENTARY_CHARGE_C / ANGSTROM_M
# 1 D = 1e-18 statC cm, and 1 statC = 10 C / c with c in cm/s; times 1e-2 m/cm.
debye_in_e_angstrom = 1e-19 / SPEED_OF_LIGHT_CM_PER_S / ELEMENTARY_CHARGE_C / ANGSTROM_M
# A polarizability volume is alpha / (4 pi epsilon_0); bohr^3 is the atomic unit too.
angstrom3_in_e2_angstrom2_per_ev = 1 / coulomb_ev_angstrom
bohr3_in_e2_angstrom2_per_ev = bohr_in_angstrom**3 / coulomb_ev_angstrom

LENGTH_UNITS_IN_ANGSTROM = {
    "angstrom": 1.0,
    "nm": nm_in_angstrom,
    "bohr": bohr_in_angstrom,
}
ENERGY_UNITS_IN_EV = {
    "ev": 1.0,
    "mev": 1e-3,
    "hartree": hartree_in_ev,
    "kj/mol": kj_per_mol_in_ev,
    "kcal/mol": kcal_per_mol_in_ev,
}
DIPOLE_UNITS_IN_E_ANGSTROM = {
    "e*angstrom": 1.0,
    "debye": debye_in_e_angstrom,
    "e*bohr": bohr_in_angstrom,
}
POLARIZABILITY_UNITS_IN_E2_ANGSTROM2_PER_EV = {
    "e^2*angstrom^2/ev": 1.0,
    "bohr^3": bohr3_in_e2_angstrom2_per_ev,
    "angstrom^3": angstrom3_in_e2_angstrom2_per_ev,
}

STRESS_UNITS_IN_EV_PER_ANGSTROM3 = {
    "gpa": 1 / ev_per_angstrom3_in_gpa,
    "kbar": 0.1 / ev_per_angstrom3_in_gpa,
}


def unit_factor(name: str, table: Mapping[str, float], kind: str) -> float:
    """Size of a unit.

    Parameters
    ----------
    name
        Name of the unit, in any case.
    table
        Sizes of units by lower-case name.
    kind
        Kind of quantity, for the message.

    Raises
    ------
    ValueError
        If it is not in the table.
    """
    try:
        return table[name.lower()]
    except (KeyError, AttributeError):
        raise ValueError(
            f"unknown {kind} unit {name!r}: expected one of {', '.join(table)}"
        ) from None


def length_in_angstrom(unit: str) -> float:
    """Size of a unit of length in Angstrom.

    Raises
    ------
    ValueError
        If the unit is not one of ``LENGTH_UNITS_IN_ANGSTROM``.
    """
    return unit_factor(unit, LENGTH_UNITS_IN_ANGSTROM, "length")


def energy_in_ev(unit: str) -> float:
    """Size of a unit of energy in eV.

    Raises
    ------
    ValueError
        If the unit is not one of ``ENERGY_UNITS_IN_EV``.
    """
    return unit_factor(unit, ENERGY_UNITS_IN_EV, "energy")
