"""Calls of compiled kernels from Python, and the threads that run them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch

from ..forks import may_start_threads
from .cpu.compiled import kernel

_ENTRIES: dict[Any, Callable[..., None]] = {}
"""Entry points by kernel, threads and the kinds of the arguments."""
_ONE_AT_A_TIME = threading.Lock()
_layer: str | None = None
"""Numba's threading layer, once its threads are started."""
_started_in: int | None = None
"""Id of the process that started the kernels' threads; its forks cannot use them."""


def entry_point(function: Callable[..., None], threads: bool, args: Any) -> Callable[..., None]:
    """The kernel compiled for such arguments: same dtypes, dimensions and memory layouts.

    It checks none of these. Numba's own dispatch finds the types of named tuples anew in each
    call, which takes as long as a small step. ``threads`` is that of `kernel`.
    """
    key = (function, threads, _kind(args))
    entry = _ENTRIES.get(key)
    if entry is None:
        if threads:
            _start_threads()
        dispatcher: Any = kernel(function, threads)
        types = tuple(dispatcher.typeof_pyval(argument) for argument in args)
        dispatcher.compile(types)
        entry = _ENTRIES[key] = dispatcher.overloads[types].entry_point
    return entry


def _kind(argument: Any) -> Any:
    """What Numba compiles a kernel for."""
    if isinstance(argument, np.ndarray):
        return argument.dtype, argument.ndim, argument.flags.num
    if isinstance(argument, tuple):
        return (type(argument), *map(_kind, argument))
    return type(argument)


def threads_to_use() -> int:
    """Number of threads that torch uses, as far as Numba has them."""
    return min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)


def may_use_threads() -> bool:
    """False in a fork of a process that started threads, because threads do not survive a fork."""
    global _started_in
    if _started_in is None:
        _started_in = os.getpid()
    return _started_in == os.getpid() and may_start_threads()


def run_in_threads(threads: int, entry: Callable[..., None], args: Any) -> None:
    """Run an `entry_point` for threads with so many of them."""
    if _layer in ("omp", "tbb"):
        _run(threads, entry, args)
        return
    with _ONE_AT_A_TIME:  # other pools end the process if two threads enter at the same time
        _run(threads, entry, args)


def _run(threads: int, entry: Callable[..., None], args: Any) -> None:
    before = numba.get_num_threads()
    if threads == before:
        entry(*args)
        return
    numba.set_num_threads(threads)
    try:
        entry(*args)
    finally:
        numba.set_num_threads(before)


def _start_threads() -> None:
    """Let numba start its threads, which sets OpenMP's number of threads: that of torch."""
    global _layer
    if _layer is not None:
        return
    before = torch.get_num_threads()
    numba.get_num_threads()  # compiling would start them as well
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)
    _layer = numba.threading_layer()
