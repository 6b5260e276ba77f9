"""Networks: equivariant features of atoms from a graph and its edge vectors.

Checkpoints, training and its configuration read the table ``NETWORKS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ..heads.energy import HEADS, EnergyReadout, GatedReadout, Readout, ScalarReadout
from .base import FeatureLayout, Irrep, Network
from .qet import QET
from .tdn import PUBLISHED, TDN
from .tensornet import TensorNet
from .tensornet2 import TensorNet2

__all__ = ["NETWORKS", "Architecture", "FeatureLayout", "Irrep", "Network"]


class Architecture(NamedTuple):
    """A network and its energy readout."""

    network: type[Network]
    readout: type[Readout]
    heads: tuple[str, ...] = ()
    """Kinds of readout to choose from; empty if there is only one kind."""
    earlier: Mapping[str, Any] = MappingProxyType({})
    """Options of the network that older files lack, with the values that such files mean."""

    def complete(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options of the network as a file has them, with those that an older file lacks."""
        return {**self.earlier, **options}


NETWORKS: dict[str, Architecture] = {
    "TensorNet": Architecture(TensorNet, EnergyReadout, HEADS),
    "TensorNet2": Architecture(TensorNet2, EnergyReadout),
    "QET": Architecture(QET, GatedReadout),
    "TDN": Architecture(TDN, ScalarReadout, earlier=PUBLISHED),
}
"""Architectures by class name, as in checkpoints; configurations use it in lower case."""
