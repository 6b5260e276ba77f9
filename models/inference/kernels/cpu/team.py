"""Threads that run the phases of a step together.

All of them call the same function with the same arguments, each when it gets to it. They take the
tasks of a phase one by one, and continue when all its tasks are done, by whichever thread. No
thread waits for one that holds no task: on a busy machine, the others do the work.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj
from numpy.typing import NDArray

from .compiled import internal

LINE = 8
"""int64 per cache line; each counter has a cache line of its own."""
YIELD_EVERY = 1_000
"""Reads of a counter before the thread yields to others, which may hold the awaited task."""
AWAKE = 4_000
"""Reads of a counter, some 0.1 ms, before a thread without a task sleeps."""


class Team(NamedTuple):
    """The threads of a step."""

    leads: bool
    """Whether this thread made the call, and the others help it."""
    number: int
    """Of the call, counted from one."""
    calls: NDArray[np.int64]
    """Number of calls that the threads know of: an array of a cache line."""
    counters: NDArray[np.int64]
    """Of the call: of threads, then of the tasks taken and the tasks done of each phase."""


class Schedule(NamedTuple):
    """The order of a step: phases, each of consecutive stages that share their tasks."""

    stages: NDArray[np.int64]
    """(stages, 3), operation, layer and chunk of receivers of each stage."""
    starts: NDArray[np.int64]
    """(phases + 1,), first stage of each phase, and the number of stages."""
    tasks: NDArray[np.int64]
    """(phases,), number of tasks."""
    ranges: NDArray[np.int64]
    """(phases, 2), place in ``bounds`` of a phase's first range of atoms, and number of ranges.
    Tasks beyond this number begin with the first range again, for the next chunk of channels."""
    bounds: NDArray[np.int64]
    """First atom of each range, and the end of each list of ranges."""


def counters(phases: int) -> NDArray[np.int64]:
    """The counters of a `Team`, new for each call."""
    return np.zeros((1 + 2 * phases) * LINE, np.int64)


class Tasks(NamedTuple):
    """The tasks of a phase: its ranges of atoms, repeated."""

    name: str
    """Consecutive stages share a name if none of them waits for atoms of another task."""
    bounds: tuple[int, ...]
    """First atom of each range, and the end of the last."""
    repeats: int = 1
    """Number of tasks per range, one for each chunk of channels."""


Stage = tuple[Tasks, int, int, int]
"""Tasks, operation, layer and chunk of receivers of a stage."""


def make_schedule(stages: Iterable[Stage]) -> Schedule:
    """Combine consecutive stages that share their tasks into phases."""
    phases = [(tasks, list(each)) for tasks, each in groupby(stages, lambda stage: stage[0])]
    lists = {tasks.bounds: 0 for tasks, _ in phases}
    end = 0
    for bounds in lists:
        lists[bounds] = end
        end += len(bounds)
    return Schedule(
        stages=np.array([stage[1:] for _, each in phases for stage in each]),
        starts=np.cumsum([0, *(len(each) for _, each in phases)]),
        tasks=np.array([(len(t.bounds) - 1) * t.repeats for t, _ in phases]),
        ranges=np.array([(lists[t.bounds], len(t.bounds) - 1) for t, _ in phases]),
        bounds=np.array([atom for bounds in lists for atom in bounds]),
    )


def even(atoms: int, most: int, threads: int = 1) -> tuple[int, ...]:
    """Bounds of equal ranges of at most ``most`` atoms, the same number for each thread."""
    count = threads * -(-atoms // (most * threads))
    size = max(1, -(-atoms // max(1, count)))
    return (*range(0, atoms, size), atoms)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = arrayobj.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


def _atomic(operation: str) -> Any:
    def fetch(typing: Any, array: Any, index: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
            return builder.atomic_rmw(operation, pointer, args[2], "seq_cst")

        return types.int64(array, types.intp, types.int64), generate

    return intrinsic(fetch)


fetch_add, fetch_max = _atomic("add"), _atomic("max")
"""array[index] += value, or its maximum with a value, as one operation; return the old value."""


@intrinsic
def fresh(typing: Any, array: Any, index: Any) -> Any:
    """The current array[index], including writes of other threads (an atomic load)."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(array, types.intp), generate


def _call(builder: Any, name: str, result: Any) -> None:
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, []), name)
    builder.call(function, [])


@intrinsic
def pause(typing: Any) -> Any:
    """Tell the processor that this thread is waiting for another."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if binding.get_default_triple().startswith("x86_64"):
            _call(builder, "llvm.x86.sse2.pause", ir.VoidType())
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def yield_processor(typing: Any) -> Any:
    """Let another thread run, which may be the one that this thread waits for."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if binding.address_of_symbol("sched_yield"):
            _call(builder, "sched_yield", ir.IntType(32))
        return context.get_dummy_value()

    return types.void(), generate


@internal
def join(team: Team) -> int:
    """Register this thread; returns its number, from zero.

    The others learn of the call only now: before, Python would let one thread run at a time.
    """
    fetch_max(team.calls, 0, team.number)
    return fetch_add(team.counters, 0, 1)


@internal
def leave(team: Team) -> None:
    """Let a thread that helped wait for the next call, for a moment: waking it takes as long."""
    looks = 0
    while not team.leads and looks < AWAKE and fresh(team.calls, 0) <= team.number:
        pause()
        looks += 1
        if looks % YIELD_EVERY == 0:
            yield_processor()


@internal
def next_task(team: Team, tasks: Any, phase: int) -> Any:
    """Phase and number, from zero, of the next task; after the last phase, the number of phases.

    At the end of a phase, it waits until all its tasks are done.
    """
    while phase < tasks.size:
        task = fetch_add(team.counters, (1 + 2 * phase) * LINE, 1)
        if task < tasks[phase]:
            return phase, task
        phase += 1
        looks = 0
        while fresh(team.counters, 2 * phase * LINE) < tasks[phase - 1]:
            pause()
            looks += 1
            if looks % YIELD_EVERY == 0:
                yield_processor()
    return phase, np.int64(0)


@internal
def done(team: Team, phase: int) -> None:
    """Report that a task of the phase is done."""
    fetch_add(team.counters, (2 + 2 * phase) * LINE, 1)
