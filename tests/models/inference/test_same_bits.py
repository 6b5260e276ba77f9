"""Fused kernels give the same bits for any number of threads, in copies and other processes."""

from __future__ import annotations

import copy
import gc
import itertools
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.backend_cases import charged, crystal, ethanol, toy
from support.processes import forces_of, send_forces

from tensormd.calculators import TensorNetCalculator
from tensormd.models import (
    Potential,
)
from tensormd.models.inference import threads as threads_module
from tensormd.models.inference.backends import compile_potential
from tensormd.models.inference.threads import ThreadChoice

numba = pytest.importorskip("numba", reason="numba is not installed")


@pytest.fixture(scope="module")
def potential() -> Potential:
    return toy()


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
        again = TensorNetCalculator(potential, backend="fused", dtype=dtype)
        for each in (calculator, again):
            each.evaluator.members[0].threads = threads  # type: ignore[assignment]
            np.testing.assert_array_equal(forces_of(each, atoms), first)


@pytest.mark.usefixtures("two_threads")
def test_a_number_that_changes_while_steps_run(
    potential: Potential, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials of other numbers of threads, at any step, in the same and other neighbour lists."""
    monkeypatch.setattr(threads_module, "usable_cores", lambda: 2)
    numbers = itertools.cycle([1, 2, 2, 1, 2])
    monkeypatch.setattr(ThreadChoice, "threads", lambda self, limit: min(next(numbers), limit))
    atoms, numba_threads = crystal() * (2, 2, 2), numba.get_num_threads()
    changing, fixed = (TensorNetCalculator(potential, backend="fused") for _ in range(2))
    fixed.evaluator.members[0].threads = 1  # type: ignore[assignment]
    for k in range(10):
        atoms.rattle(0.1, seed=k)
        np.testing.assert_array_equal(forces_of(changing, atoms), forces_of(fixed, atoms))
    assert changing.neighbors.builds > 1
    assert (torch.get_num_threads(), numba.get_num_threads()) == (2, numba_threads)


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


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("threads", [1, 2])
def test_torch_keeps_its_number_of_threads(threads: int, potential: Potential) -> None:
    torch.set_num_threads(threads)
    TensorNetCalculator(potential, backend="fused").calculate(ethanol())
    assert torch.get_num_threads() == threads
