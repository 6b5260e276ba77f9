"""Calls of kernels, of which a step makes many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...inference.kernels.cpu.compiled import kernel
from ...inference.kernels.cpu.threads import (
    may_use_threads,
    threads_of_kernels,
    threads_to_use,
)

_ENTRIES: dict[Any, Callable[..., None]] = {}
"""Compiled functions by kernel, threads and the kinds of the arguments. Numba's own dispatch finds
the types of named tuples anew in each call, which takes longer than most kernels."""


def launch(function: Callable[..., None], *args: Any) -> None:
    """Run a kernel with as many threads as torch uses."""
    threads = threads_to_use()
    parallel = threads > 1 and may_use_threads()
    key = (function, parallel, kind(args))
    entry = _ENTRIES.get(key)
    if entry is None:
        entry = _ENTRIES[key] = compiled_entry(kernel(function, parallel), args)
    if parallel:
        with threads_of_kernels(threads):
            entry(*args)
    else:
        entry(*args)


def kind(argument: Any) -> Any:
    """What Numba compiles a kernel for."""
    if isinstance(argument, np.ndarray):
        return argument.dtype, argument.ndim, argument.flags.num
    if isinstance(argument, tuple):
        return (type(argument), *map(kind, argument))
    return type(argument)


def compiled_entry(dispatcher: Any, args: tuple[Any, ...]) -> Callable[..., None]:
    """The function that Numba has compiled for such arguments."""
    types = tuple(dispatcher.typeof_pyval(argument) for argument in args)
    dispatcher.compile(types)
    entry: Callable[..., None] = dispatcher.overloads[types].entry_point
    return entry
