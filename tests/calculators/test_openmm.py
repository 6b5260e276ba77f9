"""OpenMM: both engines against ASE, subsets, boxes, serialisation, the openmm-ml plugin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from support.helpers import make_potential
from support.openmm_systems import ENGINES, evaluate, make_system

from tensormd.calculators import TensorNetCalculator, create_force
from tensormd.calculators import openmm_versions as engines
from tensormd.models import Potential
from tensormd.models.units import kj_per_mol_in_ev, nm_in_angstrom

openmm = pytest.importorskip("openmm", reason="openmm is not installed (extra 'openmm')")


@pytest.fixture(scope="module")
def potential() -> Potential:
    return make_potential()


def rattled(atoms: Atoms) -> Atoms:
    atoms.rattle(0.05, seed=1)
    return atoms


def orthorhombic() -> Atoms:
    return rattled(bulk("C", "diamond", a=3.57, cubic=True) * (2, 2, 2))


def triclinic() -> Atoms:
    """In the reduced form that OpenMM asks for."""
    atoms = rattled(bulk("C", "diamond", a=3.57, cubic=True) * (3, 3, 3))
    atoms.set_cell([[10.7, 0, 0], [2.5, 10.5, 0], [-3.0, 1.5, 10.9]], scale_atoms=True)
    return atoms


def tiny() -> Atoms:
    """A box of 3.6 A, smaller than the cutoff of 4.5 A."""
    return rattled(bulk("C", "diamond", a=3.6, cubic=True))


def across_the_boundary() -> Atoms:
    """A molecule that leaves its box, its atoms not wrapped."""
    atoms = rattled(molecule("CH3CH2OH"))
    atoms.set_cell([7.0, 8.0, 9.0])
    atoms.pbc = True
    atoms.positions += [6.5, 7.9, -0.3]
    atoms.positions[3] += atoms.cell[0]
    return atoms


STRUCTURES = {
    "molecule": lambda: rattled(molecule("CH3CH2OH")),
    "orthorhombic": orthorhombic,
    "triclinic": triclinic,
    "tiny": tiny,
    "boundary": across_the_boundary,
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", STRUCTURES)
def test_equals_ase(kind: str, engine: str, dtype: str, potential: Potential) -> None:
    atoms = STRUCTURES[kind]()
    force = create_force(
        potential, atoms.numbers, engine=engine, dtype=dtype, periodic=bool(atoms.pbc.any())
    )
    # The Reference platform keeps float64; others round positions to float32.
    energy, forces = evaluate(make_system(atoms, force), atoms, "Reference")
    expected = TensorNetCalculator(potential, dtype=dtype).evaluate([atoms])[0]
    assert np.abs(expected["forces"]).max() > 0.1
    energy_bound, force_bound = (1e-6, 1e-5) if dtype == "float32" else (1e-9, 1e-9)
    assert abs(energy - expected["energy"]) / len(atoms) <= energy_bound
    assert np.abs(forces - expected["forces"]).max() <= force_bound


@pytest.mark.parametrize("engine", ENGINES)
def test_subset(engine: str, potential: Potential) -> None:
    region = rattled(molecule("CH3CH2OH"))
    far = Atoms("Xe3", [[20.0, 0, 0], [25.0, 0, 0], [30.0, 0, 0]])  # unknown to the model
    everything = far + region
    particles = [9, 3, 4, 5, 6, 7, 8, 10, 11]  # in an order of its own
    force = create_force(
        potential, everything.numbers, atoms=particles, engine=engine, dtype="float64"
    )
    energy, forces = evaluate(make_system(everything, force), everything, "Reference")
    expected = TensorNetCalculator(potential, dtype="float64").evaluate([region])[0]
    assert energy == pytest.approx(expected["energy"], abs=1e-9)
    np.testing.assert_allclose(forces[3:], expected["forces"], atol=1e-9)
    np.testing.assert_array_equal(forces[:3], 0)


@pytest.mark.parametrize("engine", ENGINES)
def test_charge_is_passed_on(engine: str, potential: Potential) -> None:
    atoms = rattled(molecule("CH3CH2OH"))
    energies = []
    for charge in (0, 1):
        force = create_force(potential, atoms.numbers, engine=engine, charge=charge)
        energies.append(evaluate(make_system(atoms, force), atoms, "CPU")[0])
        expected = TensorNetCalculator(potential, charge=charge).evaluate([atoms])[0]["energy"]
        # The CPU platform hands over positions in float32: 1e-7 nm.
        assert energies[-1] == pytest.approx(expected, abs=1e-4)
    assert abs(energies[1] - energies[0]) > 1e-3


@pytest.mark.parametrize("engine", ENGINES)
def test_follows_moving_atoms_and_boxes(engine: str, potential: Potential) -> None:
    """The neighbour list inside must notice what has changed."""
    atoms = across_the_boundary()
    force = create_force(potential, atoms.numbers, engine=engine, dtype="float64", periodic=True)
    system = make_system(atoms, force)
    context = openmm.Context(
        system, openmm.VerletIntegrator(5e-4), openmm.Platform.getPlatformByName("Reference")
    )
    calculator = TensorNetCalculator(potential, dtype="float64")
    generator = np.random.default_rng(0)
    for step in range(12):
        atoms.positions += generator.normal(scale=0.2, size=atoms.positions.shape)
        if step % 4 == 3:
            atoms.set_cell(atoms.cell * 1.03, scale_atoms=True)
        context.setPeriodicBoxVectors(*(atoms.cell.array / nm_in_angstrom))
        context.setPositions(atoms.positions / nm_in_angstrom)
        energy = context.getState(getEnergy=True).getPotentialEnergy()._value * kj_per_mol_in_ev
        assert energy == pytest.approx(calculator.evaluate([atoms])[0]["energy"], abs=1e-8)


@pytest.mark.parametrize("engine", ENGINES)
def test_serialised_system_has_the_same_energy(engine: str, potential: Potential) -> None:
    atoms = rattled(molecule("CH3CH2OH"))
    system = make_system(atoms, create_force(potential, atoms.numbers, engine=engine))
    again = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    first, second = (evaluate(each, atoms, "Reference") for each in (system, again))
    assert first[0] == second[0]
    np.testing.assert_array_equal(first[1], second[1])


@pytest.mark.parametrize("engine", ENGINES)
def test_nan_positions_are_reported(engine: str, potential: Potential) -> None:
    atoms = rattled(molecule("CH3CH2OH"))
    system = make_system(atoms, create_force(potential, atoms.numbers, engine=engine))
    atoms.positions[2, 1] = np.nan
    context = openmm.Context(
        system, openmm.VerletIntegrator(5e-4), openmm.Platform.getPlatformByName("Reference")
    )
    context.setPositions(atoms.positions / nm_in_angstrom)
    energy = context.getState(getEnergy=True).getPotentialEnergy()._value
    assert np.isnan(energy)


def test_plugin_of_openmm_ml(potential: Potential) -> None:
    mlpotential = pytest.importorskip("openmmml", reason="openmmml is not installed")
    from openmm import app

    atoms = rattled(molecule("CH3CH2OH"))
    topology = app.Topology()
    residue = topology.addResidue("ETH", topology.addChain())
    for symbol in atoms.get_chemical_symbols():
        topology.addAtom(symbol, app.Element.getBySymbol(symbol), residue)
    system = mlpotential.MLPotential("tensormd", modelPath=potential).createSystem(topology)
    energy, _ = evaluate(system, atoms, "Reference")
    expected = TensorNetCalculator(potential, charge=0).evaluate([atoms])[0]["energy"]
    assert energy == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="unknown option 'chargee'"):
        mlpotential.MLPotential("tensormd", modelPath=potential).createSystem(topology, chargee=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"atoms": [0, 99]}, "particle 99 is out of range"),
        ({"atoms": [0, -1]}, "particle -1 is out of range"),
        ({"atoms": [0, 1, 1]}, "particle 1 is listed twice"),
        ({"atoms": []}, "atoms is empty"),
        ({"charge": 0.5}, "charge is 0.5"),
        ({"engine": "cuda"}, "unknown engine 'cuda'"),
        ({"dtype": "half"}, "half"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str, potential: Potential) -> None:
    with pytest.raises(ValueError, match=message):
        create_force(potential, molecule("CH3CH2OH").numbers, **options)


def test_unknown_element(potential: Potential) -> None:
    with pytest.raises(ValueError, match="does not know Xe"):
        create_force(potential, [54, 1])
    with pytest.raises(ValueError, match="list of integers"):
        create_force(potential, ["C", "H"])


@pytest.mark.parametrize(("package", "found"), [("torch", "2.10.0+cu126"), ("openmm", "8.6.1")])
def test_versions_that_do_not_fit(
    package: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"openmmtorch": "1.5", "torch": "2.9.1", "openmm": "8.5.2"} | {package: found}
    monkeypatch.setattr(engines, "_version", versions.get)
    with pytest.raises(
        ValueError, match=rf"built for {package} .*, but {package} {found[:3]}"
    ) as e:
        engines.choose_force_class("torchforce")
    assert "pip install" in str(e.value)
    assert engines.choose_force_class("auto") == "python"


def test_without_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_version", {"torch": "2.9.1"}.get)
    with pytest.raises(ValueError, match="openmmtorch is not installed"):
        engines.choose_force_class("torchforce")


def test_without_openmm(monkeypatch: pytest.MonkeyPatch, potential: Potential) -> None:
    monkeypatch.setattr(engines, "_version", lambda package: None)
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"openmm is not installed: pip install"):
        create_force(potential, molecule("CH4").numbers)
