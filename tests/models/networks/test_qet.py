"""QET: derivatives, symmetries, charges, the cutoff, and what it shares with other networks."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from support.helpers import (
    CUTOFF,
    System,
    crystal,
    ethanol,
    numerical_forces,
    numerical_hessian,
    numerical_virial,
    predict,
    predict_batch,
    relative_error,
    rotation,
    slab,
    supercell,
    tiny,
)
from support.qet import make_qet
from support.training_frames import labelled, water

from tensormd.calculators import TensorNetCalculator
from tensormd.models import (
    QET,
    EnergyReadout,
    Potential,
    export_torchscript,
    load_potential,
    save_potential,
)
from tensormd.models.analysis.pruning import projected
from tensormd.models.graph import within
from tensormd.models.inference.hessian import hessian
from tensormd.models.inference.kernels import fused_problem
from tensormd.models.training import TrainingSettings, train

VARIANTS: dict[str, dict[str, Any]] = {
    "element": {},
    "surroundings": {"hardness": "surroundings", "trainable_widths": True, "layers": 1},
    "SO(3)": {"group": "SO(3)", "radial": "gauss", "layers": 1},
}
MOLECULES = {"cation": ethanol(charge=1.0), "anion": ethanol(charge=-1.0)}
CELLS = {"crystal": crystal(charge=1.0), "slab": slab(), "1-atom-cell": tiny(1)}


@functools.cache
def model(name: str) -> Potential:
    return make_qet(**VARIANTS[name])


def charges(potential: Potential, system: System) -> torch.Tensor:
    near, vectors = within(system.graph(potential.cutoff), potential.cutoff)
    return potential.properties(near, vectors)["charges"].detach()


@pytest.mark.parametrize("kind", [*MOLECULES, *CELLS])
@pytest.mark.parametrize("name", VARIANTS)
def test_forces_and_virial_are_derivatives(name: str, kind: str) -> None:
    potential, system = model(name), (MOLECULES | CELLS)[kind]
    prediction = predict(potential, system)
    virial = prediction.virial[0]
    assert relative_error(numerical_virial(potential, system), virial) < 1e-7
    if len(system.numbers) > 1:
        assert prediction.forces.abs().max() > 0.03
        assert relative_error(numerical_forces(potential, system), prediction.forces) < 1e-7
    assert prediction.forces.sum(0).abs().max() < 1e-10


def test_hessian_is_the_gradient_of_the_forces() -> None:
    potential, system = model("element"), MOLECULES["anion"]
    matrix = hessian(potential.total_energy, system.graph(potential.cutoff))
    assert relative_error(numerical_hessian(potential, system), matrix) < 1e-7


@pytest.mark.parametrize("name", VARIANTS)
def test_rotation_translation_permutation_inversion(name: str) -> None:
    potential, system, q = model(name), MOLECULES["anion"], rotation()
    prediction, found = predict(potential, system), charges(potential, system)
    rotated = system.moved(system.positions @ q.T + 100.0)
    turned = predict(potential, rotated)
    assert abs(turned.energy - prediction.energy) < 1e-10
    assert (turned.forces - prediction.forces @ torch.from_numpy(q.T)).abs().max() < 1e-10
    assert (charges(potential, rotated) - found).abs().max() < 1e-11
    order = np.random.default_rng(0).permutation(len(system.numbers))
    moved = system._replace(numbers=system.numbers[order], positions=system.positions[order])
    assert (predict(potential, moved).forces - prediction.forces[order]).abs().max() < 1e-10
    mirrored = predict(potential, system.moved(-system.positions))
    change = abs(mirrored.energy - prediction.energy).item()
    assert (change > 1e-4) if name == "SO(3)" else (change < 1e-10)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("total", [-1.0, 0.0, 2.0])
def test_charges_sum_to_the_total_and_minimise_their_energy(name: str, total: float) -> None:
    potential, system = model(name), ethanol(charge=total)
    found = charges(potential, system)
    assert abs(found.sum().item() - total) < 1e-11
    assert found.std() > 0.02
    network, seen = potential.representation, []
    assert isinstance(network, QET)
    hook = network.linear.register_forward_hook(lambda *given: seen.append(given[2]))
    predict(potential, system)
    hook.remove()
    chi = network.electronegativity(seen[0])[:, 0]
    eta = network.hardness(seen[0], torch.from_numpy(system.numbers))
    # At the minimum of sum chi q + eta q^2 / 2 under the constraint, all derivatives are equal.
    slope = (chi + eta * found).detach()
    assert slope.std() < 1e-10
    assert chi.std() > 1e-3


def test_supercell_and_batch() -> None:
    potential = model("element")
    for system in (crystal(charge=1.0), tiny(1), tiny(2)):
        one = predict(potential, system)
        four = predict(potential, supercell(system, (2, 1, 2))._replace(charge=4 * system.charge))
        assert four.energy.item() == pytest.approx(4 * one.energy.item(), abs=1e-9)
        assert (four.forces[: len(system.numbers)] - one.forces).abs().max() < 1e-9
    systems = [*MOLECULES.values(), crystal(charge=1.0)]
    together = predict_batch(potential, systems)
    alone = [predict(potential, system) for system in systems]
    assert (together.energy - torch.cat([p.energy for p in alone])).abs().max() < 1e-10
    assert (together.forces - torch.cat([p.forces for p in alone])).abs().max() < 1e-10


@pytest.mark.parametrize("name", VARIANTS)
def test_nothing_jumps_at_the_cutoff(name: str) -> None:
    potential, base, found = model(name), ethanol(), []
    outermost = int(base.positions[:, 0].argmax())
    for gap in (-1e-5, 1e-5):
        guest = base.positions[outermost] + np.array([CUTOFF + gap, 0.0, 0.0])
        system = System(np.append(base.numbers, 6), np.vstack([base.positions, guest]))
        found.append(predict(potential, system))
    assert abs(found[0].energy - found[1].energy) < 1e-6
    assert (found[0].forces - found[1].forces).abs().max() < 1e-4


@pytest.mark.parametrize("name", VARIANTS)
def test_files_scripts_and_calculators(name: str, tmp_path: Path) -> None:
    potential, system = model(name), MOLECULES["cation"]
    save_potential(potential, tmp_path / "qet.safetensors")
    loaded = load_potential(tmp_path / "qet.safetensors")
    assert loaded.architecture == "QET"
    for key, tensor in potential.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[key]), key
    expected = predict(potential, system)
    scripted = predict(torch.jit.script(loaded), system)
    assert (scripted.forces - expected.forces).abs().max() < 1e-11
    export_torchscript(loaded, tmp_path / "qet.pt")
    assert fused_problem(potential) == "there are no fused kernels for QET"
    atoms = Atoms(system.numbers, system.positions, info={"charge": 1})
    atoms.calc = TensorNetCalculator(tmp_path / "qet.safetensors", dtype="float64")
    np.testing.assert_allclose(atoms.get_forces(), expected.forces, atol=1e-10)
    np.testing.assert_allclose(
        atoms.calc.get_property("charges", atoms), charges(potential, system), atol=1e-10
    )


@pytest.mark.parametrize("backend", ["plain", pytest.param("compiled", marks=pytest.mark.slow)])
def test_training(backend: str) -> None:
    frames = labelled([water(k) for k in range(6)])
    settings = TrainingSettings(epochs=3, batch=3, learning_rate=1e-2, backend=backend)
    start = make_qet(layers=1, cutoff=4.0, channels=8).float()
    before = {name: value.clone() for name, value in start.named_parameters()}
    progress: list[Any] = []
    train(start, frames, frames, settings, tell=progress.append)
    assert progress[-1].compiled == (backend == "compiled")
    for name, value in start.named_parameters():
        assert torch.isfinite(value).all()
        assert not torch.equal(value, before[name]), name


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="unknown hardness 'both': expected one of element"):
        QET(hardness="both")
    with pytest.raises(ValueError, match="max_number is 500: expected at most 1"):
        QET(max_number=500)
    with pytest.raises(ValueError, match="has none to choose from"):
        QET().new_readout("mlp")
    with pytest.raises(ValueError, match="is a EnergyReadout: expected a GatedReadout"):
        Potential(QET(), EnergyReadout(64), elements=[1])
    with pytest.raises(ValueError, match="QET has no orders to remove"):
        projected(model("element"), "IS")
