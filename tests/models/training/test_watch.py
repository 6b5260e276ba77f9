"""Notice of a loss that rises, and of none that is merely noisy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from support.training_frames import labelled, tensornet, water

from tensormd.models.training import TrainingSettings, train
from tensormd.models.training.watch import RISE, SPAN, LossWatch


def noticed(losses: np.ndarray) -> list[int]:
    watch = LossWatch()
    return [k for k, loss in enumerate(losses) if watch.add(float(loss)) is not None]


def test_noise_and_single_bad_batches_are_not_noticed() -> None:
    noise = np.random.default_rng(0).lognormal(0.0, 0.8, 3000)
    falling = np.exp(-np.arange(3000) / 800)
    assert noticed(noise * falling) == []
    spikes = np.ones(3000)
    spikes[500::200] = 80.0
    assert noticed(spikes) == []


def test_an_explosion_is_noticed_while_it_is_finite() -> None:
    losses = np.concatenate([np.linspace(3, 1, 400), 1.05 ** np.arange(400)])
    found = noticed(losses)
    assert 400 < found[0] < 500
    assert losses[found[0]] < 100
    # Once each time that it has grown as much again, not at every step.
    assert len(found) == pytest.approx(np.log(losses[-1]) / np.log(RISE), abs=2)


def test_a_second_rise_is_noticed_too() -> None:
    hill = np.concatenate([np.ones(200), np.full(2 * SPAN, 20.0), np.ones(600)])
    found = noticed(np.concatenate([hill, hill]))
    assert sum(k < len(hill) for k in found) == sum(k > len(hill) for k in found) >= 1


def test_a_training_says_so_and_names_the_remedy(caplog: pytest.LogCaptureFixture) -> None:
    frames = labelled([water(k) for k in range(4)])
    settings = TrainingSettings(
        epochs=90, batch=2, warm_up_steps=0, schedule="constant", validate_every=90,
        backend="plain", ema_decay=0.0,
    )  # fmt: skip
    potential = tensornet()

    def spoil(epoch: int, step: int, *_: object) -> None:
        with torch.no_grad():
            potential.readout.head.network[-1].weight *= 1.0 if step < 60 else 1.5

    train(tensornet(), *frames.split([2, 2], 0), dataclasses.replace(settings, epochs=60))
    assert caplog.records == []
    train(potential, *frames.split([2, 2], 0), settings, step_done=spoil)
    said = caplog.records[0].getMessage()
    assert "times the lowest one" in said
    assert "a lower learning_rate than 0.001, or more warm_up_steps" in said
