"""TensorNet2 in ASE, as TorchScript and in OpenMM: charges, total charge and Coulomb cutoff."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from support.helpers import make_potential
from support.tensornet2 import REACTION_FIELD
from support.tensornet2 import make_tensornet2 as make_larger

from tensormd.calculators import PotentialCalculator, TensorNetCalculator, create_force
from tensormd.calculators import openmm_versions as engines
from tensormd.models import Committee, Potential, export_torchscript, save_potential
from tensormd.models.inference import backends
from tensormd.models.inference.tables import tabulated_potential
from tensormd.models.units import kj_per_mol_in_ev, nm_in_angstrom

pytestmark = [
    pytest.mark.filterwarnings("ignore:the charge is"),
    pytest.mark.filterwarnings("ignore:the cell has the charge"),
]


def make_tensornet2(seed: int = 0, **options: Any) -> Potential:
    """Small: most of the time goes into compiling."""
    return make_larger(seed, layers=1, channels=8, **options)


@pytest.fixture(scope="module")
def potential() -> Potential:
    found = make_tensornet2(coulomb=math.inf)
    found.metadata["trained_with_charge"] = True
    return found


def ethanol(box: float = 0.0) -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    if box:
        atoms.set_cell([box, box + 1, box + 2])
        atoms.pbc = True
        atoms.positions += box - 1.0  # across the boundary
    return atoms


def calculator(potential: Any, **options: Any) -> TensorNetCalculator:
    return TensorNetCalculator(potential, device="cpu", **{"dtype": "float64", **options})


# ASE


def test_charges_in_ase(potential: Potential) -> None:
    atoms = ethanol()
    atoms.calc = calculator(potential, charge=-1)
    charges = atoms.get_charges()
    assert charges.shape == (9,)
    assert charges.sum() == pytest.approx(-1.0, abs=1e-4)
    assert np.abs(charges).max() > 0.02
    results = atoms.calc.evaluate([atoms, ethanol()[:1]])
    np.testing.assert_allclose(results[0]["charges"], charges, rtol=0, atol=1e-12)
    assert results[1]["charges"] == pytest.approx([-1.0], abs=1e-4)
    # A committee gives the mean of its members.
    other = make_tensornet2(1, coulomb=math.inf)
    atoms.calc = calculator(Committee([potential, other]), charge=-1)
    alone = calculator(other, charge=-1).evaluate([atoms])[0]["charges"]
    np.testing.assert_allclose(atoms.get_charges(), 0.5 * (charges + alone), rtol=0, atol=1e-12)


def test_fused_in_ase(potential: Potential, tmp_path: Path) -> None:
    """Energies, forces, charges, Hessian, committee, batches; all pairs need no list.

    In float32, as all tests of this file: the kernels are compiled once.
    """
    atoms = ethanol()
    fused, plain = (
        calculator(potential, charge=-1, backend=backend, dtype="float32")
        for backend in ("fused", "reference")
    )
    info = json.loads(json.dumps(fused.info()))
    assert (info["engine"], info["why_not_fused"]) == ("fused CPU kernels", None)
    assert info["cutoff_angstrom"] is None
    assert info["runs_as"] == plain.info()["runs_as"]
    assert "fused kernels" in info["runs_as"][0]
    assert fused.neighbors.cutoff < 10
    for calc in (fused, plain):
        atoms.calc = calc
        atoms.get_forces()
    found, expected = ({**calc.evaluate([atoms, ethanol()[:2]])[0]} for calc in (fused, plain))
    assert set(found) == set(expected)
    for name, bound in (("energy", 1e-5), ("forces", 2e-5), ("charges", 1e-6)):
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=bound)
    atoms.calc = fused
    np.testing.assert_allclose(atoms.get_charges(), expected["charges"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(fused.get_hessian(atoms), plain.get_hessian(atoms))
    other = make_tensornet2(1, coulomb=math.inf)
    options = {"charge": -1, "backend": "fused", "dtype": "float32"}
    atoms.calc = calculator(Committee([potential, other]), **options)
    alone = calculator(other, **options).evaluate([atoms])[0]
    mean = 0.5 * (alone["charges"] + found["charges"])
    np.testing.assert_allclose(atoms.get_charges(), mean, rtol=0, atol=1e-12)
    assert "forces_std" in atoms.calc.evaluate([atoms])[0]


def test_a_list_without_all_pairs_serves_the_network_too(
    potential: Potential, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If fused kernels turn out to be unusable at the first evaluation."""
    apart = Atoms("OH", [[0.0, 0, 0], [0, 0, 9.0]])
    expected = calculator(potential).evaluate([apart, ethanol()])
    monkeypatch.setattr(backends, "find_problem", lambda *_: "a test forbids them")
    calc = TensorNetCalculator(potential, device="cpu")
    found = calc.evaluate([apart, ethanol()])
    assert calc.evaluator.neighbors.cutoff < 9
    assert calc.info()["engine"] == "TorchScript"
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a["forces"], b["forces"], rtol=0, atol=1e-5)
    assert np.abs(expected[0]["forces"]).max() > 1e-4


