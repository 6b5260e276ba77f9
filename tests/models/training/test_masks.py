"""Labels that some frames lack: they add nothing to losses and gradients (compiled: test_step)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from support.helpers import crystal, ethanol, make_potential, slab, tiny
from support.training_frames import CUTOFF, labelled, tensornet, water, without
from torch import Tensor

from tensormd.models.data.standardise import standardise
from tensormd.models.training import (
    Batch,
    Frames,
    TrainingSettings,
    TrainingStep,
    quantity_errors,
    train,
)
from tensormd.models.training.losses import check_labels, loss_terms

ALL = TrainingSettings(energy_weight=0.7, force_weight=1.3, stress_weight=2.0)
FULL = labelled(
    [
        ethanol(1),
        crystal(),
        water(1),
        crystal(1.0),
        slab()._replace(pbc=True),
        tiny(2),
        ethanol(2),
    ],
    stress=True,
)
LACK = {"energy": [1, 3], "forces": [0, 3, 5], "stress": [0, 2, 5, 6]}
"""Frames without a label; those that are not periodic have no stress."""


MASKED = without(FULL, LACK)
BATCHES = [list(range(7)), [0, 1, 4], [6, 5, 2], [0, 5, 3], [1, 3]]


def gradients(step: TrainingStep, batch: Batch) -> tuple[dict[str, float], dict[str, Tensor]]:
    terms = step.step(batch).terms
    found = {name: p.grad for name, p in step.potential.named_parameters()}
    return terms, {name: g.clone() for name, g in found.items() if g is not None}


def of_the_labelled(
    frames: Frames, index: list[int], settings: TrainingSettings
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Losses and gradients from the labelled frames of each quantity alone, one after another."""
    potential = make_potential(1)
    terms, summed = {}, {}
    for name, weight in settings.weights.items():
        chosen = [k for k in index if k in frames.labelled(name)]
        terms[name] = 0.0
        if not chosen:
            continue
        off = {f"{key}_weight": 0.0 for key in ("energy", "force", "stress")}
        key = {"forces": "force_weight"}.get(name, f"{name}_weight")
        alone = dataclasses.replace(settings, **{**off, key: weight})
        part = frames.select(chosen)
        assert name not in part.partial
        found, gradient = gradients(TrainingStep(potential, alone), part.batch(range(len(part))))
        terms |= found
        for parameter, value in gradient.items():
            summed[parameter] = summed.get(parameter, 0) + value
    return terms, summed


@pytest.mark.parametrize("loss", ["norm", "l1", "mse", "huber"])
@pytest.mark.parametrize("per_atom", [False, True])
def test_the_loss_is_that_of_what_is_labelled(loss: str, per_atom: bool) -> None:
    settings = dataclasses.replace(ALL, loss=loss, energy_per_atom=per_atom)
    step = TrainingStep(make_potential(1), settings, masked=MASKED.partial)
    for index in BATCHES:
        terms, found = gradients(step, MASKED.batch(index))
        expected, summed = of_the_labelled(MASKED, index, settings)
        assert terms == pytest.approx(expected, rel=1e-12)
        assert all(math.isfinite(value) for value in terms.values())
        assert found.keys() >= summed.keys()
        size = max(float(value.abs().max()) for value in summed.values())
        assert size > 1e-3
        for name, value in found.items():
            wanted = summed.get(name, torch.zeros_like(value))
            assert float((value - wanted).abs().max()) < 1e-11 * size, name


def test_masks_of_frames_that_have_every_label_change_no_bit() -> None:
    plain = TrainingStep(make_potential(1), ALL)
    masked = TrainingStep(make_potential(1), ALL, masked=("energy", "forces", "stress"))
    periodic = FULL.select([1, 3, 4])
    terms, found = gradients(plain, periodic.batch(range(3)))
    assert terms == gradients(masked, periodic.batch(range(3)))[0]
    for name, value in gradients(masked, periodic.batch(range(3)))[1].items():
        torch.testing.assert_close(value, found[name], rtol=1e-13, atol=1e-14)


def test_a_batch_without_any_label_of_a_kind() -> None:
    step = TrainingStep(make_potential(1), ALL, masked=MASKED.partial)
    terms, _ = gradients(step, MASKED.batch([0, 5]))
    assert terms["forces"] == terms["stress"] == 0
    assert terms["energy"] > 0
    forces = TrainingSettings(energy_weight=0.0)
    _, found = gradients(TrainingStep(make_potential(1), forces, masked=["forces"]),
                         MASKED.batch([0, 3]))  # fmt: skip
    assert all(not value.any() for value in found.values())
    with pytest.raises(ValueError, match="some frames have no forces: expected it among those"):
        TrainingStep(make_potential(1), forces).step(MASKED.batch([0, 1]))


def test_masked_values_are_not_read() -> None:
    x = torch.tensor([[1.0, 2, 2], [torch.nan] * 3, [0, 3, 4]], requires_grad=True)
    wanted = torch.tensor([[0.0] * 3, [0.0] * 3, [torch.nan] * 3])
    mask = {"forces": torch.tensor([True, False, False])}
    for loss, value in (("norm", 3.0), ("l1", 5 / 3), ("mse", 3.0), ("huber", 3.5 / 3)):
        settings = TrainingSettings(energy_weight=0, loss=loss)
        term = loss_terms({"forces": x}, {"forces": wanted}, None, settings, mask)["forces"]
        assert term.item() == pytest.approx(value)
        (gradient,) = torch.autograd.grad(term, x)
        assert gradient[0].all()
        assert not gradient[1:].any()


