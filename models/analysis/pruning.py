r"""Networks without some of their irreps: I, A and S of TensorNet, degrees of TDN.

To remove an irrep is to project the features of atoms and edges onto the others after *every*
operation: after the sums over neighbours, every product and every map, for a product of what is
kept may hold what is not (for SO(3), the antisymmetric part of S S'). Two functions do it:

- `projected`: the whole network, whose products and directions have no components of the irrep;
- `pruned`: a smaller network without the rows, matrices and radial functions that only meet zeros
  then. It gives the same energies, to rounding, for less work.

What either takes, the networks know (`Network.project`, `Network.smaller`).
"""

import copy
from typing import Any

import torch

from ..checkpoint.build import build_potential
from ..networks.base import Kept
from ..potential import Potential


class ProjectedPotential(Potential):
    """A potential without some irreps that still has their weights; see `projected`."""

    kept: str

    @property
    def architecture(self) -> str:
        """Name of the network, and what is kept of it."""
        return f"{type(self.representation).__name__} projected onto {self.kept}"


def projected(potential: Potential, kept: Kept) -> ProjectedPotential:
    """A potential whose features are projected onto some irreps after every operation.

    Parameters
    ----------
    potential
        It is left as it is, and shares its weights: those of the result change with them.
    kept
        Irreps such as ``"IS"``, or degrees such as ``(0, 2)``.

    Returns
    -------
    The same modules by the same names, for inference and for training of the shared weights. It
    has no fused kernels and cannot be saved: see `pruned`.

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
    """The smaller network that is left when irreps are removed.

    Parameters
    ----------
    potential
        It is left as it is.
    kept
        As for `projected`.

    Returns
    -------
    A potential in evaluation mode, of the same dtype and on the same device, whose energies are
    those of ``projected(potential, kept)``, to rounding. Heads that read an irrep which is gone
    are gone too.

    Raises
    ------
    ValueError
        If the network does not have these irreps, or has none to remove; if heads read the norms
        of all irreps.
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
