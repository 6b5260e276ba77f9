"""Calls of kernels, of which a step makes many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...inference.kernels.cpu.compiled import entry, kind
from ...inference.kernels.cpu.threads import (
    may_use_threads,
    threads_of_kernels,
    threads_to_use,
)


def launch(function: Callable[..., None], *args: Any) -> None:
    """Run a kernel with as many threads as torch uses."""
    threads = threads_to_use()
    parallel = threads > 1 and may_use_threads()
    run = entry(function, parallel, kind(args), args)
    if parallel:
        with threads_of_kernels(threads):
            run(*args)
    else:
        run(*args)
