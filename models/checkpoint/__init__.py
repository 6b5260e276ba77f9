"""Reading checkpoints of all supported formats, and writing our own."""

from .description import describe
from .loading import AnyPotential, convert, load_potential
from .native import save_potential
from .registry import registry_names
from .torchmdnet_writer import why_not_torchmdnet, write_torchmdnet_checkpoint

__all__ = [
    "AnyPotential",
    "convert",
    "describe",
    "load_potential",
    "registry_names",
    "save_potential",
    "why_not_torchmdnet",
    "write_torchmdnet_checkpoint",
]
