"""Link atoms of openmm-ml 1.8: where a region cuts a bond, a hydrogen takes its place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from support.helpers import make_potential

from tensormd.calculators import TensorNetCalculator, create_force
from tensormd.calculators.openmm_topology import bonds_of_region
from tensormd.models import Potential
from tensormd.models.data.structures.bonds import bonds_of
from tensormd.models.units import kj_per_mol_in_ev, nm_in_angstrom

openmm = pytest.importorskip("openmm", reason="openmm is not installed (extra 'openmm')")
openmmml = pytest.importorskip("openmmml", reason="openmmml is not installed (extra 'openmm')")
app = pytest.importorskip("openmm.app")

with_links = pytest.mark.skipif(
    not hasattr(openmmml.MLPotential, "getSupportedEmbeddings"),
    reason="this openmm-ml has no link atoms (1.8 has)",
)
STIFFNESS = 1e5  # kJ/mol/nm^2
LENGTH = 0.12  # nm
METHYL_LINK = 0.107  # nm, from the carbon to the link atom


@pytest.fixture(scope="module")
def potential() -> Potential:
    return make_potential()


def ethanol() -> tuple[Any, Any, Atoms, list[int]]:
    """Topology, a System of springs along the bonds, structure, and the atoms of its methyl."""
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=4)
    topology, system = app.Topology(), openmm.System()
    residue = topology.addResidue("ETH", topology.addChain())
    springs = openmm.HarmonicBondForce()
    for k, (symbol, mass) in enumerate(
        zip(atoms.get_chemical_symbols(), atoms.get_masses(), strict=True)
    ):
        topology.addAtom(f"{symbol}{k}", app.Element.getBySymbol(symbol), residue)
        system.addParticle(mass)
    found = bonds_of(atoms)
    listed = list(topology.atoms())
    for i, j in zip(found.i, found.j, strict=True):
        if i < j:
            topology.addBond(listed[i], listed[j])
            springs.addBond(int(i), int(j), LENGTH, STIFFNESS)
    system.addForce(springs)
    carbon = next(
        int(c) for c in np.flatnonzero(atoms.numbers == 6)
        if (atoms.numbers[found.j[found.i == c]] == 1).sum() == 3
    )  # fmt: skip
    methyl = [carbon, *(int(j) for j in found.j[found.i == carbon] if atoms.numbers[j] == 1)]
    return topology, system, atoms, methyl


def neighbour_of(topology: Any, methyl: list[int]) -> int:
    """The atom at the other end of the bond that the methyl cuts."""
    ends = [{atom.index for atom in bond} for bond in topology.bonds()]
    (cut,) = (pair for pair in ends if len(pair & set(methyl)) == 1)
    return (cut - set(methyl)).pop()


def expected(potential: Potential, positions: Any) -> float:
    """Springs outside of the methyl, and the potential of methane; kJ/mol."""
    topology, _, atoms, methyl = ethanol()
    atoms.positions = positions
    springs = 0.0
    for bond in topology.bonds():
        i, j = (atom.index for atom in bond)
        if not {i, j} <= set(methyl):
            stretch = atoms.get_distance(i, j) / nm_in_angstrom - LENGTH
            springs += 0.5 * STIFFNESS * stretch**2
    carbon, other = methyl[0], neighbour_of(topology, methyl)
    along = atoms.positions[other] - atoms.positions[carbon]
    link = atoms.positions[carbon] + METHYL_LINK * nm_in_angstrom * along / np.linalg.norm(along)
    methane = atoms[methyl] + Atoms("H", [link])
    learned = TensorNetCalculator(potential, dtype="float64").evaluate([methane])[0]["energy"]
    return springs + learned / kj_per_mol_in_ev


def in_context(system: Any, positions: Any) -> Any:
    context = openmm.Context(
        system, openmm.VerletIntegrator(5e-4), openmm.Platform.getPlatformByName("Reference")
    )
    sites = system.getNumParticles() - len(positions)
    context.setPositions(np.vstack([positions, np.zeros((sites, 3))]) / nm_in_angstrom)
    context.computeVirtualSites()
    return context


@with_links
@pytest.mark.parametrize("interpolate", [False, True])
def test_energy_and_forces_by_hand(interpolate: bool, potential: Potential) -> None:
    topology, system, atoms, methyl = ethanol()
    other = neighbour_of(topology, methyl)
    info = openmmml.MLPotential("tensormd", modelPath=potential).createMixedSystem(
        topology, system, methyl, interpolate=interpolate, returnInfo=True, engine="python",
        dtype="float64", linkAtomDistances=[(methyl[0], other, METHYL_LINK)],
    )  # fmt: skip
    assert info["topology"].getNumAtoms() == len(atoms) + 1
    mixed = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(info["system"]))
    context = in_context(mixed, atoms.positions)
    state = context.getState(getEnergy=True, getForces=True)
    found = state.getPotentialEnergy()._value
    assert found == pytest.approx(expected(potential, atoms.positions), abs=1e-5)
    forces = np.array(state.getForces(asNumpy=True)._value)
    step = 1e-4
    for atom in (methyl[0], methyl[1], other):  # both ends of the cut bond move the link atom
        for axis in range(3):
            ends = []
            for sign in (1, -1):
                moved = atoms.positions.copy()
                moved[atom, axis] += sign * step
                ends.append(expected(potential, moved))
            slope = (ends[0] - ends[1]) / (2 * step / nm_in_angstrom)
            assert forces[atom, axis] == pytest.approx(-slope, abs=1e-2)
    assert np.abs(forces[other]).max() > 1
    if interpolate:
        context.setParameter("lambda_interpolate", 0)
        classical = in_context(system, atoms.positions).getState(getEnergy=True)
        found = context.getState(getEnergy=True).getPotentialEnergy()._value
        assert found == pytest.approx(classical.getPotentialEnergy()._value, abs=1e-6)


@with_links
def test_a_region_of_its_own_makes_no_link_atoms(potential: Potential) -> None:
    topology, system, atoms, methyl = ethanol()
    with pytest.raises(ValueError, match=r"the chosen atoms cut 1 bond\(s\): 0 \(C0 of ETH 1\)-1"):
        create_force(potential, topology, atoms=methyl)
    mixed = openmmml.MLPotential("tensormd", modelPath=potential).createMixedSystem(
        topology, system, methyl
    )
    assert mixed.getNumParticles() == len(atoms) + 1


def capped(topology: Any, links: int) -> list[int]:
    """Add link atoms as openmm-ml names them; their indices."""
    chain, added = topology.addChain(), []
    for k in range(links):
        residue = topology.addResidue(f"V{k}", chain)
        added.append(topology.addAtom(f"V{k}", app.element.hydrogen, residue).index)
    return added


def test_bonds_of_a_region() -> None:
    topology, _, atoms, methyl = ethanol()
    assert len(bonds_of_region(topology)) == len(atoms) - 1
    (link,) = capped(topology, 1)
    found = {tuple(sorted(pair)) for pair in bonds_of_region(topology, [*methyl, link]).tolist()}
    assert found == {(0, 1), (0, 2), (0, 3), (0, 4)}
    # The middle of the molecule cuts two bonds: one link atom is not enough.
    middle = neighbour_of(topology, methyl)
    hydrogens = [
        a.index for bond in topology.bonds() for a in bond
        if middle in {b.index for b in bond} and a.element.symbol == "H"
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"cut 1 bond"):
        bonds_of_region(topology, [middle, *hydrogens, link])
    (_, another) = link, *capped(topology, 1)
    assert len(bonds_of_region(topology, [middle, *hydrogens, link, another])) == 4
