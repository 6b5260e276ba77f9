"""Thin adapters that run a potential in ASE, OpenMM, openmm-ml and LAMMPS."""

import importlib
from typing import Any

__all__ = [
    "PotentialCalculator",
    "TDNCalculator",
    "TensorNetCalculator",
    "attach_lammps",
    "create_force",
]

# openmm-ml imports this package in every process that imports openmm-ml, to find its entry point:
# where torch is broken, that must not end in a traceback before anybody asked for tensormd.
try:
    importlib.import_module("torch")
except (ImportError, OSError) as error:
    _torch_problem = f"{type(error).__name__}: {error}"

    def __getattr__(name: str) -> Any:
        if name in __all__:
            raise ImportError(f"{__name__}.{name} needs torch, which fails: {_torch_problem}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

else:
    from .ase import PotentialCalculator, TDNCalculator, TensorNetCalculator
    from .lammps import attach_lammps
    from .openmm import create_force
