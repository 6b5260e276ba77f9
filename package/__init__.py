"""Molecular dynamics and geometry relaxation with TensorNet and TDN potentials.

>>> from tensormd import TensorNetCalculator
>>> calculator = TensorNetCalculator("ethanol")
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from . import earlier_names

if TYPE_CHECKING:
    from .calculators import (
        PotentialCalculator,
        TDNCalculator,
        TensorNetCalculator,
        attach_lammps,
        create_force,
    )
    from .models import (
        TDN,
        Potential,
        TensorNet,
        export_torchscript,
        load_potential,
        save_potential,
    )

__all__ = [
    "TDN",
    "Potential",
    "PotentialCalculator",
    "TDNCalculator",
    "TensorNet",
    "TensorNetCalculator",
    "__version__",
    "attach_lammps",
    "create_force",
    "export_torchscript",
    "load_potential",
    "save_potential",
]

__version__ = version("tensormd")

_CALCULATORS = {
    "PotentialCalculator",
    "TDNCalculator",
    "TensorNetCalculator",
    "attach_lammps",
    "create_force",
}

earlier_names.install()


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds: it is left until a name that needs it is used.
    if name not in __all__:
        raise AttributeError(f"module 'tensormd' has no attribute {name!r}")
    folder = "calculators" if name in _CALCULATORS else "models"
    return getattr(importlib.import_module(f".{folder}", __name__), name)


def __dir__() -> list[str]:
    return __all__
