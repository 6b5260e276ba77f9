"""The potential that ships: what it is for, what it refuses, what it warns of."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from support.helpers import make_potential

from tensormd.calculators import TensorNetCalculator, create_force
from tensormd.calculators.domain import (
    DEFAULT,
    DOMAIN,
    ELEMENTS,
    doubts,
    molecules_of,
    molecules_of_bonds,
    why_not,
)
from tensormd.calculators.openmm_versions import python_problem
from tensormd.models import Potential, TensorNet, load_potential


def water_box(edge: float = 4.0) -> Atoms:
    atoms = molecule("H2O")
    atoms.set_cell([edge] * 3)
    atoms.pbc = True
    atoms.positions += edge  # the bonds reach over the border
    atoms.wrap()
    return atoms * (2, 1, 1)


def ethanolate() -> Atoms:
    atoms = molecule("CH3CH2OH")
    oxygen = int(np.flatnonzero(atoms.numbers == 8)[0])
    hydrogens = np.flatnonzero(atoms.numbers == 1)
    del atoms[int(hydrogens[np.argmin(atoms.get_distances(oxygen, hydrogens))])]
    return atoms


def test_the_checkpoint_is_what_the_rules_are_for() -> None:
    potential = load_potential(DEFAULT)
    assert tuple(potential.elements) == ELEMENTS
    assert potential.metadata["domain"] == DOMAIN


def test_runs_without_a_checkpoint() -> None:
    calculator = TensorNetCalculator()
    for atoms in (molecule("CH3CH2OH"), molecule("C4H4S"), molecule("CH3NO2"), water_box()):
        assert why_not(atoms, 0) is None
        assert not doubts(atoms)
        atoms.calc = calculator
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            forces = atoms.get_forces()
        assert 0 < np.abs(forces).max() < 10


def small_potential() -> Potential:
    """A small network that claims the same domain."""
    network = TensorNet(channels=8, layers=1, radial_functions=8, max_number=18)
    return Potential(
        network, network.new_readout(), elements=ELEMENTS, metadata={"domain": DOMAIN}
    )


def small_model() -> TensorNetCalculator:
    return TensorNetCalculator(small_potential(), backend="reference")


REFUSED = {
    "silane": (molecule("SiH4"), 0, "not Si: take -m aceff-2.0"),
    "salt": (bulk("NaCl", "rocksalt", 5.6), 0, "not Na: take -m TensorNet-PES-MatPES"),
    "diamond": (bulk("C", "diamond", 3.57), 0, "from cell to cell without end"),
    "charged": (ethanolate(), -1, "the charge is -1: take -m aceff-2.0"),
    "ethanolate": (ethanolate(), 0, "C2H5O has an odd number of electrons"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_what_it_is_not_for(name: str) -> None:
    atoms, charge, message = REFUSED[name]
    atoms.info["charge"] = charge
    atoms.calc = TensorNetCalculator()
    with pytest.raises(ValueError, match=message):
        atoms.get_forces()
    with pytest.raises(ValueError, match=message):
        atoms.calc.evaluate([atoms])


@pytest.mark.parametrize(
    ("atoms", "reason"),
    [
        (molecule("CO2"), "unsure of carbon dioxide"),
        (molecule("NF3"), "unsure of N-F bonds"),
        (molecule("C3H4_C2v"), "unsure of cyclopropene"),
        (molecule("CO"), r"atom 1 \(C\) has 1 bonds"),
        (Atoms("H2O", [[0, 0, 0.3], [0, 0.9, 0], [0, 0, 0]]), "0.30 A apart"),
    ],
    ids=lambda x: x.get_chemical_formula() if isinstance(x, Atoms) else "",
)
def test_warns_once_of_what_is_unlike_its_data(atoms: Atoms, reason: str) -> None:
    atoms.calc = small_model()
    with pytest.warns(UserWarning, match=reason):
        atoms.get_potential_energy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atoms.rattle(0.01)
        atoms.get_potential_energy()


def test_a_model_that_was_chosen_warns_instead_of_refusing() -> None:
    atoms = ethanolate()
    atoms.calc = small_model()
    with pytest.warns(UserWarning, match="odd number of electrons"):
        atoms.get_potential_energy()


def test_other_checkpoints_are_not_concerned() -> None:
    atoms = ethanolate()
    atoms.calc = TensorNetCalculator(make_potential(1, max_number=18), backend="reference")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atoms.get_potential_energy()


def test_molecules_over_the_border_of_the_cell() -> None:
    found = molecules_of(water_box())
    assert len(set(found.part)) == 2
    assert len(found.bonds) == 4
    assert not found.endless
    assert molecules_of(bulk("C", "diamond", 3.57, cubic=True)).endless


def test_molecules_from_bonds() -> None:
    atoms = water_box()
    by_distance = molecules_of(atoms)
    assert by_distance.bonds is not None
    found = molecules_of_bonds(atoms.numbers, by_distance.bonds)
    assert len(set(found.part)) == 2
    assert not doubts(found)
    for name in ("CO2", "NF3", "C3H4_C2v", "CO"):
        atoms = molecule(name)
        known = molecules_of_bonds(atoms.numbers, molecules_of(atoms).bonds)
        assert doubts(known) == doubts(atoms)
        assert not doubts(molecules_of_bonds(atoms.numbers, np.zeros((0, 2), int)))


@pytest.mark.skipif(python_problem() is not None, reason=str(python_problem()))
def test_openmm_warns_too() -> None:
    from openmm import app

    potential = small_potential()
    with pytest.warns(UserWarning, match="C2H5O has an odd number of electrons"):
        create_force(potential, ethanolate().numbers, backend="reference")
    atoms, topology = molecule("CO2"), app.Topology()
    residue = topology.addResidue("CO2", topology.addChain())
    carbon, *oxygens = (
        topology.addAtom(symbol, app.Element.getBySymbol(symbol), residue)
        for symbol in atoms.get_chemical_symbols()
    )
    for oxygen in oxygens:
        topology.addBond(carbon, oxygen)
    with pytest.warns(UserWarning, match="unsure of carbon dioxide"):
        create_force(potential, topology, backend="reference")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create_force(potential, molecule("CH3CH2OH").numbers, backend="reference")