def test_auto_runs_fused_kernels_in_float32(potential: Potential) -> None:
    atoms = ethanol()
    atoms.calc = TensorNetCalculator(potential, device="cpu", charge=1)
    assert atoms.calc.info()["engine"] == "fused CPU kernels"
    expected = calculator(potential, charge=1).evaluate([atoms])[0]
    np.testing.assert_allclose(atoms.get_forces(), expected["forces"], rtol=0, atol=1e-4)
    assert calculator(potential).info()["engine"] == "TorchScript"


def test_coulomb_cutoff_in_ase(potential: Potential) -> None:
    """All pairs in a molecule; a cell needs a cutoff and says so."""
    atoms = ethanol(box=11.0)
    atoms.calc = calculator(potential)
    with pytest.raises(ValueError, match=r"periodic cell.*coulomb_cutoff=12\.0"):
        atoms.get_potential_energy()
    atoms.calc = calculator(potential, coulomb_cutoff=REACTION_FIELD)
    assert atoms.calc.todict()["coulomb_cutoff"] == REACTION_FIELD
    expected = calculator(make_tensornet2(coulomb=REACTION_FIELD)).evaluate([atoms])[0]
    np.testing.assert_allclose(atoms.get_forces(), expected["forces"], rtol=0, atol=1e-12)
    assert "stress" in expected
    # Back to all pairs, for a file that has a cutoff.
    cut = make_tensornet2(coulomb=REACTION_FIELD)
    whole = calculator(cut, coulomb_cutoff=math.inf).evaluate([ethanol()])[0]
    wanted = calculator(potential).evaluate([ethanol()])[0]
    np.testing.assert_allclose(whole["forces"], wanted["forces"], rtol=0, atol=1e-12)
    assert cut.cutoff == REACTION_FIELD  # the caller's own stays as it is


