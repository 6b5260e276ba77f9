"""Batches by number and by size, and their preparation in a thread."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.helpers import crystal, ethanol, tiny
from support.training_frames import labelled, tensornet, water

from tensormd.models.training import (
    BatchPlan,
    Progress,
    TrainingSettings,
    TrainingStopped,
    train,
)
from tensormd.models.training.batches import prepare_batches

FRAMES = labelled([ethanol(k) if k % 3 else water(k) for k in range(20)] + [crystal(), tiny(2)])


@pytest.mark.parametrize(("key", "largest"), [("batch_atoms", 30), ("batch_edges", 150)])
def test_batches_by_size(key: str, largest: int) -> None:
    plan = BatchPlan(FRAMES, TrainingSettings(seed=3, epochs=4, **{key: largest}))
    sizes = FRAMES.sizes if key == "batch_atoms" else FRAMES.edge_counts
    assert plan.steps == -(-sizes.sum() // largest)
    seen = []
    for epoch in range(4):
        batches = plan.epoch(epoch)
        assert batches == BatchPlan(FRAMES, plan.settings).epoch(epoch)
        assert len(batches) == plan.steps
        drawn = [k for batch in batches for k in batch]
        assert len(set(drawn)) == len(drawn) > 0.7 * len(FRAMES)
        order = np.random.default_rng([3, epoch]).permutation(len(FRAMES)).tolist()
        assert drawn == order[: len(drawn)]
        for batch in batches:
            assert 0 < sizes[batch].sum() <= largest
        for batch, following in itertools.pairwise(batches):
            assert sizes[[*batch, following[0]]].sum() > largest
        seen.append(drawn)
    assert seen[0] != seen[1]
    assert [b for e in (1, 2, 3) for b in plan.epoch(e)][2:] == list(plan.batches(1, 2))


def test_batches_by_number() -> None:
    settings = TrainingSettings(batch=5, keep_last_batch=True, epochs=2)
    assert [len(batch) for batch in BatchPlan(FRAMES, settings).epoch(0)] == [5, 5, 5, 5, 2]
    assert BatchPlan(FRAMES, TrainingSettings(batch=5)).steps == 4
    with pytest.raises(ValueError, match="22 frames to train on: expected 23, a batch"):
        BatchPlan(FRAMES, TrainingSettings(batch=23))


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"frame 1 has 9 atoms, but batch_atoms is 8: set it to"):
        BatchPlan(FRAMES, TrainingSettings(batch_atoms=8))
    with pytest.raises(ValueError, match="batch_edges is 100 beside batch_atoms: give one"):
        TrainingSettings(batch_atoms=8, batch_edges=100)
    with pytest.raises(ValueError, match="batch is 4, but batch_atoms sets the size"):
        TrainingSettings(batch_atoms=8, batch=4)
    with pytest.raises(ValueError, match="keep_last_batch is true, but with batch_edges"):
        TrainingSettings(batch_edges=8, keep_last_batch=True)


def test_a_training_by_size_resumes_to_the_bit(tmp_path: Path) -> None:
    settings = TrainingSettings(
        batch_atoms=40, epochs=4, dtype="float64", warm_up_steps=0, validate_every=2,
        backend="plain", ema_decay=0.5,
    )  # fmt: skip
    validation = FRAMES.select([0, 20])

    def run(file: Path, stop_after: int = 0) -> tuple[list[Progress], Any]:
        told: list[Progress] = []
        steps: list[int] = []

        def stop() -> bool:
            steps.append(1)
            return len(steps) == stop_after

        found = train(tensornet(), FRAMES, validation, settings, file, tell=told.append, stop=stop)
        return told, found.state_dict()

    whole, weights = run(tmp_path / "whole")
    with pytest.raises(TrainingStopped):
        run(tmp_path / "half", stop_after=6)
    resumed, others = run(tmp_path / "half")
    assert whole[-1].step == 4 * BatchPlan(FRAMES, settings).steps
    assert [p.loss for p in whole][-len(resumed) :] == [p.loss for p in resumed]
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert "tensormd-batches" not in {thread.name for thread in threading.enumerate()}


def test_prepared_batches_come_in_order() -> None:
    main = threading.get_ident()
    made: list[tuple[int, ...]] = []

    def make(index: Sequence[int]) -> Any:
        assert threading.get_ident() != main
        made.append(tuple(index))
        return index

    with prepare_batches(make, iter([[k] for k in range(10)])) as batches:
        assert [next(batches).frames for _ in range(4)] == [[0], [1], [2], [3]]
    assert 4 <= len(made) <= 4 + 3 + 1  # no more than wait, and one in the making
    assert "tensormd-batches" not in {thread.name for thread in threading.enumerate()}
    with prepare_batches(make, iter([[1]])) as batches:
        assert len(list(batches)) == 1


def test_errors_come_where_the_batch_is_awaited() -> None:
    def make(index: Sequence[int]) -> Any:
        if index == [2]:
            raise ValueError("frame 2 is damaged")
        return index

    def endless() -> Iterator[list[int]]:
        k = 0
        while True:
            yield [k]
            k += 1

    with prepare_batches(make, endless()) as batches:
        assert next(batches).frames == [0]
        assert next(batches).frames == [1]
        with pytest.raises(ValueError, match="frame 2 is damaged"):
            next(batches)
    with (
        pytest.raises(KeyboardInterrupt),
        prepare_batches(lambda index: None, endless()),
    ):
        raise KeyboardInterrupt
    assert "tensormd-batches" not in {thread.name for thread in threading.enumerate()}
