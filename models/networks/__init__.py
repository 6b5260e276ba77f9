"""Networks: equivariant features of atoms from a graph and its edge vectors.

Checkpoints, training and its configuration read the table ``NETWORKS``.
"""

from __future__ import annotations

from typing import NamedTuple

from ..heads.energy import HEADS, EnergyReadout, GatedReadout, Readout, ScalarReadout
from .base import FeatureLayout, Irrep, Network
from .qet import QET
from .tdn import TDN
from .tensornet import TensorNet
from .tensornet2 import TensorNet2

__all__ = ["NETWORKS", "Architecture", "FeatureLayout", "Irrep", "Network"]


class Architecture(NamedTuple):
    """A network and its energy readout."""

    network: type[Network]
    readout: type[Readout]
    heads: tuple[str, ...] = ()
    """Kinds of readout to choose from; empty if there is only one kind."""


NETWORKS: dict[str, Architecture] = {
    "TensorNet": Architecture(TensorNet, EnergyReadout, HEADS),
    "TensorNet2": Architecture(TensorNet2, EnergyReadout),
    "QET": Architecture(QET, GatedReadout),
    "TDN": Architecture(TDN, ScalarReadout),
}
"""Architectures by class name, as in checkpoints; configurations use it in lower case."""
