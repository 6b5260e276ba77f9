r"""Networks without some of their orders: TensorNet's irreps I, A and S, TDN's degrees.

To remove an order is to project the features of atoms and edges onto the others after *every*
operation: after the sums over neighbours, every product and every map, for a product of what is
kept may hold what is not (for SO(3), the antisymmetric part of S S'). Two things do it:

- `projected`: the whole network, whose products and directions have no components of the order;
- `prune_irreps` and `prune_degrees`: a smaller network without the rows, matrices and radial
  functions that only meet zeros then. It gives the same energies, to rounding, for less work.

TensorNet's readout takes the layer norm of 3F invariants, of which those of a removed irrep are
zero, though what the norm makes of them is not. With n numbers in the norm, K of them kept, and
:math:`\hat x = (x - \mu) / \sigma`, the n - |K| others are each

.. math:: \hat x_0 = -\frac{\mu}{\sigma} = -\frac{1}{n - |K|} \sum_{c \in K} \hat x_c

which is linear in those kept: the first matrix W of the head, with the norm's w and b, becomes

.. math::
    W'_{oc} = W_{oc} w_c - \frac{1}{n - |K|} \sum_{d \notin K} W_{od} w_d, \qquad
    b'_o = b_o + \sum_{\text{all } c} W_{oc} b_c

and the norm, without w and b, still divides by n (`readout.PaddedLayerNorm`).
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.build import build_potential
from ..heads.energy import EnergyReadout
from ..maths.cartesian import TensorAlgebra, check_irreps
from ..maths.harmonics import check_degrees, degree_slices
from ..networks.tdn import TDN
from ..networks.tdn_product import ExactCoupling, FactoredCoupling
from ..networks.tensornet import TensorNet
from ..potential import Potential

# Networks that know what is kept


class ProjectedPotential(Potential):
    """A potential without some orders that still has their weights; see `projected`."""

    kept: str

    @property
    def architecture(self) -> str:
        """Name of the network, and what is kept of it."""
        return f"{type(self.representation).__name__} projected onto {self.kept}"


def projected(potential: Potential, kept: str | Sequence[int]) -> ProjectedPotential:
    """A potential whose features are projected onto some orders after every operation.

    Parameters
    ----------
    potential
        With a `TensorNet` or a `TDN`. It is left as it is, and shares its weights: those of the
        result change with them.
    kept
        Irreps such as ``"IS"``, or degrees such as ``(0, 2)``.

    Returns
    -------
    The same modules by the same names, for inference and for training of the shared weights. It
    has no fused kernels and cannot be saved: see `prune_irreps` and `prune_degrees`.

    Raises
    ------
    ValueError
        If the network does not have these orders, or is of another architecture.
    """
    tensors = [*potential.parameters(), *potential.buffers()]
    twin = copy.deepcopy(potential, {id(tensor): tensor for tensor in tensors})
    network = twin.representation
    if isinstance(network, TensorNet):
        irreps = _subset_of_irreps(network, kept)
        for module in network.modules():
            if isinstance(getattr(module, "algebra", None), TensorAlgebra):
                module.algebra = TensorAlgebra(network.irreps, irreps)
        network.to(next(potential.parameters()).device)
        name = irreps
    elif isinstance(network, TDN):
        degrees = _subset_of_degrees(network, kept)
        each = [torch.full((2 * n + 1,), float(n in degrees)) for n in network.degrees]
        _mask(network.coupling, torch.cat(each).double())
        name = "l = " + ", ".join(map(str, degrees))
    else:
        raise ValueError(_NO_ORDERS.format(potential.architecture))
    twin.__class__ = ProjectedPotential
    assert isinstance(twin, ProjectedPotential)
    twin.kept = name
    return twin


def _mask(coupling: nn.Module, mask: Tensor) -> None:
    """Leave some components of features, harmonics and results out of a tensor product."""
    if isinstance(coupling, FactoredCoupling):
        mask = mask.to(coupling.a.device).unsqueeze(1)
        coupling.a, coupling.b, coupling.c = (
            f * mask for f in (coupling.a, coupling.b, coupling.c)
        )
    else:
        assert isinstance(coupling, ExactCoupling)
        mask = mask.to(coupling.tensor.device)
        coupling.tensor = coupling.tensor * mask[:, None, None] * mask[:, None] * mask


# Smaller networks


def prune_irreps(potential: Potential, irreps: str) -> Potential:
    """The smaller network that is left of a TensorNet when irreps are removed.

    Parameters
    ----------
    potential
        With a `TensorNet`; it is left as it is.
    irreps
        What is kept: ``IS``, ``IA`` or ``I``.

    Returns
    -------
    A potential in evaluation mode, of the same dtype and on the same device, whose energies are
    those of ``projected(potential, irreps)``, to rounding.

    Raises
    ------
    ValueError
        If the network does not have these irreps, or is of another architecture.
    """
    network, readout = potential.representation, potential.readout
    if not isinstance(network, TensorNet) or not isinstance(readout, EnergyReadout):
        raise ValueError(f"{potential.architecture} has no irreps I, A and S: TensorNet has them")
    kept = _subset_of_irreps(network, irreps)
    if potential.heads:
        raise ValueError(
            f"the potential has heads ({', '.join(potential.heads)}), which read the norms of all "
            "irreps: remove irreps from a potential without them"
        )
    old, channels = network.irreps, network.channels
    places = [old.index(irrep) for irrep in kept]
    config: dict[str, Any] = network.config | {"irreps": kept}
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in TensorNet(**config).state_dict().items()}
    tensors = _copies(potential)
    for name, shape in shapes.items():
        name = f"representation.{name}"
        if tensors[name].shape != shape:
            # What belongs to irreps lies block by block along the first dimension.
            blocks = tensors[name].chunk(len(old))
            tensors[name] = torch.cat([blocks[place] for place in places])
    columns = torch.arange(len(old) * channels).view(len(old), channels)[places].flatten()
    tensors |= _without_invariants(readout, columns)
    fewer = readout.config | {"irreps": kept, "norm_size": readout.norm_size}
    return _rebuilt(potential, config, {"channels": channels} | fewer, tensors, {})


def prune_degrees(potential: Potential, degrees: Sequence[int]) -> Potential:
    """The smaller network that is left of a TDN when degrees are removed.

    Parameters
    ----------
    potential
        With a `TDN`; it is left as it is.
    degrees
        What is kept, 0 among it.

    Returns
    -------
    A potential in evaluation mode, of the same dtype and on the same device, whose energies are
    those of ``projected(potential, degrees)``, to rounding. Heads that read a degree which is
    gone are gone too.

    Raises
    ------
    ValueError
        If the network does not have these degrees, or is of another architecture.
    """
    network = potential.representation
    if not isinstance(network, TDN):
        raise ValueError(f"{potential.architecture} has no degrees: TDN has them")
    kept = _subset_of_degrees(network, degrees)
    places = degree_slices(network.degrees)
    rows = [network.degrees.index(degree) for degree in kept]
    needed = {"dipole": 1, "polarizability": 2}
    heads = {
        name: dict[str, Any](head.config)  # type: ignore[arg-type]
        for name, head in potential.heads.items()
        if needed[name] in kept
    }
    lost = tuple(f"heads.{name}." for name in potential.heads if name not in heads)
    tensors = {k: tensor for k, tensor in _copies(potential).items() if not k.startswith(lost)}
    for name, tensor in tensors.items():
        if name.startswith("representation.coupling."):
            tensors[name] = torch.cat([tensor[places[degree]] for degree in kept])
        elif name.endswith((".norm_1.weight", ".norm_2.weight")):
            tensors[name] = tensor[rows]
    config = network.config | {"degrees": list(kept)}
    if config["product"] == "exact_cg":
        config["lmax"] = max(kept)
    readout = {"channels": network.channels} | potential.readout.config
    return _rebuilt(potential, config, readout, tensors, heads)


def _copies(potential: Potential) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in potential.state_dict().items()}


def _without_invariants(readout: EnergyReadout, kept: Tensor) -> dict[str, Tensor]:
    """The readout's tensors if all invariants but those of some columns are zero; see above."""
    first = {"mlp": "head.network.0", "gated": "head.linear", "linear": "head.linear"}
    name = first[readout.config["head"]]
    linear = readout.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    w, b, matrix, bias = (
        t.detach().double()
        for t in (readout.norm.weight, readout.norm.bias, linear.weight, linear.bias)
    )
    scaled = matrix * w
    zeros = readout.norm_size - len(kept)
    gone = scaled.sum(1) - scaled[:, kept].sum(1)
    dtype = readout.norm.weight.dtype
    return {
        "readout.norm.weight": torch.ones_like(w[kept]).to(dtype),
        "readout.norm.bias": torch.zeros_like(b[kept]).to(dtype),
        f"readout.{name}.weight": (scaled[:, kept] - gone.unsqueeze(1) / max(zeros, 1)).to(dtype),
        f"readout.{name}.bias": (bias + matrix @ b).to(dtype),
    }


