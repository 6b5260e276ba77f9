"""Conversion factors, and one network in several systems of units."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ase.units import create_units
from support.helpers import CUTOFF, REFERENCES, crystal, ethanol, make_potential, predict, tiny

from tensormd.models import Potential, units
from tensormd.models.heads.repulsion import ZBLRepulsion

ASE = create_units("2022")

# As printed by NIST (CODATA 2022), to the digits given there.
CODATA = [
    (units.boltzmann_ev_per_k, 8.617333262e-5, 1e-10),
    (units.hartree_in_ev, 27.211386245981, 1e-13),
    (units.bohr_in_angstrom, 0.529177210544, 1e-14),
    (units.inverse_cm_in_ev, 1.239841984e-4, 1e-9),
    (units.ev_per_angstrom3_in_gpa, 160.2176634, 1e-15),
    (units.AVOGADRO_PER_MOL * units.ELEMENTARY_CHARGE_C, 96485.33212, 1e-10),  # Faraday
    (units.AVOGADRO_PER_MOL * units.BOLTZMANN_J_PER_K, 8.314462618, 1e-10),  # gas constant
]

# ASE prints the measured constants with 11 digits or more; the others are exact.
FROM_ASE = [
    (units.hartree_in_ev, ASE["Hartree"], 1e-11),
    (units.bohr_in_angstrom, ASE["Bohr"], 1e-11),
    (units.coulomb_ev_angstrom, ASE["Hartree"] * ASE["Bohr"], 1e-11),
    (units.kj_per_mol_in_ev, ASE["kJ"] / ASE["mol"], 1e-14),
    (units.kcal_per_mol_in_ev, ASE["kcal"] / ASE["mol"], 1e-14),
    (units.boltzmann_ev_per_k, ASE["kB"], 1e-14),
    (units.bar_in_ev_per_angstrom3, ASE["bar"], 1e-14),
    (units.ev_per_angstrom3_in_gpa, 1 / ASE["GPa"], 1e-14),
    (units.inverse_cm_in_ev, ASE["invcm"], 1e-14),
    (units.nm_in_angstrom, ASE["nm"], 1e-14),
    (units.debye_in_e_angstrom, ASE["Debye"], 1e-11),
    (units.bohr3_in_e2_angstrom2_per_ev, ASE["Bohr"] ** 2 / ASE["Hartree"], 1e-11),
    (units.angstrom3_in_e2_angstrom2_per_ev, 1 / (ASE["Hartree"] * ASE["Bohr"]), 1e-11),
]


@pytest.mark.parametrize(("factor", "expected", "bound"), CODATA + FROM_ASE)
def test_factors(factor: float, expected: float, bound: float) -> None:
    assert factor == pytest.approx(expected, rel=bound, abs=0)


def test_coulomb_constant_is_that_of_the_vacuum_permittivity() -> None:
    permittivity = 8.8541878188e-12  # F/m, CODATA 2022, 11 digits
    expected = units.ELEMENTARY_CHARGE_C / (4 * np.pi * permittivity) / units.ANGSTROM_M
    assert units.coulomb_ev_angstrom == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("name", units.LENGTH_UNITS_IN_ANGSTROM)
def test_lengths_by_name(name: str) -> None:
    assert units.length_in_angstrom(name.upper()) == units.LENGTH_UNITS_IN_ANGSTROM[name]


@pytest.mark.parametrize("name", units.ENERGY_UNITS_IN_EV)
def test_energies_by_name(name: str) -> None:
    assert units.energy_in_ev(name.upper()) == units.ENERGY_UNITS_IN_EV[name]


@pytest.mark.parametrize("name", units.DIPOLE_UNITS_IN_E_ANGSTROM)
def test_dipoles_by_name(name: str) -> None:
    assert (
        units.unit_factor(name.upper(), units.DIPOLE_UNITS_IN_E_ANGSTROM, "dipole")
        == units.DIPOLE_UNITS_IN_E_ANGSTROM[name]
    )


@pytest.mark.parametrize("name", units.POLARIZABILITY_UNITS_IN_E2_ANGSTROM2_PER_EV)
def test_polarizabilities_by_name(name: str) -> None:
    table = units.POLARIZABILITY_UNITS_IN_E2_ANGSTROM2_PER_EV
    assert units.unit_factor(name.upper(), table, "polarizability") == table[name]


def test_dipole_and_polarizability_of_known_molecules() -> None:
    """Water: 1.8546 D is 0.3861 e A; its mean polarizability, 9.64 bohr^3, is 1.43 A^3."""
    assert 1.8546 * units.debye_in_e_angstrom == pytest.approx(0.38612, abs=1e-5)
    volume = units.bohr3_in_e2_angstrom2_per_ev / units.angstrom3_in_e2_angstrom2_per_ev
    assert 9.64 * volume == pytest.approx(1.4285, abs=1e-4)


@pytest.mark.parametrize("name", ["parsec", "", None, 1.0])
def test_unknown_units(name: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown length unit .*: expected one of angstrom, nm"):
        units.length_in_angstrom(name)
    with pytest.raises(ValueError, match=r"unknown energy unit .*: expected one of ev, mev"):
        units.energy_in_ev(name)
    with pytest.raises(ValueError, match=r"unknown dipole unit .*: expected one of e\*angstrom"):
        units.unit_factor(name, units.DIPOLE_UNITS_IN_E_ANGSTROM, "dipole")


# One network in several systems of units


def translated(potential: Potential, length_unit: str, energy_unit: str) -> Potential:
    """The same function of lengths and energies that are given in other units."""
    length, energy = units.length_in_angstrom(length_unit), units.energy_in_ev(energy_unit)
    network = dict(potential.representation.config)
    other = make_potential(
        **network | {"cutoff": network["cutoff"] / length},
        references=REFERENCES,
        length_unit=length_unit,
        energy_unit=energy_unit,
    )
    if potential.repulsion is not None:
        zbl = potential.repulsion
        other.repulsion = ZBLRepulsion(
            zbl.cutoff / length,
            coulomb=zbl.coulomb / length / energy,
            screening_length=zbl.screening_length / length,
        )
        other.cutoff = potential.cutoff
    other.load_state_dict(potential.state_dict())
    other.atomic_scale.scale /= energy
    other.atomic_scale.references /= energy
    network = other.representation
    if network.config["radial"] == "gauss":
        network.radial.centres /= length
        network.radial.coefficient *= length**2
    if network.config["radial"] == "bessel":  # normalised: of unit length^(-3/2)
        first = [network.embedding.radial, *(layer.radial[0] for layer in network.layers)]
        with torch.no_grad():
            for linear in first:
                linear.weight /= length**1.5
    return other.eval()


@pytest.mark.parametrize("unit", [("nm", "kJ/mol"), ("bohr", "Hartree"), ("Angstrom", "kcal/mol")])
@pytest.mark.parametrize("zbl", [0.0, 3.0], ids=["", "zbl"])
@pytest.mark.parametrize("radial", ["expnorm", "gauss", "bessel"])
def test_foreign_units_give_the_same_physics(
    radial: str, zbl: float, unit: tuple[str, str]
) -> None:
    native = make_potential(radial=radial, zbl=zbl, references=REFERENCES)
    foreign = translated(native, *unit)
    assert foreign.cutoff == pytest.approx(CUTOFF, rel=1e-15)
    assert (foreign.length_unit, foreign.energy_unit) == tuple(name.lower() for name in unit)
    for system in (ethanol(), crystal(), tiny(2)):
        found, expected = predict(foreign, system), predict(native, system)
        assert expected.forces.abs().max() > 0.05
        assert expected.virial.abs().max() > 0.5
        # Energies of 10 eV on top of references of 4,000; forces of up to 20 eV/A.
        np.testing.assert_allclose(found.energy, expected.energy, rtol=0, atol=1e-10)
        np.testing.assert_allclose(found.energies, expected.energies, rtol=0, atol=1e-10)
        np.testing.assert_allclose(found.forces, expected.forces, rtol=0, atol=1e-10)
        np.testing.assert_allclose(found.virial, expected.virial, rtol=0, atol=1e-10)


def test_units_left_out_are_seen() -> None:
    """The control: a network of nm read as one of Angstrom is another function."""
    native = make_potential(references=REFERENCES)
    foreign = translated(native, "nm", "kJ/mol")
    foreign.length_in_angstrom = 1.0
    difference = predict(foreign, ethanol()).forces - predict(native, ethanol()).forces
    assert difference.abs().max() > 1


def test_unknown_units_of_a_potential() -> None:
    with pytest.raises(ValueError, match="unknown length unit 'inch'"):
        make_potential(length_unit="inch")
    with pytest.raises(ValueError, match="unknown energy unit 'cal'"):
        make_potential(energy_unit="cal")
