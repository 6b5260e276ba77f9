"""The training loop: it learns, it resumes exactly, it stops when it should."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from support.helpers import make_potential

from tensormd.calculators import TensorNetCalculator
from tensormd.models import TDN, DipoleReadout, EnergyReadout, Potential, ScalarReadout, TensorNet
from tensormd.models.training import (
    BadLossError,
    Frames,
    Progress,
    TrainingSettings,
    TrainingStopped,
    evaluate_errors,
    quantity_errors,
    read_extxyz,
    read_rmd17,
    read_state,
    train,
)
from tensormd.models.training.compiled import CompiledFunction, Unfit
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
    epochs=12,
    batch=4,
    learning_rate=5e-3,
    warm_up_steps=5,
    ema_decay=0.9,
    validate_every=3,
    compile=False,
)


class KilledError(Exception):
    pass


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


def same(a: Potential, b: Potential) -> None:
    for name, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[name]), name


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_whatever_ends_a_run_it_goes_on_to_the_last_bit(
    frames: Frames, tmp_path: Path, how: str
) -> None:
    """With a state of its own in every part: plateau, early stopping, running losses, best."""
    settings = dataclasses.replace(
        SETTINGS, schedule="plateau", plateau_patience=0, early_stopping=50, keep="best",
        energy_loss_ema=0.3, force_loss_ema=0.5, keep_last_batch=True, validate_every=2,
    )  # fmt: skip
    fit, held = frames.split([15, 8], seed=0)
    state, ends = tmp_path / "state.pt", 17  # in the fifth epoch of four steps

    def step_done(epoch: int, step: int, steps: int, loss: float) -> None:
        assert (epoch, steps) == ((step - 1) // 4 + 1, 48)
        assert signal.getsignal(signal.SIGINT) is handler  # signals are the caller's
        if step == ends and how == "kill":
            raise KilledError

    seen: list[int] = []

    def stop() -> bool:
        seen.append(1)
        return how == "stop" and len(seen) == ends

    told: dict[bool, list[Progress]] = {True: [], False: []}
    whole = train(student(frames), fit, held, settings, tell=told[True].append)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KilledError if how == "kill" else TrainingStopped):
        train(
            student(frames), fit, held, settings, state, told[False].append,
            step_done=step_done, stop=stop,
        )  # fmt: skip
    assert read_state(state, settings)["steps_done"] == (16 if how == "kill" else ends)
    same(whole, train(student(frames), fit, held, settings, state, told[False].append))
    plain = [dataclasses.replace(p, seconds=0) for p in told[True]]
    assert plain == [dataclasses.replace(p, seconds=0) for p in told[False]]
    assert len({p.learning_rate for p in plain}) > 1


def test_dropout_resumes_to_the_last_bit(frames: Frames, tmp_path: Path) -> None:
    def network() -> Potential:
        torch.manual_seed(1)
        network = TDN(channels=4, layers=1, heads=2, radial_functions=4, max_number=9, dropout=0.5)
        return Potential(network, ScalarReadout(4), elements=frames.elements)

    def kill(epoch: int, step: int, *_: object) -> None:
        if step == 9:
            raise KilledError

    fit, held = frames.split([16, 8], seed=0)
    settings = dataclasses.replace(SETTINGS, epochs=3, validate_every=1)
    whole = train(network(), fit, held, settings)
    with pytest.raises(KilledError):
        train(network(), fit, held, settings, tmp_path / "a.pt", step_done=kill)
    torch.rand(7)
    same(whole, train(network(), fit, held, settings, tmp_path / "a.pt"))


def test_best_weights_and_early_stopping(frames: Frames) -> None:
    fit, held = frames.split([16, 8], seed=0)
    settings = dataclasses.replace(
        SETTINGS, epochs=40, learning_rate=0.3, schedule="constant", validate_every=1,
        early_stopping=3, keep="best", ema_decay=0.0,
    )  # fmt: skip
    seen: list[Progress] = []
    weights: list[dict[str, torch.Tensor]] = []

    def keep(progress: Progress, potential: Potential) -> None:
        assert progress is seen[-1]
        weights.append({k: v.clone() for k, v in potential.state_dict().items()})

    best = train(student(frames), fit, held, settings, tell=seen.append, keep=keep)
    losses = [p.validation_loss for p in seen]
    lowest = int(np.argmin(losses))
    assert len(seen) == lowest + 4 < 40
    assert [p.best for p in seen][lowest:] == [True, False, False, False]
    for name, value in best.state_dict().items():
        assert torch.equal(value, weights[lowest][name])
    errors = quantity_errors(best, held)
    assert errors == seen[lowest].errors
    last = train(
        student(frames), fit, held, dataclasses.replace(settings, keep="last"), tell=seen.append
    )
    assert not torch.equal(last.readout.norm.weight, best.readout.norm.weight)


def test_energies_alone(frames: Frames) -> None:
    unlabelled = Frames(frames.graphs, frames.energies)
    settings = dataclasses.replace(SETTINGS, force_weight=0.0, dtype="float64")
    fit, held = unlabelled.split([16, 8], seed=0)
    seen: list[Progress] = []
    trained = train(student(frames), fit, held, settings, tell=seen.append)
    assert trained.dtype == torch.float64
    assert list(seen[0].errors) == ["energy"]
    assert seen[-1].losses["energy"] < 0.8 * seen[0].losses["energy"]
    assert seen[-1].loss == pytest.approx(0.5 * seen[-1].losses["energy"])
    with pytest.raises(ValueError, match="training frames have no forces"):
        train(student(frames), fit, held, SETTINGS)


def test_the_dipole_is_learnt_beside_the_energy(frames: Frames) -> None:
    potential = student(frames)
    potential = Potential(
        potential.representation, potential.readout, elements=frames.elements,
        heads={"dipole": DipoleReadout(potential.representation)},
    )  # fmt: skip
    charges = {1: 0.4, 8: -0.8}
    dipoles = [
        sum(charges[int(z)] * r for z, r in zip(g.numbers, g.positions, strict=True))
        for g in frames.graphs
    ]
    labelled = Frames(frames.graphs, frames.energies, frames.forces, dipole=dipoles)
    fit, held = labelled.split([16, 8], seed=0)
    settings = dataclasses.replace(SETTINGS, dipole_weight=3.0, epochs=30, validate_every=5)
    seen: list[Progress] = []
    trained = train(potential, fit, held, settings, tell=seen.append)
    assert seen[-1].errors["dipole"].mae < 0.5 * seen[0].errors["dipole"].mae
    assert set(quantity_errors(trained, held)) == {"energy", "forces", "dipole"}
    alone = dataclasses.replace(settings, energy_weight=0.0, force_weight=0.0, epochs=5)
    train(trained, fit, held, alone, tell=seen.append)
    assert list(seen[-1].errors) == ["dipole"]
    with pytest.raises(ValueError, match="no head for the dipole"):
        train(student(frames), fit, held, settings)


def test_frozen_parameters_stay(frames: Frames) -> None:
    potential = student(frames)
    potential.representation.requires_grad_(False)
    before = {k: v.clone() for k, v in potential.representation.state_dict().items()}
    trained = train(potential, *frames.split([16, 8], seed=0), SETTINGS)
    for name, value in trained.representation.state_dict().items():
        assert torch.equal(value, before[name])
    assert not torch.equal(trained.readout.norm.bias, torch.zeros(24))


def test_a_loss_that_is_no_number_stops(frames: Frames, tmp_path: Path) -> None:
    state = tmp_path / "state.pt"

    def spoil(epoch: int, step: int, *_: object) -> None:
        if step == 14:
            with torch.no_grad():
                potential.readout.norm.weight[0] = torch.nan

    potential = student(frames)
    fit, held = frames.split([16, 8], seed=0)
    with pytest.raises(BadLossError, match="epoch 4, step 15, frames") as caught:
        train(potential, fit, held, SETTINGS, state, step_done=spoil)
    assert isinstance(caught.value, FloatingPointError)
    order = np.random.default_rng([0, 3]).permutation(16)
    assert caught.value.frames == order[8:12].tolist()
    saved = read_state(state, SETTINGS)
    assert saved["steps_done"] == 12
    assert all(torch.isfinite(v).all() for v in saved["potential"].values())


def test_states_that_are_none(frames: Frames, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"PK nonsense")
    with pytest.raises(ValueError, match="not a training state"):
        train(student(frames), frames, frames, SETTINGS, tmp_path / "a.pt")


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
    potential = student(frames)
    potential.elements = [1, 6]
    with pytest.raises(ValueError, match="atomic number 8: the potential knows 1, 6"):
        train(potential, frames, frames, SETTINGS)
    with pytest.raises(ValueError, match="expected 40, a batch"):
        train(student(frames), frames, frames, TrainingSettings(batch=40))


def test_validations_within_epochs_are_exact_on_resume(frames: Frames, tmp_path: Path) -> None:
    """Four steps an epoch, and a validation every three of them."""
    settings = dataclasses.replace(SETTINGS, epochs=5, validate_every=0.75)
    fit, held = frames.split([16, 8], seed=0)
    told: dict[bool, list[Progress]] = {True: [], False: []}
    steps: list[float] = []
    whole = train(
        student(frames), fit, held, settings, tell=told[True].append,
        step_done=lambda *done: steps.append(done[3]),
    )  # fmt: skip
    assert [p.step for p in told[True]] == [3, 6, 9, 12, 15, 18, 20]
    assert [p.epoch for p in told[True]] == [0.75, 1.5, 2.25, 3, 3.75, 4.5, 5]
    # The mean since the epoch or a later validation began, whose steps these are:
    since = [steps[0:3], steps[4:6], steps[8:9], steps[9:12], steps[12:15], steps[16:18],
             steps[18:20]]  # fmt: skip
    np.testing.assert_allclose([p.loss for p in told[True]], [np.mean(part) for part in since])
    for ends in (6, 8):  # before a validation within an epoch, and at the end of an epoch
        state, left = tmp_path / f"{ends}.pt", iter(range(1, 99))
        told[False].clear()
        with pytest.raises(TrainingStopped):
            train(
                student(frames), fit, held, settings, state, told[False].append,
                stop=lambda at=ends, left=left: next(left) == at,  # type: ignore[misc]
            )  # fmt: skip
        same(whole, train(student(frames), fit, held, settings, state, told[False].append))
        plain = [dataclasses.replace(p, seconds=0) for p in told[True]]
        assert plain == [dataclasses.replace(p, seconds=0) for p in told[False]]


def test_intervals_are_not_lost_to_rounding(frames: Frames) -> None:
    settings = dataclasses.replace(SETTINGS, epochs=1, batch=1, validate_every=0.1)
    few = frames.select(range(10))
    seen: list[Progress] = []
    train(student(frames), few, frames.select([11]), settings, tell=seen.append)
    assert [p.step for p in seen] == list(range(1, 11))


def test_a_longer_run_is_the_long_run(frames: Frames, tmp_path: Path) -> None:
    long = dataclasses.replace(SETTINGS, schedule="plateau", plateau_patience=0)
    short = dataclasses.replace(long, epochs=6)
    fit, held = frames.split([16, 8], seed=0)
    seen: list[Progress] = []
    whole = train(student(frames), fit, held, long)
    first = train(student(frames), fit, held, short, tmp_path / "a.pt")
    longer = train(student(frames), fit, held, long, tmp_path / "a.pt", seen.append)
    same(whole, longer)
    assert [p.epoch for p in seen] == [9, 12]
    assert not torch.equal(first.readout.norm.weight, longer.readout.norm.weight)
    with pytest.raises(ValueError, match="epochs is 7, but 12 have begun: expected 12 or more"):
        train(student(frames), fit, held, dataclasses.replace(long, epochs=7), tmp_path / "a.pt")


def test_a_longer_cosine_has_the_rates_of_the_new_length(
    frames: Frames, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Shortened, in the middle of an epoch, as well."""
    fit, held = frames.split([16, 8], seed=0)
    rates: dict[int, list[float]] = {}
    for epochs in (4, 8):
        seen: list[Progress] = []
        settings = dataclasses.replace(SETTINGS, epochs=epochs, validate_every=1)
        train(student(frames), fit, held, settings, tell=seen.append)
        rates[epochs] = [p.learning_rate for p in seen]
    seen = []
    for epochs in (4, 8):
        settings = dataclasses.replace(SETTINGS, epochs=epochs, validate_every=1)
        train(student(frames), fit, held, settings, tmp_path / "a.pt", tell=seen.append)
    assert [p.learning_rate for p in seen] == [*rates[4], *rates[8][4:]]
    assert rates[8][4] > 10 * rates[4][3]
    [record] = caplog.records
    assert "now has 8 epochs, not 4: its learning rate goes from 5e-05 to" in record.getMessage()