@pytest.mark.parametrize(
    ("make", "cutoff", "message"),
    [
        (make_potential, 12.0, "no Coulomb energy to cut off"),
        (make_tensornet2, 12.0, "no Coulomb energy to cut off"),
        (lambda: make_tensornet2(coulomb=9.0), 500.0, "500.0 A: expected a length up to 100 A"),
        (lambda: make_tensornet2(coulomb=9.0), -1.0, "-1.0 A: expected"),
    ],
)
def test_coulomb_cutoff_that_cannot_be(make: Any, cutoff: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calculator(make(), coulomb_cutoff=cutoff)


def test_charged_cell_is_told_once(potential: Potential) -> None:
    atoms = ethanol(box=11.0)
    atoms.calc = calculator(potential, coulomb_cutoff=6.0, charge=1)
    with pytest.warns(UserWarning, match=r"cell has the charge \+1.*up to 6 A.*reaction field"):
        atoms.get_potential_energy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atoms.rattle(0.01)
        atoms.get_potential_energy()
        neutral = ethanol(box=11.0)
        neutral.calc = calculator(potential, coulomb_cutoff=6.0, charge=0)
        neutral.get_potential_energy()


# TorchScript


@pytest.mark.parametrize("cutoff", [math.inf, REACTION_FIELD])
def test_portable_file(cutoff: float, tmp_path: Path) -> None:
    """With the default, tables."""
    potential = make_tensornet2(coulomb=cutoff)
    atoms = ethanol(0.0 if cutoff == math.inf else 11.0)
    expected = calculator(tabulated_potential(potential), charge=1).evaluate([atoms])[0]
    export_torchscript(potential, tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt")
    arguments = [
        torch.tensor(x) for x in (atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc)
    ]
    for _ in range(3):
        energy, forces = loaded(*arguments, 1.0)
        assert energy.item() == pytest.approx(expected["energy"], abs=1e-10)
        np.testing.assert_allclose(forces, expected["forces"], rtol=0, atol=1e-10)
    if cutoff == math.inf:
        arguments[2:] = [20 * torch.eye(3, dtype=torch.float64), torch.ones(3, dtype=torch.bool)]
        with pytest.raises(torch.jit.Error, match="periodic cell"):
            loaded(*arguments, 1.0)


# OpenMM


class TestOpenMM:
    """Forces of both engines against ASE."""

    openmm = pytest.importorskip("openmm", reason="openmm is not installed (extra 'openmm')")

    ENGINES = (
        pytest.param(
            "torchforce",
            marks=pytest.mark.skipif(
                engines.torchforce_problem() is not None, reason=str(engines.torchforce_problem())
            ),
        ),
        "python",
    )

    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize("box", [0.0, 26.0])
    def test_equals_ase(self, engine: str, box: float, potential: Potential) -> None:
        """All pairs without a box, 12 A in one, as in openmm-ml."""
        atoms = ethanol(box)
        force = create_force(
            potential, atoms.numbers, charge=-1, engine=engine, dtype="float64", periodic=box > 0
        )
        energy, forces = self.evaluate(force, atoms)
        cutoff = 12.0 if box else math.inf
        expected = calculator(potential, charge=-1, coulomb_cutoff=cutoff).evaluate([atoms])[0]
        assert np.abs(expected["forces"]).max() > 0.1
        assert energy == pytest.approx(expected["energy"], abs=1e-9)
        np.testing.assert_allclose(forces, expected["forces"], rtol=0, atol=1e-8)

    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize("box", [0.0, 26.0])
    def test_fused_equals_ase(self, engine: str, box: float, potential: Potential) -> None:
        atoms = ethanol(box)
        force = create_force(potential, atoms.numbers, charge=-1, engine=engine, periodic=box > 0)
        forces = self.evaluate(force, atoms)[1]
        cutoff = 12.0 if box else math.inf
        expected = calculator(
            potential, charge=-1, coulomb_cutoff=cutoff, backend="fused", dtype="float32"
        )
        wanted = expected.evaluate([atoms])[0]["forces"]
        np.testing.assert_allclose(forces, wanted, rtol=0, atol=1e-4)

    def evaluate(self, force: Any, atoms: Atoms) -> Any:
        from support.openmm_systems import evaluate, make_system

        return evaluate(make_system(atoms, force), atoms, "Reference")

    def test_coulomb_cutoff_is_in_nm_or_a_quantity(
        self, potential: Potential, caplog: pytest.LogCaptureFixture
    ) -> None:
        from openmm import unit

        atoms, cut = ethanol(), REACTION_FIELD / nm_in_angstrom
        expected = calculator(potential, coulomb_cutoff=REACTION_FIELD).evaluate([atoms])[0]
        for given in (cut, cut * unit.nanometer, REACTION_FIELD * unit.angstrom):
            force = create_force(
                potential, atoms.numbers, engine="python", dtype="float64", coulomb_cutoff=given
            )
            energy = self.evaluate(force, atoms)[0]
            assert energy == pytest.approx(expected["energy"], abs=1e-9)
        # A box keeps the cutoff that the file has, and none means all pairs without a box.
        with caplog.at_level("INFO"):
            own = make_tensornet2(coulomb=REACTION_FIELD)
            create_force(own, atoms.numbers, engine="python", periodic=True)
            create_force(own, atoms.numbers, engine="python")
        assert f"cut off at {REACTION_FIELD:g} A" in caplog.text
        assert "that of all pairs" in caplog.text

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"coulomb_cutoff": math.inf, "periodic": True}, "infinite, but the box is periodic"),
            ({"coulomb_cutoff": -1.0}, "-10.0 A: expected"),
        ],
    )
    def test_cutoffs_that_cannot_be(
        self, options: dict[str, Any], message: str, potential: Potential
    ) -> None:
        with pytest.raises(ValueError, match=message):
            create_force(potential, ethanol().numbers, **options)
        with pytest.raises(ValueError, match="no Coulomb energy"):
            create_force(make_potential(), ethanol().numbers, coulomb_cutoff=1.2)

    def test_charged_box(self, potential: Potential) -> None:
        with pytest.warns(UserWarning, match="reaction field"):
            create_force(potential, ethanol().numbers, charge=1, periodic=True, engine="python")

    def test_openmm_ml(self, potential: Potential, tmp_path: Path) -> None:
        """The options of openmm-ml's own torchmd-net: charge, coulomb_cutoff, useCoulombCutoff."""
        openmmml = pytest.importorskip("openmmml", reason="openmmml is not installed")
        app = pytest.importorskip("openmm.app")
        save_potential(potential, tmp_path / "m.safetensors")
        learned = openmmml.MLPotential("tensormd", modelPath=str(tmp_path / "m.safetensors"))
        atoms = ethanol()
        topology = app.Topology()
        residue = topology.addResidue("EOH", topology.addChain())
        for number in atoms.numbers:
            element = app.Element.getByAtomicNumber(int(number))
            topology.addAtom(element.symbol, element, residue)

        def energy(**options: Any) -> float:
            system = learned.createSystem(
                topology, charge=1, engine="python", dtype="float64", **options
            )
            return self.energy_of(system, atoms)

        def wanted(structure: Atoms, cutoff: float) -> float:
            calc = calculator(potential, charge=1, coulomb_cutoff=cutoff)
            return float(calc.evaluate([structure])[0]["energy"])

        assert energy() == pytest.approx(wanted(atoms, math.inf), abs=1e-9)
        found = energy(useCoulombCutoff=True, coulomb_cutoff=0.5)
        assert found == pytest.approx(wanted(atoms, 5.0), abs=1e-9)
        assert abs(found - wanted(atoms, math.inf)) > 1e-3
        with pytest.raises(ValueError, match=r"no box.*useCoulombCutoff=True"):
            energy(coulomb_cutoff=0.5)
        with pytest.raises(ValueError, match="leave coulomb_cutoff out"):
            energy(coulomb_cutoff=0.5, useCoulombCutoff=False)
        topology.setPeriodicBoxVectors(np.eye(3) * 2.6)
        atoms.set_cell([26.0, 26.0, 26.0])
        atoms.pbc = True
        assert energy() == pytest.approx(wanted(atoms, 12.0), abs=1e-9)
        assert energy(coulomb_cutoff=0.6) == pytest.approx(wanted(atoms, 6.0), abs=1e-9)

    @pytest.mark.parametrize("box", [0.0, 26.0])
    def test_charged_ligand_in_ml_mm(self, box: float, potential: Potential) -> None:
        """What its charge changes is what it changes for the ligand alone."""
        openmmml = pytest.importorskip("openmmml", reason="openmmml is not installed")
        app = pytest.importorskip("openmm.app")
        from support.openmm_runs import three_waters

        topology, atoms = three_waters()
        if box:
            topology.setPeriodicBoxVectors(np.eye(3) * box / nm_in_angstrom)
        mm = app.ForceField("amber14/tip3p.xml").createSystem(
            topology,
            nonbondedMethod=app.CutoffPeriodic if box else app.NoCutoff,
            rigidWater=False,
        )
        learned = openmmml.MLPotential("tensormd", modelPath=potential)

        def energy(charge: int) -> float:
            system = learned.createMixedSystem(
                topology, mm, [3, 4, 5], charge=charge, engine="python", dtype="float64"
            )
            return self.energy_of(system, atoms)

        ligand = atoms[[3, 4, 5]]
        if box:
            ligand.set_cell([box] * 3)
            ligand.pbc = True
        cutoff = 12.0 if box else math.inf
        alone = [
            float(calculator(potential, charge=q, coulomb_cutoff=cutoff)
                  .evaluate([ligand])[0]["energy"])
            for q in (-1, 0)
        ]  # fmt: skip
        assert abs(alone[0] - alone[1]) > 1e-3
        assert energy(-1) - energy(0) == pytest.approx(alone[0] - alone[1], abs=1e-7)

    def energy_of(self, system: Any, atoms: Atoms) -> float:
        context = self.openmm.Context(
            system,
            self.openmm.VerletIntegrator(1e-3),
            self.openmm.Platform.getPlatformByName("Reference"),
        )
        context.setPositions(atoms.positions / nm_in_angstrom)
        energy = context.getState(getEnergy=True).getPotentialEnergy()
        return float(energy._value) * kj_per_mol_in_ev


def test_calculator_for_any_network(potential: Potential) -> None:
    atoms = ethanol()
    atoms.calc = PotentialCalculator(potential)
    assert np.isfinite(atoms.get_forces()).all()
    assert "charges" in atoms.calc.implemented_properties
