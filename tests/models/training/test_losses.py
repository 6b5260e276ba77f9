"""Losses, schedules, standardisation and settings: known answers."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from support.helpers import System, crystal, ethanol, make_potential
from torch.nn import functional

from tensormd.models.data.standardise import standardise
from tensormd.models.training import Frames, TrainingSettings, quantity_errors
from tensormd.models.training.losses import RunningLosses, check_labels, loss_terms
from tensormd.models.training.schedules import Schedule

A = {
    "energy": torch.tensor([1.0, 4.0], dtype=torch.float64),
    "forces": torch.tensor([[3.0, 0, 4], [0, 0, 0], [0, 2, 0]], dtype=torch.float64),
    "stress": torch.ones(2, 3, 3, dtype=torch.float64),
}
ZERO = {name: torch.zeros_like(value) for name, value in A.items()}
ATOMS = torch.tensor([1.0, 2.0], dtype=torch.float64)
ALL = TrainingSettings(stress_weight=1.0)


@pytest.mark.parametrize(
    ("options", "energy", "forces", "stress"),
    [
        ({}, 2.5, 7 / 3, 3.0),
        ({"energy_per_atom": True}, 1.5, 7 / 3, 3.0),
        ({"loss": "l1"}, 2.5, 1.0, 1.0),
        ({"loss": "mse"}, 8.5, 29 / 9, 1.0),
        ({"loss": "huber", "huber_delta": 2.0}, 3.25, (4 + 6 + 2) / 9, 0.5),
    ],
)
def test_losses(options: dict, energy: float, forces: float, stress: float) -> None:
    terms = loss_terms(A, ZERO, ATOMS, dataclasses.replace(ALL, **options))
    found = {name: float(value) for name, value in terms.items()}
    assert found == pytest.approx({"energy": energy, "forces": forces, "stress": stress})


def test_losses_by_component_are_those_of_torch() -> None:
    for name in ("l1", "mse", "huber"):
        loss = getattr(functional, f"{name}_loss")
        terms = loss_terms(A, ZERO, None, TrainingSettings(loss=name))
        assert terms["energy"] == loss(A["energy"], ZERO["energy"])
        assert terms["forces"] == loss(A["forces"], ZERO["forces"])


def test_a_perfect_force_has_a_gradient() -> None:
    x = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    settings = TrainingSettings(energy_weight=0)
    loss_terms({"forces": x}, {"forces": torch.zeros(2, 3)}, None, settings)["forces"].backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros(2, 3, dtype=torch.float64))


def test_running_losses_are_torchmdnets() -> None:
    losses = RunningLosses(TrainingSettings(energy_loss_ema=0.1))
    assert losses.add({"energy": 2.0, "forces": 1.0}) == {"energy": 2.0, "forces": 1.0}
    assert losses.add({"energy": 4.0, "forces": 3.0}) == pytest.approx(
        {"energy": 2.2, "forces": 3.0}
    )


def test_labels_that_the_loss_asks_for() -> None:
    graphs = [ethanol().graph(), crystal().graph()]
    frames = Frames(graphs, [0.0, 1.0])
    with pytest.raises(ValueError, match=r"validation frames have no forces.*set force_weight"):
        check_labels(frames, TrainingSettings(), "validation")
    check_labels(frames, TrainingSettings(force_weight=0), "validation")
    with pytest.raises(ValueError, match="frame 0 has no cell"):
        check_labels(
            Frames(graphs, [0.0, 1.0], stress=np.zeros((2, 3, 3))),
            TrainingSettings(force_weight=0, stress_weight=1),
            "training",
        )


def test_cosine_with_warm_up() -> None:
    schedule = Schedule(TrainingSettings(learning_rate=1.0, warm_up_steps=10), 1000)
    assert schedule.rate(0) == pytest.approx(0.1)
    assert schedule.rate(500) == pytest.approx(0.505)
    assert schedule.rate(1000) == pytest.approx(0.01)
    constant = Schedule(TrainingSettings(schedule="constant", warm_up_steps=4), 100)
    assert [constant.rate(k) for k in (0, 1, 3, 99)] == pytest.approx([2.5e-4, 5e-4, 1e-3, 1e-3])


def test_plateaus_are_torchs() -> None:
    settings = TrainingSettings(
        schedule="plateau", learning_rate=0.5, warm_up_steps=0,
        plateau_factor=0.5, plateau_patience=1, plateau_minimum=0.1,
    )  # fmt: skip
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=1, min_lr=0.1
    )
    ours = Schedule(settings, 100)
    rates = []
    for loss in [3.0, 2.0, 2.0, 1.9999, 2.1, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.6]:
        ours.validated(loss)
        theirs.step(loss)
        assert ours.rate(9) == pytest.approx(optimizer.param_groups[0]["lr"])
        rates.append(ours.rate(9))
    assert sorted(set(rates)) == pytest.approx([0.1, 0.125, 0.25, 0.5])
    again = Schedule(settings, 100)
    again.load(ours.state())
    assert again.rate(9) == ours.rate(9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0: expected 1 or more"),
        ({"epochs": 2.5}, "epochs is 2.5: expected a whole number"),
        ({"batch": True}, "batch is True: expected a whole number"),
        ({"learning_rate": math.nan}, "learning_rate is nan: expected more than 0"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast': expected a number"),
        ({"schedule": "step"}, "schedule is 'step': expected one of 'cosine'"),
        ({"loss": "l2"}, "loss is 'l2': expected one of 'norm'"),
        ({"compile": "yes"}, "compile is 'yes': expected one of 'auto', true or false"),
        ({"compile": 1}, "compile is 1"),
        ({"keep_last_batch": 1}, "keep_last_batch is 1: expected true or false"),
        ({"stress_weight": -1.0}, "stress_weight is -1.0: expected 0 or more"),
        ({"plateau_factor": 1.0}, "plateau_factor is 1.0: expected more than 0, less than 1"),
        ({"energy_loss_ema": 0.0}, "energy_loss_ema is 0.0"),
        ({"energy_weight": 0, "force_weight": 0}, "all weights of the loss are 0"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
    ],
)
def test_settings_are_checked(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        TrainingSettings(**options)


def molecule(*numbers: int) -> System:
    positions = np.random.default_rng(len(numbers)).normal(size=(len(numbers), 3))
    return System(np.array(numbers), 1.5 * positions)


def frames_of(systems: list[System], energies: list[float]) -> Frames:
    return Frames([system.graph() for system in systems], energies)


def test_references_are_recovered() -> None:
    systems = [molecule(8, 1, 1), molecule(6, 1, 1, 1, 1), molecule(8, 8), molecule(6, 8, 1)]
    energies = {1: -13.5, 6: -1030.0, 8: -2040.0}
    noise = np.array([0.1, -0.1, 0.2, 0.05])
    exact = [sum(energies[z] for z in s.numbers) for s in systems]
    found = standardise(frames_of(systems, exact))
    assert found.references == pytest.approx(energies, rel=1e-10)
    assert found.mean == 0
    systems *= 2
    found = standardise(frames_of(systems, [*(exact + noise), *(exact - noise)]))
    assert found.references == pytest.approx(energies, rel=1e-10)
    per_atom = np.array([*noise, *-noise]) / [len(s.numbers) for s in systems]
    assert found.scale == pytest.approx(per_atom.std())
    given = standardise(frames_of(systems, [*exact, *exact]), {**energies, 7: 1.0, 8: -2039.0})
    assert given.references[8] == -2039.0
    assert given.mean == pytest.approx(-1.0)  # oxygens per frame: 1, 0, 2, 1
    options = found.options()
    assert options["references"].dtype == torch.float64
    assert options["references"][8] == pytest.approx(-2040)
    assert make_potential(references=options["references"]).atomic_scale.references[1] == (
        pytest.approx(-13.5)
    )


def test_references_that_the_data_do_not_determine() -> None:
    """Water in several sizes: H and O always come as two to one."""
    systems = [molecule(*(8, 1, 1) * n) for n in (1, 2, 3)]
    found = standardise(frames_of(systems, [-300.0, -600.0, -900.0]))
    assert 2 * found.references[1] + found.references[8] == pytest.approx(-300)
    assert found.references == pytest.approx({1: -100, 8: -100})
    one = standardise(frames_of(systems[:1] * 3, [-299.0, -300.0, -301.0]))
    assert (one.references, one.mean) == ({}, pytest.approx(-300))
    assert one.scale == pytest.approx(math.sqrt(2 / 3) / 3)
    none = standardise(frames_of(systems, [-300.0, -600.0, -900.0]), "none")
    assert (none.references, none.mean) == ({}, pytest.approx(-600))


def test_the_scale_is_that_of_forces() -> None:
    graphs = [ethanol().graph(), crystal().graph()]
    forces = [
        np.full(graph.positions.shape, value) for graph, value in zip(graphs, (3, 4), strict=True)
    ]
    rms = math.sqrt((9 * 9 + 16 * 5) / 14)
    assert standardise(Frames(graphs, None, forces)).scale == pytest.approx(rms)
    assert standardise(Frames(graphs, [0.0, 1.0], forces)).scale == pytest.approx(rms)


def test_bad_references() -> None:
    frames = frames_of([molecule(8, 1, 1)], [0.0])
    with pytest.raises(ValueError, match="no energy of atomic number 8"):
        standardise(frames, {1: -13.0})
    with pytest.raises(ValueError, match="'linear': expected 'fit', 'none'"):
        standardise(frames, "linear")


def test_errors_of_all_quantities() -> None:
    potential = make_potential()
    graphs = [crystal().graph(), crystal(1.0).graph()]
    predictions = [potential(graph) for graph in graphs]
    volume = float(torch.linalg.det(graphs[0].cell[0]).abs())
    frames = Frames(
        graphs,
        [float(p.energy) - d for p, d in zip(predictions, (0.1, -0.3), strict=True)],
        [p.forces - 0.002 for p in predictions],
        stress=[-p.virial[0] / volume + 0.001 for p in predictions],
    )
    errors = quantity_errors(potential, frames)
    assert errors["energy"][:2] == pytest.approx((200, 1e3 * math.sqrt(0.05)))
    assert errors["forces"][:2] == pytest.approx((2, 2))
    assert errors["stress"][:2] == pytest.approx((1, 1))
    assert [e.unit for e in errors.values()] == ["meV", "meV/A", "meV/A^3"]
    assert list(quantity_errors(potential, frames, ["energy"])) == ["energy"]
    with pytest.raises(ValueError, match="no head for the dipole"):
        quantity_errors(potential, frames, ["dipole"])
