"""Evaluations in forks of a process that has evaluated or trained with several threads."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys

import pytest
from support.paths import TESTS

FORKS = """
import logging, multiprocessing, os, sys
import numpy as np
import torch
from ase.build import molecule
from tensormd.calculators import TensorNetCalculator

backend, protected = sys.argv[1], sys.argv[2] == "protected"
if not protected:
    os.register_at_fork = lambda **_: None
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
torch.set_num_threads(2)
calculator = TensorNetCalculator("ethanol", backend=backend)
atoms = molecule("CH3CH2OH")
atoms.set_cell([5.0] * 3)
atoms.pbc = True
atoms = atoms * (2, 2, 2)
atoms.rattle(0.03, seed=1)


def forces(_):
    calculator.calculate(atoms)
    return torch.get_num_threads(), calculator.results["forces"]


expected = forces(None)[1]
torch.ones(1 << 20).exp()  # more than torch leaves to one thread
for _ in range(2):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        try:
            found = pool.map_async(forces, range(2)).get(timeout=float(sys.argv[3]))
        except multiprocessing.TimeoutError:
            pool.terminate()
            print("the children hang")
            sys.exit()
    for count, result in found:
        np.testing.assert_allclose(result, expected, atol=1e-5)
        print("child", count)
print("parent", torch.get_num_threads())
"""

TRAINED = """
import multiprocessing, sys
import numpy as np
import torch
from ase.build import molecule
from tensormd.calculators import PotentialCalculator
from tensormd.models import EnergyReadout, NeighborList, Potential, TensorNet
from tensormd.models.training import Frames, TrainingSettings, TrainingStep

torch.set_num_threads(2)
atoms = molecule("CH3CH2OH")
atoms.set_cell([5.0] * 3)
atoms.pbc = True
atoms = atoms * (2, 2, 2)
atoms.rattle(0.03, seed=1)
graph = NeighborList(4.5).graph(atoms.numbers, atoms.positions, atoms.cell.array, True)
frames = Frames([graph], [0.0], [np.ones_like(atoms.positions)])
torch.manual_seed(0)
network = TensorNet(channels=16, layers=1, radial_functions=8, cutoff=4.5, max_number=10)
potential = Potential(network, EnergyReadout(16), elements=[1, 6, 8])
TrainingStep(potential, TrainingSettings()).step(frames.batch([0]))


def forces(_):
    atoms.calc = PotentialCalculator(potential.eval(), backend=sys.argv[1])
    found = atoms.get_forces()
    torch.ones(1 << 22).exp()  # more than torch leaves to one thread
    return torch.get_num_threads(), found


with multiprocessing.get_context("fork").Pool(2) as pool:
    try:
        found = pool.map_async(forces, range(2)).get(timeout=180)
    except multiprocessing.TimeoutError:
        pool.terminate()
        print("the children hang")
        sys.exit()
expected = forces(None)[1]
for count, result in found:
    np.testing.assert_allclose(result, expected, atol=1e-5)
    print("child", count)
print("parent", torch.get_num_threads())
"""

NEW_CALCULATORS = """
import multiprocessing
import numpy as np
import torch
from support.processes import forces_of_new_calculators

backends = ["fused", "reference"]
torch.set_num_threads(2)
expected = forces_of_new_calculators(backends)[1]
for method in multiprocessing.get_all_start_methods():
    with multiprocessing.get_context(method).Pool(1) as pool:
        try:
            forces = pool.apply_async(forces_of_new_calculators, [backends]).get(timeout=300)[1]
        except multiprocessing.TimeoutError:
            pool.terminate()
            print("the children hang")
            break
    for ours, theirs in zip(forces, expected):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    print("child", method)
print("parent", torch.get_num_threads())
"""


def run(*arguments: str, script: str = FORKS) -> list[str]:
    """Lines of a process that evaluates with two threads and then in two pools of forks."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(sys.platform == "win32", reason="this platform cannot fork")
@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_fork_pools(backend: str) -> None:
    lines = run(backend, "protected", "180")  # the kernels may have to be compiled
    assert [line for line in lines if line.startswith(("child", "parent", "the"))] == [
        *["child 1"] * 4,
        "parent 2",
    ]
    assert sum("forked processes run torch with one thread" in line for line in lines) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="this platform cannot fork")
@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_forks_of_a_process_that_has_only_trained(backend: str) -> None:
    """Threads of the fused kernels, started first in a fork, must not wake those of torch."""
    assert run(backend, script=TRAINED) == ["child 1", "child 1", "parent 2"]


def test_children_that_make_calculators() -> None:
    """By each method of multiprocessing, after an evaluation in the parent, both backends."""
    lines = run(script=NEW_CALCULATORS)
    assert lines[-1] == "parent 2"
    methods = multiprocessing.get_all_start_methods()
    assert lines[:-1] == [f"child {method}" for method in methods]


@pytest.mark.skipif(sys.platform == "win32", reason="this platform cannot fork")
def test_without_protection_forks_hang() -> None:
    """The control: the same evaluation hangs if forks keep the number of threads."""
    assert run("reference", "unprotected", "5")[-1] == "the children hang"
