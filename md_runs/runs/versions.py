"""Versions of what a run's numbers depend on."""

from __future__ import annotations

import platform
from importlib import metadata

PACKAGES = ("tensormd", "torch", "ase", "numpy", "vesin", "torchmd-net", "safetensors")
OPTIONAL = ("openmm", "openmmtorch", "openmmml")


def package_version(name: str) -> str | None:
    """The installed version, or None; nothing is imported."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions(optional: bool = False) -> dict[str, str | None]:
    """Python's version and those of the packages that runs use."""
    names = PACKAGES + OPTIONAL if optional else PACKAGES
    return {"python": platform.python_version(), **{name: package_version(name) for name in names}}
