"""Reading every kind of checkpoint, and writing our own."""

from .description import describe
from .loading import AnyPotential, convert, load_potential
from .native import save_potential
from .registry import registry_names

__all__ = [
    "AnyPotential",
    "convert",
    "describe",
    "load_potential",
    "registry_names",
    "save_potential",
]
