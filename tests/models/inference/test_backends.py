"""The fused backend against the network itself, through every adapter."""

from __future__ import annotations

import copy
import gc
import logging
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from numpy.typing import NDArray
from support.helpers import REFERENCES, make_potential
from support.processes import forces_of, send_forces

from tensormd.calculators import PotentialCalculator, TensorNetCalculator, create_force
from tensormd.calculators import openmm_versions as engines
from tensormd.calculators import torch_operator as operator
from tensormd.models import (
    Committee,
    EnergyReadout,
    Potential,
    TensorNet,
    export_torchscript,
    save_potential,
)
from tensormd.models.inference import kernels
from tensormd.models.inference.backends import compile_potential, compiling
from tensormd.models.inference.tables import tabulated
from tensormd.models.units import kj_per_mol_in_ev, nm_in_angstrom

pytest.importorskip("numba", reason="numba is not installed")
compiled = pytest.importorskip("tensormd.models.inference.kernels.cpu.compiled")

BOUNDS = {"float32": (1e-4, 1e-5), "float64": (3e-5, 1e-5)}
"""Largest and root mean square error of forces, eV/A."""


def toy(seed: int = 0, **options: Any) -> Potential:
    """A small untrained potential whose forces are of the size of a molecule's."""
    return make_potential(seed, references=REFERENCES, scale=0.5, **options)


@pytest.fixture(scope="module")
def potential() -> Potential:
    return toy()


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    return atoms


def charged() -> Atoms:
    atoms = ethanol()
    atoms.info["charge"] = -1
    return atoms


def crystal() -> Atoms:
    """A triclinic cell of two atoms, smaller than the cutoff."""
    atoms = bulk("C", "diamond", a=3.57)
    atoms.rattle(0.1, seed=2)
    return atoms


def slab() -> Atoms:
    """Periodic in two directions, its atoms not wrapped."""
    atoms = crystal() * (2, 1, 1)
    atoms.pbc = (True, True, False)
    atoms.positions[0] += 3 * atoms.cell[0]
    return atoms


STRUCTURES = {
    "molecule": ethanol,
    "charged": charged,
    "crystal": crystal,
    "slab": slab,
    "atom": lambda: Atoms("O"),
}


