"""Compiles the kernels and caches the result on disk.

Numba's own cache looks for changes only in the file of the cached function: a kernel that calls
changed code in another file would be stale. Here the name of the cache folder contains a digest
of all sources that are compiled and of the processor, so any change starts an empty folder.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding
import numba
from numba import njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator
from numba.core.codegen import get_host_cpu_features

from ....files import cache_folder
from ....maths import activations, cartesian, splines

log = logging.getLogger("tensormd")

HERE = Path(__file__).parent

inlined = njit(error_model="numpy", nogil=True)
"""Decorator for the functions that kernels call."""
internal = njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""The same without an entry point for Python, which compiles slowly if there are many arguments.
A call from Python would end the process."""


@functools.cache
def kernel(function: Callable[..., Any], threads: bool) -> Callable[..., Any]:
    """A function for calls from Python, compiled at its first call or loaded from the cache.

    Threads share its loops over ``prange``, or else the calling thread runs them alone.
    """
    dispatcher = njit(error_model="numpy", nogil=True, parallel=threads)(function)
    of = Path(inspect.getfile(function)).parent

    class Locator(_CacheLocator):  # tells Numba where the cache is and whether it is fresh
        def get_cache_path(self) -> str:
            return str(folder(of))

        def get_source_stamp(self) -> str:
            return sources_digest(of)

        def get_disambiguator(self) -> str:
            return "threads" if threads else "serial"

        @classmethod
        def from_function(cls, py_func: Any, py_file: str) -> Locator:
            return cls()

    class Implementation(CompileResultCacheImpl):
        _locator_classes = [Locator]  # noqa: RUF012 (Numba's attribute)

    class SourcesCache(FunctionCache):
        _impl_class = Implementation

        def load_overload(self, sig: Any, target_context: Any) -> Any:
            found = super().load_overload(sig, target_context)
            if found is None:
                tell_once(self.cache_path)
            return found

    dispatcher._cache = SourcesCache(function)
    return dispatcher


@functools.cache
def tell_once(path: str) -> None:
    """Say that kernels are compiled, once for each folder that keeps them."""
    # A warning, so that Python shows it without any logging set up: this takes long.
    log.warning(
        "tensormd compiles its kernels for this processor, once: about half a minute (kept in %s)",
        path,
    )


@functools.cache
def sources_digest(of: Path = HERE) -> str:
    """Digest of the compiled sources, the compiler's version and settings, the processor.

    ``of`` is the folder of the kernels; those of other folders use the sources of this one.
    """
    settings = (numba.config.BOUNDSCHECK, numba.config.CPU_NAME, numba.config.CPU_FEATURES)
    # Machines that share a cache folder replace each other's files in it.
    processor = (llvmlite.binding.get_host_cpu_name(), get_host_cpu_features())
    about = f"{numba.__version__} {llvmlite.__version__} {settings} {processor}"
    digest = hashlib.sha256(about.encode())
    shared = [Path(str(module.__file__)) for module in (activations, cartesian, splines)]
    for file in (*(f for place in {HERE: 0, of: 0} for f in sorted(place.glob("*.py"))), *shared):
        if file.name.endswith("potential.py"):
            continue  # not compiled
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:24]


@functools.cache
def folder(of: Path = HERE) -> Path:
    """The cache folder for the current sources; a temporary one if it cannot be created."""
    wanted = cache_folder() / f"kernels-{sources_digest(of)}"
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=wanted):
            return wanted
    except OSError as error:
        log.warning("compiled kernels cannot be kept in %s (%s): this run alone", wanted, error)
        return Path(tempfile.mkdtemp(prefix="tensormd-kernels-"))
