"""Physics and networks; eV and Angstrom; knows neither ASE nor OpenMM."""

from .checkpoint import load_potential, save_potential, write_torchmdnet_checkpoint
from .committee import Committee
from .graph import Graph, batch_graphs
from .heads.dipole import DipoleReadout
from .heads.energy import EnergyReadout, ScalarReadout
from .heads.polarizability import PolarizabilityReadout
from .inference.torchscript import export_torchscript
from .neighbors import NeighborList
from .networks.tdn import TDN
from .networks.tensornet import TensorNet
from .potential import Potential, Prediction

__all__ = [
    "TDN",
    "Committee",
    "DipoleReadout",
    "EnergyReadout",
    "Graph",
    "NeighborList",
    "PolarizabilityReadout",
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
