"""Networks: a graph and its edge vectors in, equivariant features of the atoms out.

``NETWORKS`` is the list of them that checkpoints, training and its configuration read.
"""

from __future__ import annotations

from typing import NamedTuple

from ..heads.energy import HEADS, EnergyReadout, Readout, ScalarReadout
from .base import FeatureLayout, Irrep, Network
from .tdn import TDN
from .tensornet import TensorNet

__all__ = ["NETWORKS", "Architecture", "FeatureLayout", "Irrep", "Network"]


class Architecture(NamedTuple):
    """A network and the readout of its energies."""

    network: type[Network]
    readout: type[Readout]
    heads: tuple[str, ...] = ()
    """Kinds of readout to choose from; none: there is one kind."""


NETWORKS: dict[str, Architecture] = {
    "TensorNet": Architecture(TensorNet, EnergyReadout, HEADS),
    "TDN": Architecture(TDN, ScalarReadout),
}
"""By the name of the class, which checkpoints have for them; configurations have it lowercase."""