def agree(found: dict[str, Any], expected: dict[str, Any], dtype: str = "float32") -> None:
    largest, rms = BOUNDS[dtype]
    error = found["forces"] - expected["forces"]
    assert np.abs(error).max() <= largest
    assert np.sqrt(np.mean(error**2)) <= rms
    assert abs(found["energy"] - expected["energy"]) / len(error) <= 1e-5
    assert set(found) == set(expected)
    if "stress" in expected:
        np.testing.assert_allclose(found["stress"], expected["stress"], atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", STRUCTURES)
def test_ase(kind: str, dtype: str, potential: Potential) -> None:
    atoms = STRUCTURES[kind]()
    expected = TensorNetCalculator(potential, backend="reference", dtype="float64")
    atoms.calc = TensorNetCalculator(potential, backend="fused", dtype=dtype)
    forces, reference = atoms.get_forces(), expected.evaluate([atoms])[0]
    np.testing.assert_array_equal(forces, atoms.calc.results["forces"])
    agree(atoms.calc.results, reference, dtype)
    if kind != "atom":
        assert 0.03 < np.abs(forces).max() < 50  # the bounds mean something


def test_batch(potential: Potential) -> None:
    structures = [make() for make in STRUCTURES.values()]
    calculator = TensorNetCalculator(potential, backend="fused")
    reference = TensorNetCalculator(potential, backend="reference")
    batch = calculator.evaluate(structures)
    for atoms, found, expected in zip(
        structures, batch, reference.evaluate(structures), strict=True
    ):
        agree(found, expected)
        calculator.calculate(atoms)
        alone = calculator.results
        np.testing.assert_allclose(found["forces"], alone["forces"], atol=1e-12)
        np.testing.assert_allclose(found["energy"], alone["energy"], rtol=1e-12)


@pytest.mark.parametrize("options", [{"zbl": 3.0}, {"head": "gated"}, {"head": "linear"}])
def test_other_potentials(options: dict[str, Any]) -> None:
    potential = toy(**options)
    structures = [ethanol(), crystal()]
    fused, reference = (
        TensorNetCalculator(potential, backend=backend).evaluate(structures)
        for backend in ("fused", "reference")
    )
    for found, expected in zip(fused, reference, strict=True):
        agree(found, expected)


def test_foreign_units() -> None:
    potential = toy(length_unit="bohr", energy_unit="kcal/mol", cutoff=8.5)
    expected = TensorNetCalculator(potential, backend="reference", dtype="float64")
    found = TensorNetCalculator(potential, backend="fused").evaluate([ethanol()])[0]
    agree(found, expected.evaluate([ethanol()])[0])


def test_committee(tmp_path: Path) -> None:
    paths = []
    for seed in range(2):
        paths.append(tmp_path / f"{seed}.safetensors")
        save_potential(toy(seed), paths[-1])
    atoms = ethanol()
    atoms.calc = TensorNetCalculator(paths)
    atoms.get_forces()
    assert atoms.calc.info()["engine"] == "fused CPU kernels"
    assert len(atoms.calc.info()["tables"]) == 2
    expected = TensorNetCalculator(paths, backend="reference").evaluate([atoms])[0]
    agree(atoms.calc.results, expected)
    np.testing.assert_allclose(atoms.calc.results["forces_std"], expected["forces_std"], atol=1e-4)
    assert atoms.calc.neighbors.builds == 1  # one search for both


def test_hessian_is_the_networks(potential: Potential) -> None:
    fused, reference = (
        TensorNetCalculator(potential, backend=backend).get_hessian(ethanol())
        for backend in ("fused", "reference")
    )
    np.testing.assert_array_equal(fused, reference)


# Which one runs


def test_auto(potential: Potential) -> None:
    info = TensorNetCalculator(potential).info()
    assert (info["engine"], info["why_not_fused"]) == ("fused CPU kernels", None)
    assert info["tables"][0]["error_ev_per_angstrom"] < 2e-5
    info = TensorNetCalculator(potential, dtype="float64").info()
    assert info["engine"] == "TorchScript"
    assert "float64" in info["why_not_fused"]


def test_only_the_very_classes_are_fused() -> None:
    class Other(TensorNet):
        pass

    other = Potential(Other(channels=8, max_number=10), EnergyReadout(8), elements=[1, 6, 8])
    info = PotentialCalculator(other).info()
    assert info["engine"] == "TorchScript"
    assert info["why_not_fused"] == "there are no fused kernels for Other"
    with pytest.raises(ValueError, match="no fused kernels for Other; or take backend='ref"):
        PotentialCalculator(other, backend="fused")
    with pytest.raises(ValueError, match="no fused kernels for Other"):
        compile_potential(other, "fused")


def test_a_tabulated_potential_has_no_networks_to_fuse(potential: Potential) -> None:
    info = TensorNetCalculator(tabulated(potential), dtype="float32").info()
    assert info["engine"] == "TorchScript"
    assert "has tables already" in info["why_not_fused"]


def test_without_numba(monkeypatch: pytest.MonkeyPatch, potential: Potential) -> None:
    real = kernels.importlib.util.find_spec
    monkeypatch.setattr(
        kernels.importlib.util, "find_spec", lambda name: None if name == "numba" else real(name)
    )
    calculator = TensorNetCalculator(potential)
    expected = TensorNetCalculator(potential, backend="reference").evaluate([ethanol()])[0]
    forces = calculator.evaluate([ethanol()])[0]["forces"]
    # In float32 products of matrices round by the alignment of their memory.
    np.testing.assert_allclose(forces, expected["forces"], rtol=0, atol=1e-6)
    assert calculator.info()["engine"] == "TorchScript"
    assert calculator.info()["why_not_fused"] == "numba is not installed: pip install numba"
    with pytest.raises(ValueError, match="pip install numba; or take backend='reference'") as e:
        TensorNetCalculator(potential, backend="fused")
    assert "\n" not in str(e.value)


def warns_first(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of torch 2.10 and newer, whose warning has had two categories."""

    def deprecated(*args: Any, **kwargs: Any) -> Any:
        for category in (DeprecationWarning, FutureWarning):
            message = "`torch.jit.script` is deprecated. Please switch to `torch.compile`."
            warnings.warn(message, category, stacklevel=1)
        warnings.warn("another warning", FutureWarning, stacklevel=1)
        return function(*args, **kwargs)

    return deprecated


@pytest.mark.parametrize("backend", ["reference", "fused"])
def test_no_warning_that_torchscript_is_deprecated(
    backend: str, monkeypatch: pytest.MonkeyPatch, potential: Potential, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.jit, "script", warns_first(torch.jit.script))
    monkeypatch.setattr(torch.func, "jvp", warns_first(torch.func.jvp))
    filters = list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compile_potential(copy.deepcopy(potential).float(), backend)
        if backend == "reference":
            export_torchscript(potential, tmp_path / "model.pt")
    assert caught
    assert {str(each.message) for each in caught} == {"another warning"}
    assert warnings.filters == filters
    with pytest.warns(FutureWarning, match="is deprecated"):  # the user's own call
        torch.jit.script(torch.nn.Identity())


def test_other_threads_keep_their_filters_while_one_compiles() -> None:
    with warnings.catch_warnings():
        warnings.resetwarnings()
        with compiling():
            thread = threading.Thread(target=warnings.simplefilter, args=("error", UserWarning))
            thread.start()
            thread.join()
        with pytest.raises(UserWarning, match="of the other thread"):
            warnings.warn("of the other thread", UserWarning, stacklevel=1)
        with compiling():
            warnings.resetwarnings()
        assert list(warnings.filters) == []


# The same bits


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_number_of_threads_and_repetition(dtype: str, potential: Potential) -> None:
    atoms = crystal() * (4, 3, 3)
    atoms.rattle(0.05, seed=3)
    calculator = TensorNetCalculator(potential, backend="fused", dtype=dtype)
    first = forces_of(calculator, atoms)
    for threads in (1, 2, 1, 2):
        torch.set_num_threads(threads)
        np.testing.assert_array_equal(forces_of(calculator, atoms), first)
        again = TensorNetCalculator(potential, backend="fused", dtype=dtype)
        np.testing.assert_array_equal(forces_of(again, atoms), first)


def test_reused_neighbours_and_other_structures_between(potential: Potential) -> None:
    atoms = ethanol()
    calculator = TensorNetCalculator(potential, backend="fused")
    generator = np.random.default_rng(0)
    for k in range(6):
        atoms.positions += generator.normal(scale=0.03, size=atoms.positions.shape)
        found = forces_of(calculator, atoms)
        fresh = TensorNetCalculator(calculator.potential, backend="fused", skin=0.0)
        np.testing.assert_array_equal(found, forces_of(fresh, atoms))
        if k % 2:
            calculator.calculate(crystal())
            calculator.calculate(charged())


def test_results_are_the_callers_own(potential: Potential) -> None:
    atoms = ethanol()
    calculator = TensorNetCalculator(potential, backend="fused")
    calculator.calculate(atoms)
    results, before = calculator.results, copy.deepcopy(calculator.results)
    positions = atoms.positions.copy()
    atoms.rattle(0.1, seed=4)
    calculator.calculate(atoms)
    for name, value in before.items():
        np.testing.assert_array_equal(results[name], value)
    results["forces"][:] = 0
    atoms.positions[:] = positions  # in place: it is noticed
    np.testing.assert_array_equal(calculator.get_forces(atoms), before["forces"])
    np.testing.assert_array_equal(atoms.positions, positions)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies(copier: Callable[[Any], Any], potential: Potential) -> None:
    calculator = TensorNetCalculator(potential, backend="fused")
    expected = forces_of(calculator, ethanol())
    np.testing.assert_array_equal(forces_of(copier(calculator), ethanol()), expected)
    fused = copier(compile_potential(potential.float(), "fused"))
    graph = calculator.neighbors.graph(ethanol().numbers, ethanol().positions)
    np.testing.assert_array_equal(fused(graph).forces.numpy(), expected)


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_other_processes(method: str, potential: Potential) -> None:
    """Threads of the kernels do not survive a fork; the child must not wait for them."""
    if method == "fork" and not hasattr(os, "fork"):
        pytest.skip("this platform cannot fork")
    calculator = TensorNetCalculator(potential, backend="fused")
    atoms = crystal() * (3, 2, 2)
    expected = forces_of(calculator, atoms)
    context = get_context(method)
    queue = context.Queue()
    process = context.Process(target=send_forces, args=(queue, calculator, atoms))
    process.start()
    found = queue.get(timeout=240)
    process.join(30)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.usefixtures("two_threads")
def test_two_calculators_in_two_threads(potential: Potential) -> None:
    structures = [ethanol(), crystal() * (2, 2, 2)]
    calculators = [TensorNetCalculator(potential, backend="fused") for _ in structures]
    expected = [forces_of(*each) for each in zip(calculators, structures, strict=True)]
    found: list[list[NDArray[np.float64]]] = [[], []]

    def work(k: int) -> None:
        for _ in range(100):
            found[k].append(forces_of(calculators[k], structures[k]))

    threads = [threading.Thread(target=work, args=(k,)) for k in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in (0, 1):
        assert len(found[k]) == 100
        for forces in found[k]:
            np.testing.assert_array_equal(forces, expected[k])


def test_memory_does_not_grow(potential: Potential) -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("resident memory is read from /proc, which is not there")

    def resident_mb() -> float:
        gc.collect()
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmRSS"))
        return float(line.split()[1]) / 1024

    atoms = ethanol()
    calculator = TensorNetCalculator(potential, backend="fused")
    generator, start, before = np.random.default_rng(0), atoms.positions.copy(), 0.0
    for k in range(3300):
        atoms.positions = start + generator.normal(scale=0.3, size=start.shape)
        calculator.calculate(atoms)
        if k == 300:
            before = resident_mb()
    assert calculator.neighbors.builds > 1000  # lists change size
    assert resident_mb() - before < 10


# The operator


def operands(atoms: Atoms, potential: torch.nn.Module) -> tuple[torch.Tensor, ...]:
    return (
        operator.model_tensor(potential),
        torch.tensor(atoms.numbers),
        torch.tensor(atoms.positions),
        torch.tensor(atoms.cell.array),
        torch.tensor(atoms.pbc),
        torch.tensor([float(atoms.info.get("charge", 0))], dtype=torch.float64),
    )


@pytest.mark.parametrize("kind", STRUCTURES)
def test_operator(kind: str, potential: Potential) -> None:
    atoms = STRUCTURES[kind]()
    given = operands(atoms, potential.float())
    copies = [tensor.clone() for tensor in given]
    expected = TensorNetCalculator(potential).evaluate([atoms])[0]
    for _ in range(2):
        energy, forces = torch.ops.tensormd.evaluate(*given)
        assert energy.dtype == forces.dtype == torch.float64
        np.testing.assert_array_equal(forces.numpy(), expected["forces"])
        assert float(energy) == expected["energy"]
    assert all(torch.equal(a, b) for a, b in zip(given, copies, strict=True))


def call(
    model: torch.Tensor,
    numbers: torch.Tensor,
    positions: torch.Tensor,
    cell: torch.Tensor,
    pbc: torch.Tensor,
    charge: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    energy, forces = torch.ops.tensormd.evaluate(model, numbers, positions, cell, pbc, charge)
    return 2 * energy, forces.sin()


@pytest.mark.parametrize(
    "compile_function",
    [
        lambda f: torch.jit.script(f),
        lambda f: torch.compile(f, backend="aot_eager", fullgraph=True),
    ],
    ids=["script", "compile"],
)
def test_operator_in_compiled_functions(
    compile_function: Callable[[Any], Any], potential: Potential
) -> None:
    given = operands(ethanol(), potential.float())
    expected = call(*given)
    found = compile_function(call)(*given)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_operator_sees_what_is_written_to_its_tensors(potential: Potential) -> None:
    given = operands(ethanol(), potential.float())
    neutral, _ = torch.ops.tensormd.evaluate(*given)
    given[5][0] = 1
    cation, _ = torch.ops.tensormd.evaluate(*given)
    expected = TensorNetCalculator(potential, charge=1).evaluate([ethanol()])[0]["energy"]
    assert float(cation) == expected != float(neutral)
    given[1][0] = 7
    changed, _ = torch.ops.tensormd.evaluate(*given)
    atoms = ethanol()
    atoms.numbers[0] = 7
    assert (
        float(changed) == TensorNetCalculator(potential, charge=1).evaluate([atoms])[0]["energy"]
    )
    given[0].copy_(operator.model_tensor(toy(5).float())[: len(given[0])])
    other, _ = torch.ops.tensormd.evaluate(*given)
    assert float(other) != float(changed)


def test_operator_keeps_few_models_and_forgets_none_in_use(potential: Potential) -> None:
    atoms, model = ethanol(), operator.model_tensor(potential.float())
    expected = TensorNetCalculator(potential).evaluate([atoms])[0]["energy"]
    for _ in range(2 * operator.MOST_SYSTEMS):
        energy, _ = torch.ops.tensormd.evaluate(model, *operands(atoms, potential)[1:])
        assert float(energy) == expected
    assert len(operator._systems) <= operator.MOST_SYSTEMS
    monitored = [operator.model_tensor(potential) for _ in range(operator.MOST_MODELS + 1)]
    for copy_of_model in monitored:
        torch.ops.tensormd.evaluate(copy_of_model, *operands(Atoms("H"), potential)[1:])
    assert len(operator._models) == operator.MOST_MODELS
    assert {key[0] for key in operator._systems} <= set(operator._models)


def test_operator_with_gradients_inside(
    monkeypatch: pytest.MonkeyPatch, potential: Potential
) -> None:
    """Plain operators and the repulsion differentiate, also below the dispatcher."""
    repelling = toy(zbl=3.0).float()
    expected = TensorNetCalculator(repelling, backend="reference").evaluate([ethanol()])[0]
    with torch.no_grad():
        energy, forces = torch.ops.tensormd.evaluate(*operands(ethanol(), repelling))
    assert np.abs(forces.numpy() - expected["forces"]).max() <= 1e-4
    monkeypatch.setattr(operator, "_backend_for", lambda potential: "reference")
    energy, forces = torch.ops.tensormd.evaluate(*operands(ethanol(), repelling))
    np.testing.assert_allclose(forces.numpy(), expected["forces"], atol=1e-5)
    assert float(energy) == pytest.approx(expected["energy"], abs=1e-6)


def test_operator_and_impossible_structures(potential: Potential) -> None:
    given = list(operands(ethanol(), potential.float()))
    given[2][3, 1] = torch.inf
    energy, forces = torch.ops.tensormd.evaluate(*given)
    assert torch.isnan(energy)
    assert torch.isnan(forces).all()
    xenon = operands(Atoms("Xe"), potential)
    with pytest.raises(ValueError, match="does not know Xe"):
        torch.ops.tensormd.evaluate(*xenon)
    with pytest.raises(ValueError, match="model"):
        torch.ops.tensormd.evaluate(given[0][:100], *operands(ethanol(), potential)[1:])


# OpenMM

OPENMM_ENGINES = [
    pytest.param(name, marks=pytest.mark.skipif(problem is not None, reason=str(problem)))
    for name, problem in {
        "torchforce": engines.torchforce_problem(),
        "python": engines.python_problem(),
    }.items()
]


def openmm_system(atoms: Atoms, force: Any) -> Any:
    import openmm

    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    if atoms.pbc.any():
        system.setDefaultPeriodicBoxVectors(*(atoms.cell.array / nm_in_angstrom))
    system.addForce(force)
    return system


def openmm_results(system: Any, atoms: Atoms) -> dict[str, Any]:
    """Energy (eV) and forces (eV/A) from OpenMM."""
    import openmm

    context = openmm.Context(
        system, openmm.VerletIntegrator(5e-4), openmm.Platform.getPlatformByName("Reference")
    )
    context.setPositions(atoms.positions / nm_in_angstrom)
    state = context.getState(getEnergy=True, getForces=True)
    forces = np.array(state.getForces(asNumpy=True)._value)
    return {
        "energy": state.getPotentialEnergy()._value * kj_per_mol_in_ev,
        "forces": forces * kj_per_mol_in_ev / nm_in_angstrom,
    }


def bare(results: dict[str, Any]) -> dict[str, Any]:
    return {name: results[name] for name in ("energy", "forces")}


def box() -> Atoms:
    atoms = bulk("C", "diamond", a=3.6, cubic=True)
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("engine", OPENMM_ENGINES)
def test_openmm(engine: str, dtype: str, members: int) -> None:
    potential = toy() if members == 1 else Committee([toy(seed) for seed in range(members)])
    for atoms in (ethanol(), box()):
        force = create_force(
            potential,
            atoms.numbers,
            engine=engine,
            dtype=dtype,
            backend="fused",
            periodic=bool(atoms.pbc.all()),
        )
        calculator = TensorNetCalculator(potential, backend="reference", dtype="float64")
        expected = bare(calculator.evaluate([atoms])[0])
        agree(openmm_results(openmm_system(atoms, force), atoms), expected, dtype)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("engine", OPENMM_ENGINES)
def test_openmm_backend_is_what_was_asked_for(
    engine: str, backend: str, potential: Potential, caplog: pytest.LogCaptureFixture
) -> None:
    atoms = ethanol()
    with caplog.at_level(logging.INFO):
        force = create_force(potential, atoms.numbers, engine=engine, backend=backend)
    if engine == "torchforce":
        plain = "runs plain torch operators: backend is 'reference'" in caplog.text
        assert plain == (backend == "reference")
    found = openmm_results(openmm_system(atoms, force), atoms)
    expected = TensorNetCalculator(potential, backend=backend).evaluate([atoms])[0]
    # What differs otherwise is far below a table's error: the last digits of nm.
    assert np.abs(found["forces"] - expected["forces"]).max() <= 1e-5


@pytest.mark.skipif(engines.torchforce_problem() is not None, reason="TorchForce does not run")
@pytest.mark.parametrize("members", [1, 2])
def test_xml_in_another_process(members: int, tmp_path: Path) -> None:
    import openmm

    potential = toy() if members == 1 else Committee([toy(seed) for seed in range(members)])
    atoms = ethanol()
    system = openmm_system(atoms, create_force(potential, atoms.numbers, engine="torchforce"))
    text = openmm.XmlSerializer.serialize(system)
    here = openmm_results(openmm.XmlSerializer.deserialize(text), atoms)
    np.testing.assert_array_equal(here["forces"], openmm_results(system, atoms)["forces"])
    assert np.abs(here["forces"]).max() > 0.1
    (tmp_path / "system.xml").write_text(text)
    np.save(tmp_path / "positions.npy", atoms.positions / nm_in_angstrom)
    code = """
import numpy as np, torch, openmm, openmmtorch, sys
if sys.argv[1] == "with":
    import tensormd.calculators
system = openmm.XmlSerializer.deserialize(open("system.xml").read())
context = openmm.Context(system, openmm.VerletIntegrator(5e-4),
                         openmm.Platform.getPlatformByName("Reference"))
context.setPositions(np.load("positions.npy"))
forces = context.getState(getForces=True).getForces(asNumpy=True)._value
np.save("forces.npy", np.array(forces))
"""
    for registered in ("with", "without"):
        done = subprocess.run(
            [sys.executable, "-c", code, registered],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        if registered == "without":
            assert done.returncode != 0
            assert "tensormd::evaluate" in done.stderr
            continue
        assert done.returncode == 0, done.stderr
        there = np.load(tmp_path / "forces.npy") * kj_per_mol_in_ev / nm_in_angstrom
        np.testing.assert_array_equal(there, here["forces"])


# What was compiled, and where it is kept


def test_a_changed_source_is_compiled_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = Path(compiled.__file__).parent
    for file in sources.glob("*.py"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(compiled, "__file__", str(tmp_path / "compiled.py"))
    digest = compiled.sources_digest.__wrapped__
    same = digest()
    assert same == compiled.sources_digest()
    with (tmp_path / "simd.py").open("a") as file:
        file.write("\n# changed\n")
    assert digest() != same


def test_each_processor_has_its_own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    from llvmlite import binding

    digest = compiled.sources_digest.__wrapped__
    same = digest()
    assert same == digest()
    with monkeypatch.context() as patch:
        patch.setattr(binding, "get_host_cpu_name", lambda: "another-processor")
        other_name = digest()
    with monkeypatch.context() as patch:
        patch.setattr(binding, "get_host_cpu_features", lambda: binding.FeatureMap(sse=True))
        other_features = digest()
    with monkeypatch.context() as patch:
        patch.setattr(compiled.numba.config, "CPU_NAME", "generic")
        asked_for = digest()
    assert len({same, other_name, other_features, asked_for}) == 4
    assert digest() == same


def test_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "a_file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("TENSORMD_CACHE", str(blocked))
    with caplog.at_level(logging.WARNING):
        folder = compiled.folder.__wrapped__()
    assert folder.is_dir()
    assert blocked not in folder.parents
    assert f"cannot be kept in {blocked}" in caplog.text


def test_first_compilation_is_announced(tmp_path: Path) -> None:
    """In a plain script too, which has not set up logging."""
    code = """
import numba
from tensormd.models.inference.kernels.cpu.compiled import kernel
def twice(x):
    return 2 * x
print(kernel(twice, threads=False)(3))
"""
    (tmp_path / "script.py").write_text(code)
    environment = {**os.environ, "TENSORMD_CACHE": str(tmp_path / "kernels")}
    errors = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "script.py"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=True,
        )
        assert done.stdout == "6\n"
        errors.append(done.stderr.strip())
    assert errors[0].startswith("tensormd compiles its kernels")
    assert str(tmp_path / "kernels") in errors[0]
    assert len(errors[0].splitlines()) == 1
    assert errors[1] == ""