def test_a_run_that_ended_early_stays_ended(
    frames: Frames, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit, held = frames.split([16, 8], seed=0)
    settings = dataclasses.replace(
        SETTINGS, epochs=40, learning_rate=0.3, schedule="constant", validate_every=0.5,
        early_stopping=3, ema_decay=0.0,
    )  # fmt: skip
    seen: list[Progress] = []
    ended = train(student(frames), fit, held, settings, tmp_path / "a.pt", seen.append)
    assert len(seen) < 80
    longer = dataclasses.replace(settings, epochs=50)
    same(ended, train(student(frames), fit, held, longer, tmp_path / "a.pt"))
    assert "ended early" in caplog.text


def test_compiling_changes_nothing_and_nothing_is_written_before(
    frames: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network with dropout; no batch fits a graph, so that compiled steps are plain ones."""

    def network() -> Potential:
        torch.manual_seed(1)
        network = TDN(channels=4, layers=1, heads=2, radial_functions=4, max_number=9, dropout=0.5)
        return Potential(network, ScalarReadout(4), elements=frames.elements)

    calls: list[int] = []

    def unfit(*_: object) -> None:
        calls.append(1)
        raise Unfit("as every batch")

    fit, held = frames.split([16, 8], seed=0)
    settings = dataclasses.replace(SETTINGS, epochs=2, validate_every=1)
    plain = train(network(), fit, held, settings)
    monkeypatch.setattr(CompiledFunction, "__call__", unfit)
    monkeypatch.setattr("tensormd.models.training.backends.compiler_for", lambda _: None)
    compiled = dataclasses.replace(settings, compile="auto", backend="compiled")
    before: list[tuple[bool, int]] = []
    seen: list[Progress] = []
    state = tmp_path / "a.pt"
    found = train(
        network(), fit, held, compiled, state, seen.append,
        ready=lambda: before.append((state.exists(), len(calls))),
    )  # fmt: skip
    same(plain, found)
    assert before == [(False, 1)]  # a batch was evaluated, and forgotten
    assert [(p.backend, p.plain_steps) for p in seen] == [("compiled", 4), ("compiled", 8)]