def _rebuilt(
    potential: Potential,
    network: Mapping[str, Any],
    readout: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    heads: Mapping[str, Mapping[str, Any]],
) -> Potential:
    """A potential of other tensors and of the same repulsion, units, elements and metadata."""
    repulsion = potential.repulsion
    built = build_potential(
        name="the smaller network",
        architecture=type(potential.representation).__name__,
        network=network,
        readout=readout,
        repulsion=None if repulsion is None else repulsion.config,
        tensors=tensors,
        elements=potential.elements,
        units=(potential.length_unit, potential.energy_unit),
        metadata=copy.deepcopy(potential.metadata),
        heads=heads,
    )
    return built.to(next(potential.parameters()).device)


# What may be kept

_NO_ORDERS = "{} has no orders to remove: expected a Potential with a TensorNet or a TDN"


def _subset_of_irreps(network: TensorNet, kept: str | Sequence[int]) -> str:
    if not isinstance(kept, str):
        raise ValueError(f"a TensorNet has irreps, not degrees {list(kept)}: expected IS, IA or I")
    check_irreps(kept)
    if not set(kept) <= set(network.irreps):
        raise ValueError(f"the network has the irreps {network.irreps}: {kept} is no part of them")
    return kept


def _subset_of_degrees(network: TDN, kept: str | Sequence[int]) -> tuple[int, ...]:
    if isinstance(kept, str):
        raise ValueError(f"a TDN has degrees, not irreps {kept}: expected (0, 2) or the like")
    found = check_degrees(kept)
    if not set(found) <= set(network.degrees):
        raise ValueError(
            f"the network has the degrees {network.degrees}: {list(kept)} is no part of them"
        )
    return found
