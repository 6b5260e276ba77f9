"""Compiled loops, of which a step runs many, shared by threads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...inference.kernels.cpu.compiled import entry_point, internal
from ...inference.kernels.cpu.team import done, join, leave, next_task
from ...inference.kernels.cpu.workers import new_team, run_with_workers
from ...inference.threads import most_threads

PARTS = 2
"""Parts of a loop per thread: a thread that the system does not run leaves them to the others."""


class Turns(NamedTuple):
    """Turns of a loop, in parts that a `Team` takes one by one."""

    leads: bool
    number: int
    calls: NDArray[np.int64]
    counters: NDArray[np.int64]
    total: int
    """Number of turns."""
    parts: NDArray[np.int64]
    """(1,), number of parts."""


@internal
def taken(turns: Turns) -> Iterator[int]:
    """The turns that this thread takes."""
    join(turns)
    phase, part = next_task(turns, turns.parts, 0)
    while phase == 0:
        parts = turns.parts[0]
        first, last = turns.total * part // parts, turns.total * (part + 1) // parts
        for turn in range(first, last):  # noqa: UP028 (Numba has no "yield from")
            yield turn
        done(turns, phase)
        phase, part = next_task(turns, turns.parts, phase)
    leave(turns)


class Loop:
    """A kernel that is one loop, whose turns do not depend on each other.

    Parameters
    ----------
    kernel
        Takes the turns, and the arguments.
    count
        Returns the number of turns from the same arguments.
    """

    def __init__(self, kernel: Callable[..., None], count: Callable[..., int]) -> None:
        self._kernel, self._count = kernel, count
        self._compiled: dict[Any, Callable[..., None]] = {}

    def __call__(self, *args: Any) -> None:
        """Run all turns, with as many threads as torch uses and cores are free."""
        count = int(self._count(*args))
        threads = min(most_threads(), count)
        parts = min(count, PARTS * threads) if threads > 1 else 1
        given = Turns(*new_team(1), count, _one_number(parts)), *args
        kinds = tuple([_kind(argument) for argument in args])
        compiled = self._compiled.get(kinds)
        if compiled is None:
            compiled = self._compiled[kinds] = entry_point(self._kernel, given)
        run_with_workers(compiled, given, threads)


@functools.cache
def _one_number(number: int) -> NDArray[np.int64]:
    return np.array([number])


def _kind(argument: Any) -> Any:
    """What decides for which types a kernel is compiled; of named tuples, the first field does."""
    if type(argument) is np.ndarray:
        return argument.dtype
    return argument[0].dtype if isinstance(argument, tuple) else type(argument)


def over(count: Callable[..., int]) -> Callable[[Callable[..., None]], Loop]:
    """Decorator that makes a `Loop` of so many turns, a function of its arguments."""
    return lambda kernel: Loop(kernel, count)
