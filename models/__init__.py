"""Physics and networks; eV and Angstrom; knows neither ASE nor OpenMM."""

from .checkpoint import load_potential, save_potential, write_torchmdnet_checkpoint
from .committee import Committee
from .graph import Graph, batch_graphs
from .heads.coulomb import CoulombEnergy
from .heads.dipole import DipoleReadout
from .heads.energy import EnergyReadout, GatedReadout, ScalarReadout
from .heads.polarizability import PolarizabilityReadout
from .inference.torchscript import export_torchscript
from .neighbors import NeighborList
from .networks.qet import QET
from .networks.tdn import TDN
from .networks.tensornet import TensorNet
from .networks.tensornet2 import TensorNet2
from .potential import Potential, Prediction

__all__ = [
    "QET",
    "TDN",
    "Committee",
    "CoulombEnergy",
    "DipoleReadout",
    "EnergyReadout",
    "GatedReadout",
    "Graph",
    "NeighborList",
    "PolarizabilityReadout",
    "Potential",
    "Prediction",
    "ScalarReadout",
    "TensorNet",
    "TensorNet2",
    "batch_graphs",
    "export_torchscript",
    "load_potential",
    "save_potential",
    "write_torchmdnet_checkpoint",
]
