"""Which frames form the batches of an epoch, and their preparation beside the steps."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..data.batch import Batch
from ..data.frames import Frames
from ..data.store import Integers
from .settings import TrainingSettings

AHEAD = 2
"""Number of batches that wait for their step."""


class BatchPlan:
    r"""The batches of every epoch: the same number in each, from the seed and the epoch alone.

    The frames are drawn in a random order. A batch holds ``batch`` frames, or as many of the next
    frames as have at most ``batch_atoms`` atoms or ``batch_edges`` edges together. With sizes
    :math:`n_k` and at most M in a batch, an epoch has

    .. math:: \lceil \sum_k n_k / M \rceil

    batches; the frames that are left over then wait for another epoch.

    Parameters
    ----------
    frames
        Training frames.
    settings
        Settings of the run.

    Raises
    ------
    ValueError
        If there are fewer frames than a batch has, or a frame is larger than a batch may be.

    Attributes
    ----------
    steps
        Number of batches in an epoch.
    """

    def __init__(self, frames: Frames, settings: TrainingSettings) -> None:
        self.settings = settings
        self.count = len(frames)
        self.largest = settings.batch_atoms or settings.batch_edges
        self._sizes: Integers | None = None
        if self.largest is None:
            if self.count < settings.batch:
                raise ValueError(
                    f"{self.count} frames to train on: expected {settings.batch}, a batch"
                )
            left = self.count % settings.batch > 0 and settings.keep_last_batch
            self.steps = self.count // settings.batch + left
            return
        what = "edges" if settings.batch_atoms is None else "atoms"
        self._sizes = frames.sizes if what == "atoms" else frames.edge_counts
        if self._sizes.max() > self.largest:
            k = int(self._sizes.argmax())
            raise ValueError(
                f"training frame {k} has {self._sizes[k]} {what}, but batch_{what} is "
                f"{self.largest}: set it to {self._sizes[k]} or more"
            )
        self.steps = max(1, -(-int(self._sizes.sum()) // self.largest))

    def epoch(self, number: int) -> list[list[int]]:
        """Frames of each batch of an epoch, counted from 0."""
        order = np.random.default_rng([self.settings.seed, number]).permutation(self.count)
        if self._sizes is None:
            size = self.settings.batch
            return [order[k * size : (k + 1) * size].tolist() for k in range(self.steps)]
        assert self.largest is not None
        ends = np.cumsum(self._sizes[order])
        found, first = [], 0
        for _ in range(self.steps):
            before = ends[first - 1] if first else 0
            last = int(np.searchsorted(ends, before + self.largest, side="right"))
            found.append(order[first:last].tolist())
            first = last
        return found

    def batches(self, epoch: int, step: int) -> Iterator[list[int]]:
        """Frames of all batches of the run, from a step of an epoch on."""
        for number in range(epoch, self.settings.epochs):
            yield from self.epoch(number)[step:]
            step = 0


class Prepared(NamedTuple):
    """A batch that is ready for its step."""

    frames: list[int]
    """Its frames, for all processes together."""
    batch: Batch | None
    """The share of this process; None if it has none."""


class _Failed(NamedTuple):
    error: BaseException


@contextlib.contextmanager
def prepare_batches(
    make: Callable[[Sequence[int]], Batch | None], batches: Iterator[list[int]]
) -> Iterator[Iterator[Prepared]]:
    """Prepare batches in a thread while others are computed, and yield an iterator over them.

    The thread ends with the context, at the latest after the batch that it is preparing. An error
    in it is raised by the iterator.

    Parameters
    ----------
    make
        Function from the frames of a batch to the batch.
    batches
        Frames of the batches in their order; read in the thread alone.
    """
    ready: queue.Queue[Prepared | _Failed | None] = queue.Queue(maxsize=AHEAD)
    stopped = threading.Event()

    def put(item: Prepared | _Failed | None) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def work() -> None:
        try:
            for index in batches:
                put(Prepared(index, make(index)))
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # of any kind: it is raised where the batch is awaited
            put(_Failed(error))

    def waiting() -> Iterator[Prepared]:
        while True:
            item = ready.get()
            if item is None:
                return
            if isinstance(item, _Failed):
                raise item.error
            yield item

    thread = threading.Thread(target=work, name="tensormd-batches", daemon=True)
    thread.start()
    try:
        yield waiting()
    finally:
        stopped.set()
        thread.join()
