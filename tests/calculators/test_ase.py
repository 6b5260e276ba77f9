"""The ASE calculator: the behaviour that users of ASE rely on."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import threading
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.io import read, write
from ase.optimize import BFGS
from numpy.typing import NDArray
from support.helpers import REFERENCES, make_potential
from support.processes import forces_of

from tensormd.calculators import PotentialCalculator, TensorNetCalculator
from tensormd.calculators.checks import warn_of_charge
from tensormd.models import EnergyReadout, Potential, TensorNet, load_potential, save_potential


def toy(seed: int = 0) -> Potential:
    """A small untrained float32 potential of H, C, N, O."""
    potential = make_potential(seed, references=REFERENCES).float()
    potential.metadata["name"] = f"toy {seed}"
    return potential


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "toy.safetensors"
    save_potential(toy(), path)
    return path


@pytest.fixture
def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    return atoms


def crystal() -> Atoms:
    """A triclinic cell of two atoms, smaller than the cutoff."""
    atoms = bulk("C", "diamond", a=3.57)
    atoms.rattle(0.1, seed=2)
    return atoms


def test_five_lines(checkpoint: Path, ethanol: Atoms) -> None:
    ethanol.calc = TensorNetCalculator(checkpoint)
    energy, forces = ethanol.get_potential_energy(), ethanol.get_forces()
    assert forces.shape == (9, 3)
    assert forces.dtype == np.float64
    assert np.abs(forces).max() > 0.1  # a force that matters, so that what follows means something
    assert ethanol.get_potential_energy(force_consistent=True) == energy
    np.testing.assert_allclose(ethanol.get_potential_energies().sum(), energy, rtol=1e-14)
    np.testing.assert_allclose(forces.sum(0), 0, atol=1e-12)
    assert BFGS(ethanol, logfile=None).run(fmax=0.5, steps=200)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_the_network(dtype: str, ethanol: Atoms) -> None:
    potential = toy()
    calculator = TensorNetCalculator(potential, dtype=dtype)
    assert potential.dtype == torch.float32  # the caller's own is not cast
    assert {p.dtype for p in calculator.potential.parameters()} == {getattr(torch, dtype)}
    ethanol.calc = calculator
    reference = TensorNetCalculator(potential, dtype="float64")
    reference.calculate(ethanol)
    # float32 keeps seven digits of forces of about 10 eV/A.
    tolerance = 0 if dtype == "float64" else 2e-4
    np.testing.assert_allclose(ethanol.get_forces(), reference.results["forces"], atol=tolerance)
    energy_error = ethanol.get_potential_energy() - reference.results["energy"]
    assert abs(energy_error) <= (0 if dtype == "float64" else 2e-4)


def test_forces_under_no_grad(checkpoint: Path, ethanol: Atoms) -> None:
    expected = TensorNetCalculator(checkpoint).evaluate([ethanol])[0]["forces"]
    with torch.no_grad():
        ethanol.calc = TensorNetCalculator(checkpoint)
        np.testing.assert_array_equal(ethanol.get_forces(), expected)


def test_elements_without_a_place_in_the_tables() -> None:
    network = TensorNet(channels=8, max_number=9)
    for elements, references in (([1, 9], None), ([1, 8], [0.0] * 8), ([0, 1], None)):
        with pytest.raises(ValueError, match=r"a place for atomic numbers 1 to"):
            Potential(network, EnergyReadout(8), elements=elements, references=references)


def test_stress_of_a_crystal(checkpoint: Path) -> None:
    atoms = crystal()
    atoms.calc = TensorNetCalculator(checkpoint, dtype="float64")
    stress = atoms.get_stress()
    assert stress.shape == (6,)
    assert np.abs(stress).max() > 1e-4
    numerical = numerical_stress(atoms)
    np.testing.assert_allclose(stress, numerical, rtol=1e-6, atol=1e-9)


def numerical_stress(atoms: Atoms, step: float = 1e-4) -> NDArray[np.float64]:
    stress = np.zeros(6)
    for k, (a, b) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[a, b] += sign * step / 2
            strain[b, a] += sign * step / 2
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            strained.calc = atoms.calc
            energies.append(strained.get_potential_energy())
        stress[k] = (energies[0] - energies[1]) / (2 * step) / atoms.get_volume()
    return stress


def test_slab_has_stress_where_its_cell_has_a_volume(checkpoint: Path) -> None:
    slab = crystal()
    slab.pbc = (True, True, False)
    slab.calc = TensorNetCalculator(checkpoint)
    assert slab.get_stress().shape == (6,)
    slab.cell[2] = 0
    with pytest.raises(ValueError, match="volume"):
        slab.get_stress()
    assert np.isfinite(slab.get_potential_energy())


@pytest.mark.parametrize(
    ("change", "evaluates"),
    [
        (lambda a: a.rattle(0.01, seed=3), True),
        (lambda a: a.set_atomic_numbers([6, 7, *a.numbers[2:]]), True),
        (lambda a: a.info.update(charge=1), True),
        (lambda a: a.set_pbc(True) or a.set_cell([9, 9, 9]), True),
        (lambda a: a.set_cell([9, 9, 9]), False),  # a molecule has no use for it
        (lambda a: a.info.update(note=np.arange(3)), False),
        (lambda a: a.set_initial_charges(np.ones(9)), False),
        (lambda a: a.set_initial_magnetic_moments(np.ones(9)), False),
        (lambda a: a.set_velocities(np.ones((9, 3))), False),
        (lambda a: None, False),
    ],
)
def test_evaluates_when_and_only_when_something_read_has_changed(
    change: Callable[[Atoms], Any], evaluates: bool, checkpoint: Path, ethanol: Atoms
) -> None:
    ethanol.info["note"] = np.arange(3)
    calculator = CountingCalculator(checkpoint)
    ethanol.calc = calculator
    ethanol.get_forces()
    change(ethanol)
    ethanol.get_forces()
    ethanol.get_potential_energy()
    assert calculator.evaluations == 1 + evaluates


class CountingCalculator(TensorNetCalculator):
    evaluations = 0

    def calculate(self, *arguments: Any, **keywords: Any) -> None:
        self.evaluations += 1
        super().calculate(*arguments, **keywords)


@pytest.mark.parametrize(
    ("backend", "engine"), [("fused", "fused CPU kernels"), ("reference", "TorchScript")]
)
def test_compiled_once_for_every_structure(backend: str, engine: str, checkpoint: Path) -> None:
    calculator = TensorNetCalculator(checkpoint, backend=backend)
    assert calculator.info()["engine"] == engine
    calculator.calculate(molecule("CH4"))
    compiled = calculator.evaluator.members
    for atoms in (molecule("C6H6"), crystal(), molecule("H2O"), Atoms("H")):
        calculator.calculate(atoms)
        assert np.isfinite(calculator.results["energy"])
    assert calculator.evaluator.members is compiled


def test_charge(checkpoint: Path, ethanol: Atoms) -> None:
    neutral = TensorNetCalculator(checkpoint).evaluate([ethanol])[0]["energy"]
    ethanol.info["charge"] = 1
    cation = TensorNetCalculator(checkpoint).evaluate([ethanol])[0]["energy"]
    assert abs(cation - neutral) > 1e-4
    assert TensorNetCalculator(checkpoint, charge=0).evaluate([ethanol])[0]["energy"] == neutral
    del ethanol.info["charge"]
    assert TensorNetCalculator(checkpoint, charge=1).evaluate([ethanol])[0]["energy"] == cation


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"trained_with_charge": True}, None),
        ({"trained_with_charge": False}, "was trained on neutral structures only"),
        ({}, "does not state that it was trained on charged structures"),
    ],
)
def test_a_charge_that_the_model_may_not_know(
    metadata: dict[str, Any], words: str | None, ethanol: Atoms
) -> None:
    potential = toy()
    potential.metadata = metadata
    calculator = PotentialCalculator(potential)
    ethanol.calc = calculator
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ethanol.get_potential_energy()
        assert not said
        ethanol.info["charge"] = -1
        for _ in range(3):
            ethanol.rattle(0.01)
            ethanol.get_potential_energy()
        calculator.evaluate([ethanol])
    found = [str(each.message) for each in said]
    assert len(found) == (words is not None)
    assert all(f"the charge is -1, but the model {words}" in each for each in found)


@pytest.mark.parametrize("name", ["ethanol", "ethanol-tdn"])
def test_a_charge_of_what_ships(name: str) -> None:
    blind = ", and the energy of a TDN does not" if name == "ethanol-tdn" else ": results are"
    with pytest.warns(UserWarning, match=f"trained on neutral structures only{blind}"):
        warn_of_charge(load_potential(name), 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_inside_inference_mode(dtype: str, backend: str, checkpoint: Path, ethanol: Atoms) -> None:
    options = {"dtype": dtype, "backend": backend}
    expected = TensorNetCalculator(checkpoint, **options).evaluate([ethanol])[0]
    with torch.inference_mode():
        made_inside = TensorNetCalculator(checkpoint, **options)
        given = TensorNetCalculator(load_potential(checkpoint), **options)
        for calculator in (made_inside, given):
            ethanol.calc = calculator
            np.testing.assert_allclose(ethanol.get_forces(), expected["forces"], atol=1e-6)
            assert np.abs(expected["forces"]).max() > 0.01
            calculator.evaluate([ethanol])
        hessian = made_inside.get_hessian(ethanol)
    # The neighbour list of inside serves outside, and the other way round.
    moved = ethanol.copy()
    moved.rattle(0.01, seed=3)
    after = TensorNetCalculator(checkpoint, **options).evaluate([moved])[0]["forces"]
    moved.calc = made_inside
    np.testing.assert_allclose(moved.get_forces(), after, atol=1e-6)
    assert np.isfinite(hessian).all()


def test_batch_equals_one_by_one(checkpoint: Path, ethanol: Atoms) -> None:
    structures = [ethanol, crystal(), Atoms("O"), molecule("C6H6"), bulk("C", "diamond", a=3.6)]
    structures[0].info["charge"] = -1
    calculator = TensorNetCalculator(checkpoint, dtype="float64")
    batch = calculator.evaluate(structures)
    assert len(batch) == len(structures)
    for result, atoms in zip(batch, structures, strict=True):
        calculator.calculate(atoms)
        assert set(result) == set(calculator.results)
        assert ("stress" in result) == bool(atoms.pbc.any())
        for name, value in result.items():
            np.testing.assert_allclose(value, calculator.results[name], rtol=1e-11, atol=1e-11)
    assert calculator.evaluate([]) == []


def test_committee(tmp_path: Path, ethanol: Atoms) -> None:
    paths = []
    for seed in range(3):
        paths.append(tmp_path / f"{seed}.safetensors")
        save_potential(toy(seed), paths[-1])
    ethanol.calc = TensorNetCalculator(paths)
    alone = [TensorNetCalculator(path).evaluate([ethanol])[0] for path in paths]
    energies = [result["energy"] for result in alone]
    forces = np.array([result["forces"] for result in alone])
    assert ethanol.get_potential_energy() == pytest.approx(np.mean(energies), rel=1e-12)
    np.testing.assert_allclose(ethanol.get_forces(), forces.mean(0), atol=1e-12)
    std = ethanol.calc.get_property("forces_std", ethanol)
    assert std.max() > 0.1
    np.testing.assert_allclose(std, forces.std(0, ddof=1), atol=1e-12)
    assert ethanol.calc.results["energy_std"] == pytest.approx(np.std(energies, ddof=1))
    assert ethanol.calc.info()["members"] == 3
    with pytest.raises(PropertyNotImplementedError):
        TensorNetCalculator(paths[0]).get_property("energy_std", ethanol)


def test_hessian_against_forces(checkpoint: Path, ethanol: Atoms) -> None:
    calculator = TensorNetCalculator(checkpoint, dtype="float64")
    hessian = calculator.get_hessian(ethanol)
    assert hessian.shape == (27, 27)
    step = 1e-4
    for column in (0, 13, 26):
        displaced = []
        for sign in (1, -1):
            atoms = ethanol.copy()
            atoms.positions.flat[column] += sign * step
            displaced.append(calculator.evaluate([atoms])[0]["forces"].ravel())
        numerical = -(displaced[0] - displaced[1]) / (2 * step)
        np.testing.assert_allclose(hessian[column], numerical, atol=1e-5 * np.abs(hessian).max())
    np.testing.assert_allclose(hessian, hessian.T)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_give_the_same_numbers(
    copier: Callable[[Any], Any], checkpoint: Path, ethanol: Atoms
) -> None:
    calculator = TensorNetCalculator(checkpoint)
    for used in (False, True):
        if used:
            calculator.calculate(ethanol)
        twin = copier(calculator)
        twin.calculate(ethanol)
        calculator.calculate(ethanol)
        np.testing.assert_array_equal(twin.results["forces"], calculator.results["forces"])


def test_todict_makes_it_again(checkpoint: Path, ethanol: Atoms) -> None:
    calculator = TensorNetCalculator(checkpoint, dtype="float64", skin=0.3)
    arguments = json.loads(json.dumps(calculator.todict()))
    assert arguments == {"checkpoint": str(checkpoint), "dtype": "float64", "skin": 0.3}
    twin = TensorNetCalculator(**arguments)
    for each in (calculator, twin):
        each.calculate(ethanol)
    np.testing.assert_array_equal(twin.results["forces"], calculator.results["forces"])


def test_written_with_its_results(checkpoint: Path, ethanol: Atoms, tmp_path: Path) -> None:
    ethanol.calc = TensorNetCalculator(checkpoint)
    forces = ethanol.get_forces()
    for name in ("a.traj", "a.extxyz"):
        write(tmp_path / name, ethanol)
        np.testing.assert_allclose(read(tmp_path / name).get_forces(), forces, atol=1e-7)


def test_two_threads(checkpoint: Path) -> None:
    structures = [molecule("CH3CH2OH"), molecule("C6H6")]
    expected = [forces_of(TensorNetCalculator(checkpoint), atoms) for atoms in structures]
    found: dict[int, list[NDArray[np.float64]]] = {0: [], 1: []}

    def work(k: int) -> None:
        calculator = TensorNetCalculator(checkpoint)
        for _ in range(20):
            found[k].append(forces_of(calculator, structures[k]))

    threads = [threading.Thread(target=work, args=(k,)) for k in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in (0, 1):
        assert len(found[k]) == 20
        for forces in found[k]:
            np.testing.assert_allclose(forces, expected[k], atol=1e-5)


def test_many_threads_may_compile_at_once(checkpoint: Path) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            TensorNetCalculator(checkpoint).calculate(Atoms("H"))
        except BaseException as error:  # collected, so that the test sees it
            failures.append(error)

    for _ in range(3):
        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_worker_process(checkpoint: Path, ethanol: Atoms) -> None:
    calculator = TensorNetCalculator(checkpoint)
    expected = forces_of(calculator, ethanol)
    with get_context("spawn").Pool(1) as pool:
        there = pool.apply(forces_of, (calculator, ethanol))
    np.testing.assert_allclose(there, expected, atol=1e-5)


def test_memory_does_not_grow(checkpoint: Path) -> None:
    atoms = molecule("CH3CH2OH")
    calculator = TensorNetCalculator(checkpoint)
    generator = np.random.default_rng(0)
    start = atoms.positions.copy()

    def run(evaluations: int) -> None:
        for _ in range(evaluations):
            atoms.positions = start + generator.normal(scale=0.3, size=start.shape)
            calculator.calculate(atoms)

    run(200)
    gc.collect()
    before = _resident_mb()
    run(700)  # `make bench` runs the 10,000
    gc.collect()
    assert _resident_mb() - before < 20


def _resident_mb() -> float:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("resident memory is read from /proc, which is not there")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return float(line.split()[1]) / 1024


def impossible_structures() -> dict[str, tuple[Atoms, str]]:
    ethanol = molecule("CH3CH2OH")
    nan, twins, no_cell, flat = (ethanol.copy() for _ in range(4))
    nan.positions[3, 1] = np.nan
    infinite = ethanol.copy()
    infinite.positions[0, 0] = np.inf
    twins.positions[4] = twins.positions[2]
    no_cell.pbc = True
    flat.pbc = True
    flat.cell = [[5, 0, 0], [0, 5, 0], [5, 5, 0]]
    half = ethanol.copy()
    half.pbc = (True, False, True)
    half.cell = [5, 5, 0]
    charged = ethanol.copy()
    charged.info["charge"] = 0.5
    return {
        "element": (Atoms("Xe2", [[0, 0, 0], [0, 0, 3]]), "does not know Xe"),
        "empty": (Atoms(), "no atoms"),
        "nan": (nan, "position of atom 3"),
        "infinite": (infinite, "position of atom 0"),
        "coincident": (twins, "atoms 2 and 4 .* one place"),
        "no cell": (no_cell, "no such vector"),
        "flat cell": (flat, "linearly dependent"),
        "half a cell": (half, "no such vector"),
        "charge": (charged, "charge is 0.5"),
    }


@pytest.mark.parametrize("kind", impossible_structures())
def test_impossible_structures(kind: str, checkpoint: Path, ethanol: Atoms) -> None:
    atoms, message = impossible_structures()[kind]
    calculator = TensorNetCalculator(checkpoint)
    atoms.calc = calculator
    for _ in range(2):  # the second time too: a failure leaves no result behind
        with pytest.raises(ValueError, match=message):
            atoms.get_potential_energy()
    ethanol.calc = calculator
    assert np.isfinite(ethanol.get_potential_energy())


def test_stress_of_a_molecule(checkpoint: Path, ethanol: Atoms) -> None:
    ethanol.calc = TensorNetCalculator(checkpoint)
    with pytest.raises(ValueError, match="stress of a molecule"):
        ethanol.get_stress()
    assert np.isfinite(ethanol.get_potential_energy())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:99"}, "cuda:99"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"device": "meta"}, "not supported"),
        ({"dtype": "float16"}, "float16"),
        ({"dtype": 32}, "32"),
        ({"backend": "turbo"}, "turbo"),
        ({"skin": -1.0}, "skin"),
        ({"charge": 0.3}, "charge is 0.3"),
        ({"charge": "one"}, "charge is 'one'"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=message):
        TensorNetCalculator(checkpoint, **options)


def test_misspelt_option(checkpoint: Path) -> None:
    with pytest.raises(TypeError, match="devise"):
        TensorNetCalculator(checkpoint, devise="cpu")  # type: ignore[call-arg]


def test_wrong_architecture(ethanol: Atoms) -> None:
    class Other(TensorNet):
        pass

    potential = Potential(Other(channels=8, max_number=10), EnergyReadout(8), elements=[1, 6, 8])
    with pytest.raises(ValueError, match=r"TensorNet.* holds a Other"):
        TensorNetCalculator(potential)
    ethanol.calc = PotentialCalculator(potential)
    assert np.isfinite(ethanol.get_potential_energy())


@pytest.mark.slow
def test_ten_thousand_evaluations(checkpoint: Path) -> None:
    atoms = molecule("CH3CH2OH")
    calculator = TensorNetCalculator(checkpoint)
    generator = np.random.default_rng(0)
    start, memory = atoms.positions.copy(), 0.0
    for k in range(10_300):
        atoms.positions = start + generator.normal(scale=0.3, size=start.shape)
        calculator.calculate(atoms)
        if k == 300:
            memory = _resident_mb()
    growth = _resident_mb() - memory
    print(f"\n10,000 evaluations: {growth:.1f} MB more")
    assert growth < 20


def test_torch_sim_that_is_missing() -> None:
    from tensormd.calculators import torchsim

    if torchsim._problem is None:
        pytest.skip("torch-sim is installed")
    with pytest.raises(ImportError, match=r"pip install 'tensormd\[torchsim\]'"):
        torchsim.TensormdModel("ethanol")
