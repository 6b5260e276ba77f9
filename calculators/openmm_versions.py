"""Finds out, before a context is created, which OpenMM force classes that run torch work here."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import re
from importlib.metadata import PackageNotFoundError, version

BUILT_FOR = {"1.5": {"torch": ("2.9",), "openmm": ("8.4", "8.5")}}
"""Release of openmmtorch -> releases of other packages that its C++ library works with.

With another torch the first force evaluation fails; with OpenMM 8.6 the process crashes when a
System is copied or read from XML.
"""
INSTALL = "pip install 'tensormd[openmm]'"
INSTALL_TORCHFORCE = "pip install 'tensormd[torchforce]'"


def choose_force_class(wanted: str) -> str:
    """Choose ``torchforce`` or ``python``; ``auto`` prefers TorchForce if it works.

    Parameters
    ----------
    wanted
        The option ``engine`` of `create_force`.

    Raises
    ------
    ValueError
        If the engine is unknown or cannot run here; the message gives the versions found and the
        remedy.
    """
    if wanted not in ("auto", *FORCE_CLASSES):
        raise ValueError(f"unknown engine {wanted!r}: expected auto, {' or '.join(FORCE_CLASSES)}")
    problems = []
    for name in FORCE_CLASSES if wanted == "auto" else (wanted,):
        problem = FORCE_CLASSES[name]()
        if problem is None:
            return name
        problems.append(f"engine {name!r}: {problem}")
    raise ValueError("; ".join(problems))


def torchforce_problem() -> str | None:
    """Why TorchForce cannot run here, with the remedy, or None if it can."""
    plugin = _version("openmmtorch")
    if plugin is None:
        return f"openmmtorch is not installed: {INSTALL_TORCHFORCE}"
    for package, releases in BUILT_FOR.get(_release(plugin), {}).items():
        found = _version(package)
        if found is None or _release(found) not in releases:
            return (
                f"openmmtorch {plugin} is built for {package} {' or '.join(releases)}, but "
                f"{package} {found} is installed: {INSTALL_TORCHFORCE}"
            )
    try:
        importlib.import_module("torch")  # its libraries must be loaded before openmm's
        _import_quietly("openmmtorch")
    except ImportError as error:
        return f"openmmtorch {plugin} does not load ({error}): {INSTALL_TORCHFORCE}"
    return _kernels_problem()


def python_problem() -> str | None:
    """Why OpenMM's PythonForce cannot run here, with the remedy, or None if it can."""
    if importlib.util.find_spec("openmm") is None:
        return f"openmm is not installed: {INSTALL}"
    import openmm

    if not hasattr(openmm, "PythonForce"):
        return f"openmm {openmm.version.version} has no PythonForce (8.4 has): {INSTALL}"
    return None


@functools.cache
def _kernels_problem() -> str | None:
    """Why OpenMM has no kernels for TorchForce, or None once it has them.

    OpenMM loads its plugins when it is imported. Without torch's libraries, which `import torch`
    loads, those of openmmtorch fail: they are loaded here.
    """
    from openmm import Platform

    problems = []
    for failure in Platform.getPluginLoadFailures():
        plugin = re.match(r"Error loading library (.*?OpenMMTorch\w*\.\w+): ", failure)
        if plugin is None:
            continue
        try:
            Platform.loadPluginLibrary(plugin[1])
        except Exception as error:  # for a platform that is not there, such as OpenCL
            problems.append(" ".join(str(error).split()))
    if Platform.getPlatformByName("Reference").supportsKernels(["CalcTorchForce"]):
        return None
    why = "; ".join(problems) or "no such plugin"
    return f"OpenMM has no kernels for it ({why}): {INSTALL_TORCHFORCE}"


FORCE_CLASSES = {"torchforce": torchforce_problem, "python": python_problem}
"""Value of the option ``engine`` -> function that returns why this force class cannot run; the
preferred class first."""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _release(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _import_quietly(name: str) -> None:
    """Import openmmtorch without the warning that it logs about its own imports."""

    def other(record: logging.LogRecord) -> bool:
        return "simtk" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(other)
    try:
        importlib.import_module(name)
    finally:
        root.removeFilter(other)
