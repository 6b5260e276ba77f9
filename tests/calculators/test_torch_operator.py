"""The torch operator `tensormd::evaluate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from support.backend_cases import STRUCTURES, ethanol, toy

from tensormd.calculators import TensorNetCalculator
from tensormd.calculators import torch_operator as operator
from tensormd.models import (
    Potential,
)

pytest.importorskip("numba", reason="numba is not installed")


@pytest.fixture(scope="module")
def potential() -> Potential:
    return toy()


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
