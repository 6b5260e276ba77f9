"""Calls of kernels, of which a step makes many."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import numba
import torch

from ...inference.forks import may_start_threads
from ...inference.kernels.cpu.compiled import entry_point

_ONE_AT_A_TIME = threading.Lock()
_layer: str | None = None
"""Numba's threading layer, once its threads are started."""
_started_in: int | None = None
"""Id of the process that started the kernels' threads; its forks cannot use them."""


def launch(function: Callable[..., None], *args: Any) -> None:
    """Run a kernel with as many threads as torch uses, as far as Numba has them."""
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    if threads == 1 or not may_use_threads():
        entry_point(function, args)(*args)
        return
    _start_threads()
    run_in_threads(threads, entry_point(function, args, threads=True), args)


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
