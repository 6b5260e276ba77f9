"""Compiles the kernels and caches the result on disk.

Numba's own cache looks for changes only in the file of the cached function: a kernel that calls
changed code in another file would be stale. Here the name of the cache folder contains a digest
of all sources that are compiled and of the processor, so any change starts an empty folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding
import numba
import numpy as np
from filelock import FileLock, Timeout
from numba import njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator
from numba.core.codegen import get_host_cpu_features
from numba.core.types.misc import unliteral

from ....files import cache_folder
from ....maths import activations, cartesian, splines

log = logging.getLogger("tensormd")

HERE = Path(__file__).parent


def inlined(function: Callable[..., Any]) -> Any:
    """Decorator for the functions that kernels call."""
    return _compiled_once(njit(error_model="numpy", nogil=True)(function))


def internal(function: Callable[..., Any]) -> Any:
    """The same without an entry point for Python, which compiles slowly with many arguments.

    A call from Python would end the process.
    """
    decorate = njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
    return _compiled_once(decorate(function))


in_place = njit(error_model="numpy", inline="always")
"""Decorator for a function that is compiled as part of its caller.

The compiler optimises all that a kernel calls in each function on the way, so that each one less
saves seconds. Not for functions with sums that are called in a loop over ``prange``: with threads,
Numba takes these sums for sums over that loop."""


def _compiled_once(dispatcher: Any) -> Any:
    """Compile the function once for all integers; Numba compiles it again for each literal."""
    template = dispatcher.get_call_template

    def template_without_literals(args: Any, kws: dict[str, Any]) -> Any:
        kinds = {name: unliteral(kind) for name, kind in kws.items()}
        return template([unliteral(kind) for kind in args], kinds)

    dispatcher.get_call_template = template_without_literals
    return dispatcher


@functools.cache
def kernel(function: Callable[..., Any], threads: bool) -> Callable[..., Any]:
    """A function for calls from Python, compiled at its first call or loaded from the cache.

    Threads share its loops over ``prange``, or else the calling thread runs them alone.
    """
    options = {"nogil": True, "parallel": threads, "no_cfunc_wrapper": True}
    dispatcher = njit(error_model="numpy", **options)(function)
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

    compile_it = dispatcher.compile

    def compile_in_one_process(signature: Any) -> Any:
        name = hashlib.sha256(f"{function.__qualname__} {threads} {signature}".encode())
        with _locked(folder(of) / f"{name.hexdigest()[:24]}.lock"):
            return compile_it(signature)

    dispatcher._cache = SourcesCache(function)
    dispatcher.compile = compile_in_one_process
    return dispatcher


_ENTRIES: dict[Any, Callable[..., None]] = {}


def entry(
    function: Callable[..., Any], threads: bool, kinds: tuple[Any, ...], args: tuple[Any, ...]
) -> Callable[..., None]:
    """The compiled function of a `kernel` for such arguments, whose kinds are given.

    A call of the kernel itself has Numba find the types of named tuples anew, which takes 0.1 to
    0.2 ms for those of a network.
    """
    key = function, threads, kinds
    found = _ENTRIES.get(key)
    if found is None:
        dispatcher: Any = kernel(function, threads)
        types = tuple(dispatcher.typeof_pyval(argument) for argument in args)
        dispatcher.compile(types)
        found = _ENTRIES[key] = dispatcher.overloads[types].entry_point
    return found


def kind(argument: Any) -> Any:
    """What Numba compiles a kernel for."""
    if isinstance(argument, np.ndarray):
        return argument.dtype, argument.ndim, argument.flags.num
    if isinstance(argument, tuple):
        return (type(argument), *map(kind, argument))
    return type(argument)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock among processes, where the file system has them: the others need not compile."""
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=2)  # far more than it takes to load them
        except Timeout:
            log.warning("waiting for another process, which compiles the same kernels")
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        log.debug("%s cannot be locked (%s)", path, error)
    try:
        yield
    finally:
        lock.release()


@functools.cache
def tell_once(path: str) -> None:
    """Say that kernels are compiled, once for each folder that keeps them."""
    # A warning, so that Python shows it without any logging set up: this takes long.
    log.warning(
        "tensormd compiles its kernels for this processor, once: about half a minute (kept in %s; "
        "`tensormd warm` does it beforehand)",
        path,
    )


@functools.cache
def sources_digest(of: Path = HERE) -> str:
    """Digest of the compiled sources, the compiler's version and settings, the processor.

    ``of`` is the folder of the kernels; those of other folders use the sources of this one.
    """
    config = numba.config
    settings = (config.BOUNDSCHECK, config.OPT, config.CPU_NAME, config.CPU_FEATURES)
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
