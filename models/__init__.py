"""Physics and networks; eV and Angstrom; knows neither ASE nor OpenMM."""

from .checkpoint import load_potential, save_potential, write_torchmdnet_checkpoint
from .committee import Committee
from .export import export_torchscript
from .graph import Graph, NeighborList, batch_graphs
from .potential import Potential, Prediction
from .readout import EnergyReadout, ScalarReadout
from .tdn import TDN
from .tensornet import TensorNet

__all__ = [
    "TDN",
    "Committee",
    "EnergyReadout",
    "Graph",
    "NeighborList",
    "Potential",
    "Prediction",
    "ScalarReadout",
    "TensorNet",
    "batch_graphs",
    "export_torchscript",
    "load_potential",
    "save_potential",
    "write_torchmdnet_checkpoint",
]
