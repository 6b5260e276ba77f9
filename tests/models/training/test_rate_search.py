"""The learning-rate range test."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from support.helpers import make_potential
from support.training_frames import tensornet, water

from tensormd.models.training import Frames, Progress, TrainingSettings, train
from tensormd.models.training.rate_search import HIGHEST, LOWEST, search_learning_rate


def taught(count: int) -> Frames:
    """Waters with the energies and forces of a random potential."""
    teacher = make_potential(3, gain=1.3)
    graphs = [water(k).graph(teacher.cutoff) for k in range(count)]
    found = [teacher(graph) for graph in graphs]
    energies = torch.stack([each.energy.detach()[0] for each in found])
    return Frames(graphs, energies, [each.forces.detach() for each in found])


SETTINGS = TrainingSettings(batch=4, dtype="float64", schedule="constant", warm_up_steps=5)


def test_the_suggestion_trains_well() -> None:
    frames = taught(16)
    fit, held = frames.split([12, 4], 0)
    start = tensornet()
    before = {name: value.clone() for name, value in start.state_dict().items()}
    told: list[tuple[int, int]] = []
    found = search_learning_rate(
        start, fit, SETTINGS, steps=70, step_done=lambda *done: told.append(done)
    )
    for name, value in start.state_dict().items():
        assert torch.equal(value, before[name])  # a copy was trained
    assert told == [(k + 1, 70) for k in range(len(found.rates))]
    assert found.rates[0] == pytest.approx(LOWEST)
    assert LOWEST < found.suggestion < 0.1
    assert len(found.rates) == len(found.losses)
    assert min(found.losses) < 0.9 * found.losses[0]

    def loss_at(rate: float) -> float:
        settings = dataclasses.replace(
            SETTINGS, learning_rate=rate, epochs=8, validate_every=8, backend="plain"
        )
        seen: list[Progress] = []
        train(tensornet(), fit, held, settings, tell=seen.append)
        return seen[0].loss

    suggested = loss_at(found.suggestion)
    assert suggested < loss_at(found.suggestion / 30)
    assert suggested < loss_at(found.suggestion * 30)


def test_it_ends_when_the_loss_explodes() -> None:
    frames = taught(8)
    found = search_learning_rate(tensornet(), frames, SETTINGS, steps=40)
    assert np.isfinite(found.losses).all()
    assert found.rates[-1] <= HIGHEST * (1 + 1e-9)
    assert found.suggestion == float(f"{found.suggestion:.0e}")


def test_too_few_frames() -> None:
    with pytest.raises(ValueError, match="2 frames to train on: expected 4"):
        search_learning_rate(tensornet(), taught(2), SETTINGS)
