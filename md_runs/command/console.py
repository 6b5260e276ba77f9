"""What runs say to a person: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..md.engine import Row
    from ..md.loop import Observer
    from ..md.relax import StepObserver, Task

SECONDS_BETWEEN_LINES = 10.0


def say(text: str) -> None:
    """A line for people; on stderr, so that stdout stays free for --json."""
    print(text, file=sys.stderr, flush=True)


def show_json(content: Any) -> None:
    """Machine-readable output on stdout."""
    print(json.dumps(content, indent=2, default=str))


@contextmanager
def md_progress(steps: int | None) -> Iterator[Observer]:
    """An observer for `start_md`: a bar on a terminal, else a line every ten seconds.

    Parameters
    ----------
    steps
        The last step, where it is known.
    """
    if not sys.stderr.isatty():
        yield _LineReporter(steps)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    with Progress(
        TextColumn("[bold]md"),
        BarColumn(),
        MofNCompleteColumn(),
        Remaining(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        refresh_per_second=5,
    ) as progress:
        task = progress.add_task("md", total=steps, note="")

        def tell(step: int, row: Row | None) -> None:
            progress.update(task, completed=step)
            if row is not None:
                progress.update(task, note=_note(row))

        yield tell


class _LineReporter:
    """One line at the first log entry and then every so often."""

    def __init__(self, steps: int | None) -> None:
        self.steps = steps
        self._next = 0.0

    def __call__(self, step: int, row: Row | None) -> None:
        if row is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + SECONDS_BETWEEN_LINES
        of = f"/{self.steps}" if self.steps is not None else ""
        say(f"step {step}{of}  {row['time_ps']:.4f} ps  {_note(row)}")


def _note(row: Row) -> str:
    pressure = f"  {row['pressure_bar']:.0f} bar" if "pressure_bar" in row else ""
    return f"{row['total_ev']:.4f} eV  {row['temperature_k']:.0f} K{pressure}"


def relax_reporter(task: Task) -> StepObserver:
    """An observer for `relax`: lines, at most one a second but for the first."""
    spoke = -float("inf")

    def tell(step: int, energy: float, fmax: float) -> None:
        nonlocal spoke
        if time.monotonic() - spoke < 1.0:
            return
        spoke = time.monotonic()
        say(f"{task.source}  step {step}  {energy:.6f} eV  fmax {fmax:.4f} eV/A")

    return tell
