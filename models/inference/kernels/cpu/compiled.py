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
from numba.core.codegen import JITCodeLibrary, get_host_cpu_features
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import AnalysisPass, register_pass
from numba.core.typed_passes import AnnotateTypes
from numba.core.types.misc import unliteral

from ....files import cache_folder
from ....maths import activations, cartesian, splines

log = logging.getLogger("tensormd")

HERE = Path(__file__).parent


class _Part(JITCodeLibrary):
    """Code that is optimised, and made machine code, as part of the kernels that call it.

    Numba does both for each function on the way, which doubles the time of compilation.
    """

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        self._ensure_finalized()
        return 0  # no machine code

    @property
    def codegen(self) -> Any:
        return self

    def set_env(self, name: str, environment: Any) -> None:
        """Nothing reads the environment of a function that Python does not call."""


@register_pass(mutates_CFG=False, analysis_only=True)
class _AsPart(AnalysisPass):
    _name = "tensormd_as_part"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        state.library = _Part(state.targetctx.codegen(), state.func_id.func_qualname)
        return False


class _PartCompiler(CompilerBase):
    def define_pipelines(self) -> list[Any]:
        pipeline = DefaultPassBuilder.define_nopython_pipeline(self.state)
        pipeline.add_pass_after(_AsPart, AnnotateTypes)
        pipeline.finalize()
        return [pipeline]


def internal(function: Callable[..., Any]) -> Any:
    """Decorator for the functions that kernels call.

    It is compiled once for all integers; Numba compiles a function again for each literal. A call
    from Python would end the process.
    """
    dispatcher = njit(
        error_model="numpy",
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
        pipeline_class=_PartCompiler,
    )(function)
    template = dispatcher.get_call_template

    def template_without_literals(args: Any, kws: dict[str, Any]) -> Any:
        kinds = {name: unliteral(kind) for name, kind in kws.items()}
        return template([unliteral(kind) for kind in args], kinds)

    dispatcher.get_call_template = template_without_literals
    return dispatcher


@functools.cache
def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function for calls from Python, compiled at its first call or loaded from the cache."""
    dispatcher = njit(error_model="numpy", nogil=True, no_cfunc_wrapper=True)(function)
    of = Path(inspect.getfile(function)).parent

    class Locator(_CacheLocator):  # tells Numba where the cache is and whether it is fresh
        def get_cache_path(self) -> str:
            return str(folder(of))

        def get_source_stamp(self) -> str:
            return sources_digest(of)

        def get_disambiguator(self) -> str:
            return ""

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
        name = hashlib.sha256(f"{function.__qualname__} {signature}".encode())
        with _locked(folder(of) / f"{name.hexdigest()[:24]}.lock"):
            return compile_it(signature)

    dispatcher._cache = SourcesCache(function)
    dispatcher.compile = compile_in_one_process
    return dispatcher


_ENTRIES: dict[Any, Callable[..., None]] = {}
"""Entry points by kernel and the kinds of the arguments."""


def entry_point(function: Callable[..., None], args: Any) -> Callable[..., None]:
    """The kernel compiled for such arguments: same dtypes, dimensions and memory layouts.

    It checks none of these. Numba's own dispatch finds the types of named tuples anew in each
    call, which takes as long as a small step.
    """
    key = (function, _kind(args))
    entry = _ENTRIES.get(key)
    if entry is None:
        dispatcher: Any = kernel(function)
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
        "tensormd compiles its kernels for this processor, once: some ten seconds (kept in %s; "
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
