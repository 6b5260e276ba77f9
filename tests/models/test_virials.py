"""Shares of the atoms in the virial: every implementation, sums, symmetry and fragments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from support.helpers import make_potential, make_tdn
from support.tensornet2 import REACTION_FIELD, make_tensornet2

from tensormd.calculators import PotentialCalculator
from tensormd.calculators.ase import StressUndefinedError
from tensormd.models import Committee


def crystal() -> Atoms:
    """Smaller than the cutoff, triclinic, with two elements."""
    atoms = bulk("CO", "zincblende", a=3.9) * (1, 1, 2)
    atoms.rattle(0.15, seed=3)
    return atoms


MODELS: dict[str, Any] = {
    "tensornet": make_potential,
    "zbl": lambda: make_potential(1, zbl=2.0),
    "tdn": lambda: make_tdn(lmax=2, scale=1.4),
    "tensornet2": lambda: make_tensornet2(coulomb=REACTION_FIELD),
    "committee": lambda: Committee([make_potential(), make_potential(2)]),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_fused_kernels_share_as_the_network_does(name: str, dtype: str) -> None:
    potential, atoms = MODELS[name](), crystal()
    expected = PotentialCalculator(potential, backend="reference", dtype="float64")
    fused = PotentialCalculator(potential, backend="fused", dtype=dtype)
    theirs, ours = (c.evaluate([atoms, atoms * (2, 1, 1)]) for c in (expected, fused))
    for a, b in zip(ours, theirs, strict=True):
        # Shares are as much as three times the stress itself, and differ from each other.
        largest = np.abs(b["stresses"]).max()
        assert np.ptp(b["stresses"], axis=0).max() > 0.1 * largest > 1e-5
        np.testing.assert_allclose(a["stresses"], b["stresses"], rtol=0, atol=1e-4 * largest)
        for result in (a, b):
            total = result["stresses"].sum(0)
            np.testing.assert_allclose(
                total, result["stress"], rtol=0, atol=1e-13 + 1e-12 * largest
            )


def test_a_fragment_far_away_has_its_own() -> None:
    potential, one = make_potential(), molecule("CH3CH2OH")
    one.rattle(0.1, seed=1)
    other = molecule("H2O")
    other.rattle(0.1, seed=2)
    calculator = PotentialCalculator(potential, dtype="float64")

    def shares(atoms: Atoms) -> Any:
        atoms.set_cell([40.0, 30.0, 30.0])
        atoms.pbc = True
        return calculator.evaluate([atoms])[0]

    alone = shares(one.copy())
    both = one.copy()
    other.translate([20.0, 0, 0])
    both += other
    together = shares(both)
    size = len(one)
    np.testing.assert_allclose(together["stresses"][:size], alone["stresses"], atol=1e-15)
    np.testing.assert_allclose(together["stresses"][:size].sum(0), alone["stress"], atol=1e-15)
    assert np.abs(together["stresses"][size:]).max() > 1e-6


def test_shares_turn_with_the_crystal() -> None:
    calculator = PotentialCalculator(make_potential(), dtype="float64")
    atoms, turned = crystal(), crystal()
    turned.rotate(90, "z", rotate_cell=True)
    before, after = (c["stresses"] for c in calculator.evaluate([atoms, turned]))
    np.testing.assert_allclose(after[:, 0], before[:, 1], atol=1e-12)  # yy becomes xx
    np.testing.assert_allclose(after[:, 5], -before[:, 5], atol=1e-12)  # xy changes its sign


def test_half_of_each_pair() -> None:
    """Two atoms in one direction: both have half of r dE/dr, which is the force on the first."""
    potential = make_potential()
    atoms = Atoms("CO", [[0, 0, 0], [1.4, 0, 0]], cell=[30, 30, 30], pbc=True)
    found = PotentialCalculator(potential, dtype="float64").evaluate([atoms])[0]
    slope = found["forces"][0, 0]
    expected = 0.5 * 1.4 * slope / atoms.cell.volume
    assert abs(expected) > 1e-6
    np.testing.assert_allclose(found["stresses"][:, 0], expected, rtol=1e-10)
    np.testing.assert_allclose(found["stresses"][:, 1:], 0, atol=1e-15)


def test_in_ase() -> None:
    atoms = crystal()
    atoms.calc = PotentialCalculator(make_potential(), dtype="float64")
    atoms.get_forces()
    assert "stresses" not in atoms.calc.results
    evaluations = []
    evaluate = atoms.calc.evaluator.evaluate
    atoms.calc.evaluator.evaluate = lambda graph: evaluations.append(1) or evaluate(graph)
    stresses = atoms.get_stresses()
    assert not evaluations  # that of the forces
    np.testing.assert_allclose(stresses.sum(0), atoms.get_stress(), atol=1e-14)
    assert stresses.shape == (len(atoms), 6)
    atoms.rattle(0.01, seed=1)
    assert np.abs(atoms.get_stresses() - stresses).max() > 1e-6
    assert len(evaluations) == 1
    one = molecule("H2O")
    one.calc = atoms.calc
    with pytest.raises(StressUndefinedError):
        one.get_stresses()
    assert "stresses" not in atoms.calc.evaluate([one])[0]
