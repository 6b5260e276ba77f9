"""Progress of runs on stderr: a bar on a terminal, else a line every ten seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from .console import say

if TYPE_CHECKING:
    from ...models.training import Progress as TrainingProgress
    from ..md.engine import Row
    from ..md.loop import Observer
    from ..md.relax import StepObserver, Task
    from ..train.run import Watcher

SECONDS_BETWEEN_LINES = 10.0


class Pace:
    """Whether it is time for another line.

    Parameters
    ----------
    seconds
        Least time between two lines.
    at_once
        Whether the first line may come at once.
    """

    def __init__(self, seconds: float = SECONDS_BETWEEN_LINES, at_once: bool = False) -> None:
        self.seconds = seconds
        self._next = time.monotonic() + (0.0 if at_once else seconds)

    def __call__(self) -> bool:
        """True at most once in the time given."""
        if time.monotonic() < self._next:
            return False
        self.spoken()
        return True

    def spoken(self) -> None:
        """Begin the time again: something was said."""
        self._next = time.monotonic() + self.seconds


@contextmanager
def _bar(name: str, steps: int | None) -> Iterator[tuple[Progress, TaskID]]:
    with Progress(
        TextColumn(f"[bold]{name}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        refresh_per_second=5,
    ) as bar:
        yield bar, bar.add_task(name, total=steps, note="")


@contextmanager
def md_progress(steps: int | None) -> Iterator[Observer]:
    """An observer for `start_md`.

    Parameters
    ----------
    steps
        The last step, where it is known.
    """
    if not sys.stderr.isatty():
        yield _md_lines(steps)
        return
    with _bar("md", steps) as (bar, task):

        def tell(step: int, row: Row | None) -> None:
            bar.update(task, completed=step)
            if row is not None:
                bar.update(task, note=_md_note(row))

        yield tell


def _md_lines(steps: int | None) -> Observer:
    pace = Pace(at_once=True)
    of = "" if steps is None else f"/{steps}"

    def tell(step: int, row: Row | None) -> None:
        if row is not None and pace():
            say(f"step {step}{of}  {row['time_ps']:.4f} ps  {_md_note(row)}")

    return tell


def _md_note(row: Row) -> str:
    pressure = f"  {row['pressure_bar']:.0f} bar" if "pressure_bar" in row else ""
    return f"{row['total_ev']:.4f} eV  {row['temperature_k']:.0f} K{pressure}"


def relax_progress(task: Task) -> StepObserver:
    """An observer for `relax`: lines, at most one a second."""
    pace = Pace(1.0, at_once=True)

    def tell(step: int, energy: float, fmax: float) -> None:
        if pace():
            say(f"{task.source}  step {step}  {energy:.6f} eV  fmax {fmax:.4f} eV/A")

    return tell


def frames_progress() -> Callable[[int, int], None]:
    """Lines that tell how many frames are done."""
    pace = Pace()

    def tell(done: int, total: int) -> None:
        if pace():
            say(f"{done} of {total} frames")

    return tell


@contextmanager
def train_progress() -> Iterator[Watcher]:
    """A watcher for `start_training`; of several processes only the first is watched."""
    if not sys.stderr.isatty():
        yield _TrainLines()
        return
    with _bar("train", None) as (bar, task):
        yield _TrainBar(bar, task)


class _TrainLines:
    """A line at each validation, and between them every ten seconds."""

    def __init__(self) -> None:
        self._pace = Pace()

    def stepped(self, epoch: int, step: int, steps: int, loss: float) -> None:
        if self._pace():
            say(f"epoch {epoch}  step {step} of {steps}  loss {loss:.5g}")

    def validated(self, progress: TrainingProgress) -> None:
        self._pace.spoken()
        say(f"epoch {progress.epoch}  {progress.seconds:.0f} s  {_train_note(progress)}")


class _TrainBar:
    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task = bar, task

    def stepped(self, epoch: int, step: int, steps: int, loss: float) -> None:
        self._bar.update(self._task, completed=step, total=steps)

    def validated(self, progress: TrainingProgress) -> None:
        self._bar.update(self._task, note=f"epoch {progress.epoch}  {_train_note(progress)}")


def _train_note(progress: TrainingProgress) -> str:
    """Loss and validation errors (mean absolute) in one line."""
    errors = "  ".join(
        f"{name} {each.mae:.4g} {each.unit}" for name, each in progress.errors.items()
    )
    return f"loss {progress.loss:.5g}  watched {progress.validation_loss:.5g}: {errors}"
