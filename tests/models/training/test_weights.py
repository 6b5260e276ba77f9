"""A frame of weight 2 has the effect of the frame given twice, in every kind of step."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import write
from support.helpers import crystal, ethanol, tiny
from support.reader_frames import waters
from support.training_frames import labelled, tensornet, water
from torch import Tensor

from tensormd.models.training import Frames, TrainingSettings, TrainingStep, read_frames, train
from tensormd.models.training.losses import check_labels

SETTINGS = TrainingSettings(energy_weight=0.7, force_weight=1.3)
SYSTEMS = [ethanol(1), water(1), crystal(1.0), tiny(2), water(2)]
PLAIN = labelled(SYSTEMS, stress=True)
WEIGHTS = [2.0, 1.0, 3.0, 0.0, 1.0]
TWICE = [0, 0, 1, 2, 2, 2, 4]
"""Frames as often as their weights say."""


def frames(weights: list[float] | None, lacking: tuple[int, ...] = ()) -> Frames:
    forces = [None if k in lacking else f for k, f in enumerate(PLAIN.forces)]
    stress = PLAIN.values("stress")
    return Frames(
        list(PLAIN.graphs), PLAIN.energies, forces, weights=weights,
        stress=[stress[k] if k == 2 else None for k in range(5)],
    )  # fmt: skip


def gradients(step: TrainingStep, of: Frames, index: list[int]) -> tuple[float, list[Tensor]]:
    losses = step.step(of.batch(index))
    return losses.total, [
        p.grad.clone() for p in step.potential.parameters() if p.grad is not None
    ]


def compare(found: tuple[float, list[Tensor]], wanted: tuple[float, list[Tensor]]) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=1e-12)
    for x, y in zip(found[1], wanted[1], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("lacking", [(), (1, 2)])
@pytest.mark.parametrize("per_atom", [False, True])
@pytest.mark.parametrize("loss", ["norm", "l1", "mse", "huber"])
def test_weights_are_repetitions(loss: str, per_atom: bool, lacking: tuple[int, ...]) -> None:
    settings = dataclasses.replace(
        SETTINGS, loss=loss, energy_per_atom=per_atom, stress_weight=2.0, huber_delta=0.3
    )
    weighted, equal = frames(WEIGHTS, lacking), frames(None, lacking)
    potential = tensornet()
    step = TrainingStep(potential, settings, masked=weighted.partial, weighted=True)
    repeated = TrainingStep(potential, settings, masked=equal.partial)
    found = gradients(step, weighted, list(range(5)))
    wanted = gradients(repeated, equal.select(TWICE), list(range(len(TWICE))))
    compare(found, wanted)
    assert found[0] != pytest.approx(gradients(repeated, equal, list(range(5)))[0], rel=1e-3)


def test_a_batch_is_weighted_against_the_whole_data_set() -> None:
    """So that weights matter in batches of one frame, and the mean gradient is unbiased."""
    weighted, potential = frames(WEIGHTS), tensornet()
    step = TrainingStep(potential, SETTINGS, weighted=True)
    plain = TrainingStep(potential, SETTINGS)
    terms = [step.step(weighted.batch([k])).terms for k in range(5)]
    alone = [plain.step(frames(None).batch([k])).terms for k in range(5)]
    mean = np.mean(WEIGHTS)
    atoms = np.average(WEIGHTS, weights=PLAIN.sizes)
    for k, weight in enumerate(WEIGHTS):
        assert terms[k]["energy"] == pytest.approx(weight / mean * alone[k]["energy"])
        assert terms[k]["forces"] == pytest.approx(weight / atoms * alone[k]["forces"])
    with pytest.raises(ValueError, match="expected weighted=True"):
        plain.step(weighted.batch([0]))


def test_equal_weights_change_nothing() -> None:
    same = frames([3.0] * 5)
    assert not same.weighted
    assert same.batch([0, 1]).weights == {}
    assert not frames(WEIGHTS).select([1, 4]).weighted


def test_a_training_with_weights() -> None:
    """One batch an epoch: the steps are those of the repeated frames."""
    settings = TrainingSettings(
        batch=4, epochs=3, dtype="float64", warm_up_steps=0, backend="plain", validate_every=1
    )
    told: dict[str, list[float]] = {}
    weighted, equal = frames([2.0, 1.0, 3.0, 1.0, 1.0]), frames(None)
    fit, again = weighted.select([0, 1, 2, 4]), equal.select(TWICE)
    for name, part, batch in (("weighted", fit, 4), ("repeated", again, 7)):
        losses = told.setdefault(name, [])
        train(
            tensornet(), part, part, dataclasses.replace(settings, batch=batch),
            tell=lambda p, losses=losses: losses.extend([p.loss, p.validation_loss]),
        )  # fmt: skip
    assert told["weighted"] == pytest.approx(told["repeated"], rel=1e-9)


def test_weights_of_files(tmp_path: Path) -> None:
    structures = waters(3)
    structures[1].info["config_weight"] = 0.25
    structures[2].info["mine"] = 7
    path = tmp_path / "a.extxyz"
    write(path, structures, format="extxyz")
    assert read_frames(path, 4.0).weights.tolist() == [1.0, 0.25, 1.0]
    assert read_frames(path, 4.0, keys={"weight": None}).weights.tolist() == [1.0] * 3
    with pytest.raises(
        ValueError, match=r"frame 0 of .* has no 'mine', which keys names for weig"
    ):
        read_frames(path, 4.0, keys={"weight": "mine"})
    structures[0].info["config_weight"] = -1.0
    write(path, structures, format="extxyz")
    with pytest.raises(ValueError, match=r"frame 0 of .* has the weight -1.0: expected 0 or more"):
        read_frames(path, 4.0)
    structures[0].info["config_weight"] = "high"
    write(path, structures, format="extxyz")
    with pytest.raises(ValueError, match="config_weight is 'high': expected the frame's weight"):
        read_frames(path, 4.0)


def test_weights_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="frame 1 has the weight nan"):
        frames([1.0, float("nan"), 1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="all training frames with a label of energy have the w"):
        check_labels(frames([0.0] * 5), SETTINGS, "training")
