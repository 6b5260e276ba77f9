"""Many structures at once: several threads side by side, with the bits of one at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from support.helpers import make_potential

from tensormd.calculators import PotentialCalculator, evaluator
from tensormd.models import Committee
from tensormd.models.inference import threads


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(threads, "usable_cores", lambda: 3)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def structures() -> list[Atoms]:
    """Molecules, an ion, a single atom, and a crystal smaller than the cutoff."""
    found = []
    for k, name in enumerate(["CH3CH2OH", "C6H6", "H2O", "CH4", "NH3"] * 4):
        found.append(molecule(name))
        found[-1].rattle(0.05, seed=k)
    found[3].info["charge"] = 1
    found.insert(5, Atoms("O"))
    found.insert(7, bulk("C", "diamond", a=3.6, cubic=True))
    found[7].rattle(0.05, seed=1)
    return found


def assert_same_bits(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.parametrize("committee", [False, True])
@pytest.mark.filterwarnings("ignore:the charge is")
def test_threads_side_by_side(
    committee: bool, three_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    potential: Any = make_potential()
    if committee:
        potential = Committee([potential, make_potential(2, zbl=1.5)])
    calculator = PotentialCalculator(potential, backend="fused")
    frames = structures()
    alone = [calculator.evaluate([atoms])[0] for atoms in frames]
    seen = []
    evaluate = evaluator.Evaluator.evaluate

    def watched(self: Any, graph: Any) -> Any:
        seen.append((threading.current_thread().name, len(graph.numbers)))
        return evaluate(self, graph)

    monkeypatch.setattr(evaluator, "ATOMS_AT_ONCE", 20)
    monkeypatch.setattr(evaluator.Evaluator, "evaluate", watched)
    for ours, theirs in zip(calculator.evaluate(frames), alone, strict=True):
        assert np.abs(ours["forces"]).max() > 0.1 or len(ours["forces"]) == 1
        assert_same_bits(ours, theirs)
    assert sum(atoms for _, atoms in seen) == sum(map(len, frames))
    assert len(seen) >= 6
    assert threading.current_thread().name not in {name for name, _ in seen}
    assert torch.get_num_threads() == 3


def test_one_structure_begins_with_all_threads_if_it_is_large(
    three_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calculator = PotentialCalculator(make_potential(), backend="fused")
    (member,) = calculator.evaluator.members
    counts = []
    allocate = type(member).allocate

    def watched(self: Any, neighbors: Any, number: int, old: Any) -> Any:
        counts.append(number)
        return allocate(self, neighbors, number, old)

    monkeypatch.setattr(type(member), "allocate", watched)
    calculator.evaluate([molecule("CH3CH2OH")])
    assert counts == [1]
    calculator.evaluate([bulk("C", "diamond", a=3.6, cubic=True) * 2])
    assert counts[1:] == [3]
    calculator.evaluate([molecule("CH4")] * 3)
    assert counts[2:] == [1, 1, 1]
    assert "(64 atoms, not timed yet)" in calculator.info()["threads"]


@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_an_impossible_structure_is_told_of(backend: str, three_threads: None) -> None:
    calculator = PotentialCalculator(make_potential(), backend=backend)
    frames = structures()[:5]
    frames[4].positions[2] = frames[4].positions[1]
    with pytest.raises(ValueError, match=r"atoms 1 and 2 \(H, H\) are in one place"):
        calculator.evaluate([*frames, molecule("H2O")])


def test_the_reference_is_one_batch(three_threads: None) -> None:
    calculator = PotentialCalculator(make_potential(), backend="reference")
    assert len(calculator.evaluator.team(0.0)) == 1
    assert len(PotentialCalculator(make_potential()).evaluator.team(0.0)) == 3
