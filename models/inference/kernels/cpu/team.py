"""Threads that go through the phases of a step together, within one parallel region.

A region costs ten microseconds to enter, as much as a phase of a small molecule takes. The
threads of one region take the tasks of a phase one by one instead, and go on when all of its
tasks are done, whoever did them. Nobody waits for a thread that has no task in hand: on a busy
machine, or with fewer threads than were asked for, the others do the work.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from .compiled import inlined

LINE = 8
"""int64 in a cache line: counters are kept apart."""
YIELD_EVERY = 1_000
"""Looks at a counter before another thread is let run, which may have the task in hand."""


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = arrayobj.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


@intrinsic
def fetch_add(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """array[index] += value in one indivisible operation; returns what was there."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
        return builder.atomic_rmw("add", pointer, args[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), generate


@intrinsic
def fresh(typing: Any, array: Any, index: Any) -> Any:
    """array[index] as the other threads left it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(array, types.intp), generate


@intrinsic
def pause(typing: Any) -> Any:
    """Tell the processor that this thread waits for another."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if binding.get_default_triple().startswith("x86_64"):
            kind = ir.FunctionType(ir.VoidType(), [])
            function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause")
            builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def yield_processor(typing: Any) -> Any:
    """Let another thread run, which may be the one that is waited for."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if binding.address_of_symbol("sched_yield"):
            kind = ir.FunctionType(ir.IntType(32), [])
            function = cgutils.get_or_insert_function(builder.module, kind, "sched_yield")
            builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), generate


@inlined
def counters(phases: int) -> Any:
    """What the threads share: members, then tasks taken and tasks done of each phase."""
    return np.zeros((1 + 2 * phases) * LINE, np.int64)


@inlined
def join(state: Any) -> int:
    """The number of this thread, from zero."""
    return fetch_add(state, 0, 1)


@inlined
def take(state: Any, phase: int) -> int:
    """The next task of a phase, from zero."""
    return fetch_add(state, (1 + 2 * phase) * LINE, 1)


@inlined
def done(state: Any, phase: int) -> None:
    """Tell that a task of the phase is done."""
    fetch_add(state, (2 + 2 * phase) * LINE, 1)


@inlined
def finish(state: Any, phase: int, tasks: int) -> int:
    """Wait until all tasks of a phase are done; returns the next phase."""
    looks = 0
    while fresh(state, (2 + 2 * phase) * LINE) < tasks:
        pause()
        looks += 1
        if looks % YIELD_EVERY == 0:
            yield_processor()
    return phase + 1
