r"""Networks without some of their irreps: I, A and S of TensorNet, degrees of TDN.

Removing an irrep means projecting the features of atoms and edges onto the others after *every*
operation: sums over neighbours, products and maps. A product of kept irreps may contain a removed
one (for SO(3), the antisymmetric part of S S'). There are two functions:

- `projected`: the whole network, whose products and directions have no components of the irrep;
- `pruned`: a smaller network without the rows, matrices and radial functions that would only meet
  zeros. It gives the same energies, up to rounding, with less work.

The networks implement both (`Network.project`, `Network.smaller`).
"""

import copy
from typing import Any

import torch

from ..checkpoint.build import build_potential
from ..networks.base import Kept
from ..potential import Potential


class ProjectedPotential(Potential):
    """A potential without some irreps, but with their weights; see `projected`."""

    kept: str

    @property
    def architecture(self) -> str:
        """Name of the network, and the irreps that are kept."""
        return f"{type(self.representation).__name__} projected onto {self.kept}"


def projected(potential: Potential, kept: Kept) -> ProjectedPotential:
    """Potential whose features are projected onto some irreps after every operation.

    Parameters
    ----------
    potential
        Potential; not changed. The result shares its weights.
    kept
        Irreps to keep, such as ``"IS"``, or degrees such as ``(0, 2)``.

    Returns
    -------
    ProjectedPotential
        Potential with the same modules and names, for inference and for training of the shared
        weights. It has no fused kernels and cannot be saved: see `pruned`.

    Raises
    ------
    ValueError
        If the network does not have these irreps, or has none to remove.
    """
    tensors = [*potential.parameters(), *potential.buffers()]
    twin = copy.deepcopy(potential, {id(tensor): tensor for tensor in tensors})
    name = twin.representation.project(kept)
    twin.__class__ = ProjectedPotential
    assert isinstance(twin, ProjectedPotential)
    twin.kept = name
    return twin


def pruned(potential: Potential, kept: Kept) -> Potential:
    """Smaller network after removing irreps.

    Parameters
    ----------
    potential
        Potential; not changed.
    kept
        Irreps to keep, as for `projected`.

    Returns
    -------
    Potential
        Potential in evaluation mode, with the same dtype and device, whose energies are those of
        ``projected(potential, kept)``, up to rounding. Heads that read a removed irrep are removed
        too.

    Raises
    ------
    ValueError
        If the network does not have these irreps, or has none to remove, or if heads read the
        norms of all irreps.
    """
    network, repulsion = potential.representation, potential.repulsion
    kept = network.parse_kept(kept)
    layout = network.feature_layout()
    if potential.heads and layout.norms:
        raise ValueError(
            f"the potential has heads ({', '.join(potential.heads)}), which read the norms of all "
            "irreps: remove irreps from a potential without them"
        )
    tensors = {name: tensor.detach().clone() for name, tensor in potential.state_dict().items()}
    smaller = network.smaller(kept, potential.readout, tensors)
    with torch.device("meta"):
        left = type(network)(**smaller.network).feature_layout()
    heads = {
        name: dict[str, Any](head.config)  # type: ignore[arg-type]
        for name, head in potential.heads.items()
        if left.of_degree(head.degree) is not None  # type: ignore[arg-type]
    }
    lost = tuple(f"heads.{name}." for name in potential.heads if name not in heads)
    built = build_potential(
        name="the smaller network",
        architecture=type(network).__name__,
        network=smaller.network,
        readout={"channels": network.channels} | smaller.readout,
        repulsion=None if repulsion is None else repulsion.config,
        tensors={k: t for k, t in (tensors | smaller.tensors).items() if not k.startswith(lost)},
        elements=potential.elements,
        units=(potential.length_unit, potential.energy_unit),
        metadata=copy.deepcopy(potential.metadata),
        heads=heads,
    )
    return built.to(next(potential.parameters()).device)