def test_training_on_what_there_is() -> None:
    """Epoch means count the frames with a label; validations compare what is labelled."""
    frames = Frames(
        [water(k).graph(CUTOFF) for k in range(12)],
        [None if k in (0, 1, 9, 11) else 0.5 for k in range(12)],
        [None if k in (2, 5, 8, 10) else np.full((3, 3), 0.1) for k in range(12)],
    )
    seen = []
    settings = TrainingSettings(
        epochs=2, batch=3, learning_rate=1e-12, warm_up_steps=0, validate_every=1, loss="mse",
        dtype="float64",
    )  # fmt: skip
    potential = tensornet()
    fit, held = frames.select(range(9)), frames.select(range(9, 12))
    train(potential, fit, held, settings, tell=seen.append)
    errors = quantity_errors(tensornet(), held)
    assert errors["energy"].mae > 0
    assert seen[-1].errors["energy"].mae == pytest.approx(errors["energy"].mae, rel=1e-6)
    assert seen[-1].errors["forces"].rmse == pytest.approx(errors["forces"].rmse, rel=1e-6)
    one = quantity_errors(tensornet(), held.select([1]), ["energy"])
    assert errors["energy"].mae == pytest.approx(one["energy"].mae)
    whole = quantity_errors(tensornet(), fit)
    assert seen[-1].losses["energy"] == pytest.approx((whole["energy"].rmse / 1e3) ** 2, rel=1e-6)


def test_a_label_that_no_frame_has() -> None:
    part = MASKED.select([0, 5])
    with pytest.raises(ValueError, match=r"training frames have no forces.*labelled with energy;"):
        check_labels(part, TrainingSettings(), "training")
    check_labels(MASKED, ALL, "training")
    cells = without(FULL, {"stress": [0, 2, 5]})
    with pytest.raises(ValueError, match="frame 6 has no cell"):
        check_labels(cells, ALL, "training")
    assert Frames(FULL.graphs, [0.0] * 7, [None] * 7).quantities == ("energy",)


def atoms(energies: dict[int, float]) -> Frames:
    """Waters and methanes with energies of their atoms, after isolated atoms."""
    alone = [graph_of([z]) for z in energies]
    table = {1: -13.6, 6: -1029.0, 8: -2042.0}
    molecules = [[8, 1, 1], [6, 1, 1, 1, 1], [8, 1, 1], [6, 8]]
    values = [sum(table[z] for z in numbers) - 1.5 for numbers in molecules]
    return Frames(
        [*alone, *map(graph_of, molecules)],
        [*energies.values(), *values],
        isolated=range(len(alone)),
    )


def graph_of(numbers: list[int]):  # type: ignore[no-untyped-def]
    positions = np.random.default_rng(0).normal(size=(5, 3))[: len(numbers)]
    return ethanol()._replace(numbers=np.array(numbers), positions=1.5 * positions).graph()


def test_isolated_atoms_are_the_references() -> None:
    known = {1: -13.6, 6: -1029.0, 8: -2042.0}
    frames = atoms(known)
    for part in (frames.without_isolated(), frames.split([2, 1, 1], 3)[0].select([0, 1])):
        assert not any(part.isolated)
        found = standardise(part)
        assert found.references == pytest.approx(known)
        assert found.mean == pytest.approx(-1.5)
    given = standardise(frames.without_isolated(), {1: -1.0, 6: -2.0, 8: -3.0})
    assert given.references[1] == -1.0
    assert standardise(frames.without_isolated(), "none").references == {}
    some = standardise(atoms({8: -2042.0}).without_isolated())
    assert some.references[8] == -2042.0
    assert abs(some.references[1] + 13.6) < 2
    assert abs(some.mean) < 1
    twice = Frames([graph_of([1]), graph_of([1]), graph_of([8, 1])], [-13.6, -13.0, -80.0],
                   isolated=[0, 1])  # fmt: skip
    with pytest.raises(
        ValueError, match=r"isolated atoms of H have energies from -13.6 to -13 eV"
    ):
        standardise(twice.without_isolated())
    with pytest.raises(ValueError, match="frame 0 has 2 atoms: expected 1"):
        Frames([graph_of([8, 1])], [0.0], isolated=[0])
    with pytest.raises(ValueError, match="every frame is an isolated atom"):
        frames.select([0, 1]).without_isolated()


def test_standardisation_without_some_labels() -> None:
    frames = labelled([water(k) for k in range(6)])
    lack = {"energy": [1, 4], "forces": [0, 5]}
    found = standardise(without(frames, lack))
    mean = float(frames.energies[[0, 2, 3, 5]].mean())
    assert found.mean == pytest.approx(mean)
    rms = torch.cat(frames.forces[1:5]).square().mean().sqrt()
    assert found.scale == pytest.approx(float(rms))
