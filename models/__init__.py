"""Physics and networks; eV and Angstrom; knows neither ASE nor OpenMM."""

from .graph import Graph, NeighborList, batch_graphs
from .potential import Potential, Prediction
from .readout import EnergyReadout
from .tensornet import TensorNet

__all__ = [
    "EnergyReadout",
    "Graph",
    "NeighborList",
    "Potential",
    "Prediction",
    "TensorNet",
    "batch_graphs",
]
