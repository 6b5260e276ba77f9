"""Progress of runs on stderr: a bar on a terminal, else a line every ten seconds."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

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
    from ..campaign.execution import Tell
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


def neb_progress() -> Callable[[int, float, float], None]:
    """An observer for `neb`: lines, at most one a second."""
    pace = Pace(1.0, at_once=True)

    def tell(step: int, barrier: float, fmax: float) -> None:
        if pace():
            say(f"step {step}  highest image {barrier:.4f} eV  fmax {fmax:.4f} eV/A")

    return tell


def ts_progress() -> Callable[[int, float, float], None]:
    """An observer for `ts`: lines, at most one a second."""
    pace = Pace(1.0, at_once=True)

    def tell(step: int, change: float, fmax: float) -> None:
        if pace():
            say(f"step {step}  {change:+.4f} eV since the start  fmax {fmax:.4f} eV/A")

    return tell


def frames_progress() -> Callable[[int, int], None]:
    """Lines that tell how many frames are done."""
    pace = Pace()

    def tell(done: int, total: int) -> None:
        if pace():
            say(f"{done} of {total} frames")

    return tell


@contextmanager
def campaign_progress(runs: int) -> Iterator[Tell]:
    """A function for `execute`, which tells how many runs have ended.

    Parameters
    ----------
    runs
        Number of all runs.
    """
    if not sys.stderr.isatty():
        pace = Pace(at_once=True)

        def line(states: Counter[str], workers: int) -> None:
            if pace():
                ended, note = _campaign_note(states, workers)
                say(f"{ended} of {runs} runs  {note}")

        yield line
        return
    with _bar("campaign", runs) as (bar, task):

        def tell(states: Counter[str], workers: int) -> None:
            ended, note = _campaign_note(states, workers)
            bar.update(task, completed=ended, note=note)

        yield tell


def _campaign_note(states: Counter[str], workers: int) -> tuple[int, str]:
    """Number of runs that have ended, and a note."""
    failed = states["failed"] + states["lost"]
    note = f"{workers} worker{'s' * (workers != 1)}" + (f"  {failed} failed" if failed else "")
    return states["done"] + failed, note


@contextmanager
def train_progress() -> Iterator[Watcher]:
    """A watcher for `start_training`; of several processes only the first is watched."""
    if not sys.stderr.isatty():
        yield _TrainLines()
        return
    with _bar("train", None) as (bar, task):
        yield _TrainBar(bar, task)


class Rate:
    """Speed of the steps and time left, the first step and what came before it left out.

    Parameters
    ----------
    now
        Clock, s.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._first: tuple[float, int] | None = None
        self._last = (0.0, 0)

    def stepped(self, step: int) -> None:
        """A step is done."""
        if self._first is None:
            self._first = self._last = (self._now(), step)

    def text(self, step: int, steps: int) -> str:
        """Steps per second since the last text, and time left, validations included."""
        now = self._now()
        if self._first is None or step == self._last[1] or now <= self._last[0]:
            return ""
        per_second = (step - self._last[1]) / (now - self._last[0])
        left = (steps - step) * (now - self._first[0]) / (step - self._first[1])
        self._last = (now, step)
        return f"{per_second:.3g} steps/s  {duration(left)} left"


def duration(seconds: float) -> str:
    """A time in two units at most: 45 s, 12 min, 3 h 05 min, 2 d 7 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


class _TrainLines:
    """A line at each validation, and between them every ten seconds."""

    def __init__(self) -> None:
        self._pace, self._rate = Pace(), Rate()
        self._steps = 0

    def stepped(self, epoch: int, step: int, steps: int, loss: float) -> None:
        self._steps = steps
        self._rate.stepped(step)
        if self._pace():
            rate = self._rate.text(step, steps)
            say(f"epoch {epoch}  step {step} of {steps}  loss {loss:.5g}  {rate}".rstrip())

    def validated(self, progress: TrainingProgress) -> None:
        self._pace.spoken()
        rate = self._rate.text(progress.step, self._steps)
        note = f"epoch {progress.epoch:g}  {progress.seconds:.0f} s  {_train_note(progress)}"
        say(f"{note}  {rate}".rstrip())


class _TrainBar:
    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task = bar, task
        self._pace, self._rate = Pace(1.0), Rate()
        self._speed = self._note = ""

    def stepped(self, epoch: int, step: int, steps: int, loss: float) -> None:
        self._rate.stepped(step)
        if self._pace():
            self._speed = self._rate.text(step, steps).partition("  ")[0]
        note = f"{self._speed}  {self._note}".strip()
        self._bar.update(self._task, completed=step, total=steps, note=note)

    def validated(self, progress: TrainingProgress) -> None:
        self._note = f"epoch {progress.epoch:g}  {_train_note(progress)}"
        self._bar.update(self._task, note=f"{self._speed}  {self._note}".strip())


def error_text(name: str, errors: Mapping[str, Any]) -> str:
    """Mean absolute error of a quantity: ``energy 9.1 meV (1.0 per atom)``."""
    per_atom = errors.get("mae_per_atom")
    behind = "" if per_atom is None else f" ({per_atom:.3g} per atom)"
    return f"{name} {errors['mae']:.4g} {errors['unit']}{behind}"


def _train_note(progress: TrainingProgress) -> str:
    """Loss and validation errors (mean absolute) in one line."""
    errors = "  ".join(error_text(name, each._asdict()) for name, each in progress.errors.items())
    return f"loss {progress.loss:.5g}  watched {progress.validation_loss:.5g}: {errors}"
