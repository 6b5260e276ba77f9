"""The training loop: it learns, it resumes exactly, it stops when it should."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from helpers import make_potential

from tensormd.calculators import TensorNetCalculator
from tensormd.models import EnergyReadout, Potential, TensorNet
from tensormd.models.training import (
    Frames,
    Progress,
    TrainingSettings,
    evaluate_errors,
    read_extxyz,
    read_rmd17,
    train,
)
from tensormd.models.units import kcal_per_mol_in_ev

CUTOFF = 4.5


def labelled(count: int) -> list[Atoms]:
    """Distorted waters labelled by a random potential."""
    teacher = TensorNetCalculator(make_potential(3, gain=1.3), dtype="float64")
    structures = []
    for seed in range(count):
        atoms = molecule("H2O")
        atoms.rattle(0.1, seed=seed)
        structures.append(atoms)
    for atoms, result in zip(structures, teacher.evaluate(structures), strict=True):
        atoms.calc = SinglePointCalculator(atoms, energy=result["energy"], forces=result["forces"])
    return structures


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "waters.extxyz"
    write(path, labelled(24))
    return path


@pytest.fixture
def frames(file: Path) -> Frames:
    return read_extxyz(file, CUTOFF)


def student(frames: Frames) -> Potential:
    torch.manual_seed(1)
    return Potential(
        TensorNet(channels=8, layers=1, radial_functions=8, cutoff=CUTOFF, max_number=9),
        EnergyReadout(8),
        elements=frames.elements,
        scale=float(torch.cat(frames.forces).square().mean().sqrt()),
        mean=float(frames.energies.mean()),
    )


SETTINGS = TrainingSettings(
    epochs=12, batch=4, learning_rate=5e-3, warm_up_steps=5, ema_decay=0.9, validate_every=3
)


def test_it_learns(frames: Frames) -> None:
    fit, held = frames.split([16, 8], seed=0)
    before = evaluate_errors(student(frames), held)
    seen: list[Progress] = []
    trained = train(student(frames), fit, held, SETTINGS, tell=seen.append)
    after = evaluate_errors(trained, held)
    assert [p.epoch for p in seen] == [3, 6, 9, 12]
    assert seen[-1].errors["energy"].mae == pytest.approx(after.energy_mev)
    assert seen[-1].errors["forces"].mae == pytest.approx(after.force_mev_per_angstrom)
    assert not trained.training
    assert after.force_mev_per_angstrom < 0.7 * before.force_mev_per_angstrom


def test_resumed_training_is_the_same_to_the_last_bit(frames: Frames, tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def kill(progress: Progress) -> None:
        if progress.epoch == 6:
            raise KilledError

    fit, held = frames.split([16, 8], seed=0)
    whole = train(student(frames), fit, held, SETTINGS)
    with pytest.raises(KilledError):
        train(student(frames), fit, held, SETTINGS, tmp_path / "state.pt", kill)
    resumed = train(student(frames), fit, held, SETTINGS, tmp_path / "state.pt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    with pytest.raises(ValueError, match="run with batch 4, not 8"):
        train(
            student(frames),
            fit,
            held,
            dataclasses.replace(SETTINGS, batch=8),
            tmp_path / "state.pt",
        )


def test_a_loss_that_is_no_number_stops(frames: Frames, tmp_path: Path) -> None:
    broken = student(frames)
    with torch.no_grad():
        broken.readout.norm.weight[0] = torch.nan
    with pytest.raises(FloatingPointError, match="epoch 1, step 1"):
        train(broken, frames, frames, SETTINGS, tmp_path / "state.pt")
    assert not (tmp_path / "state.pt").exists()


def test_rmd17_is_converted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = {
        "nuclear_charges": np.array([8, 1, 1], dtype=np.uint8),
        "coords": molecule("H2O").positions + rng.normal(scale=0.05, size=(5, 3, 3)),
        "energies": rng.normal(size=5),
        "forces": rng.normal(size=(5, 3, 3)),
    }
    np.savez(tmp_path / "a.npz", **data)
    frames = read_rmd17(tmp_path / "a.npz", CUTOFF)
    assert len(frames) == 5
    assert frames.elements == [1, 8]
    np.testing.assert_allclose(frames.energies, data["energies"] * kcal_per_mol_in_ev)
    np.testing.assert_allclose(frames.forces[4], data["forces"][4] * kcal_per_mol_in_ev)
    del data["forces"]
    np.savez(tmp_path / "b.npz", **data)
    with pytest.raises(ValueError, match="has no forces"):
        read_rmd17(tmp_path / "b.npz", CUTOFF)


def test_bad_labels(frames: Frames, tmp_path: Path) -> None:
    energies = frames.energies.clone()
    energies[7] = torch.nan
    with pytest.raises(ValueError, match=r"frame 7 .* energy that is not finite"):
        Frames(frames.graphs, energies, frames.forces)
    with pytest.raises(ValueError, match="frame 1 has 3 atoms but forces"):
        Frames(frames.graphs[:2], energies[:2], [frames.forces[0], frames.forces[1][:2]])
    write(tmp_path / "bare.extxyz", [*labelled(1), molecule("H2O")])
    with pytest.raises(ValueError, match=r"frame 1 .* no energy, no forces"):
        read_extxyz(tmp_path / "bare.extxyz", CUTOFF)
    with pytest.raises(ValueError, match="cannot be split"):
        frames.split([20, 20], seed=0)
    with pytest.raises(ValueError, match="expected 40, a batch"):
        train(student(frames), frames, frames, TrainingSettings(batch=40))
