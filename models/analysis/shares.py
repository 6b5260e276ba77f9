r"""Shares of each order in the features, the energy and the forces.

With X the features :math:`X^{(k)}_{imc}` of atom i, component m and channel c after layer k, and
l an order, i.e. a set of components:

norm share
    :math:`\|X_l\|^2 / \sum_{l'} \|X_{l'}\|^2`, summed over atoms and channels; per component, each
    squared norm is first divided by 2l + 1.
energy share
    gradient times feature, :math:`a_l = \sum_{ic} |\sum_{m \in l} g_{imc} X_{imc}|` with
    :math:`g = \partial E / \partial X`, divided by the sum over all orders: the change of the
    energy, to first order, with the size of these features. It is invariant under rotations, and
    under scaling of a channel that the next layer's weights undo.
force share
    :math:`\langle F_l, F \rangle / \langle F, F \rangle` with
    :math:`F_l = -\sum_{m \in l} g_m \cdot \partial X_m / \partial R`, the forces that act
    through that order at that layer. The remainder is what later layers read directly from the
    edges: :math:`F = \sum_l F_l + F_{edges}`, and the shares sum to one. F_l is the difference
    between the forces and those with the gradient stopped at that order. A share may be negative
    or above one if orders oppose each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.frames import Frames
from ..graph import Graph, within
from ..potential import Potential, assemble
from .batches import batches
from .layout import Layout, changed


@dataclass(frozen=True)
class Shares:
    """Shares for K layers (including the embedding) and O orders; float64."""

    norm: Tensor
    """Norm shares, (K, O); they sum to 1 over the orders."""
    norm_per_component: Tensor
    """Norm shares per component, (K, O); they sum to 1 over the orders."""
    rms: Tensor
    """Root mean square of a component, (K, O)."""
    energy: Tensor
    """Energy shares, (K, O); they sum to 1 over the orders."""
    gradient_rms: Tensor
    """Root mean square of a component of dE/dX, (K, O), eV per unit of the feature."""
    force: Tensor
    """Force shares, (K, O + 1), which sum to 1; the last column is F_edges."""
    force_rms: Tensor
    """Root mean square of a component of F_l, (K, O + 1), eV/A."""


def measure_shares(potential: Potential, frames: Frames, layout: Layout) -> Shares:
    """Shares over all frames, as the module's docstring defines them."""
    layers, orders = len(layout.layers), len(layout.orders)
    squares, slopes, flows = (torch.zeros(layers, orders, dtype=torch.float64) for _ in range(3))
    products, sizes = (torch.zeros(layers, orders + 1, dtype=torch.float64) for _ in range(2))
    total = 0.0
    atoms = 0
    channels = potential.representation.channels
    for graph in batches(frames):
        atoms += len(graph.numbers)
        features, gradients, forces, paths = _paths(potential, graph, layout)
        total += float(forces.square().sum())
        for k, (x, g) in enumerate(zip(features, gradients, strict=True)):
            squares[k] += layout.contract(x, x).double().sum((1, 2))
            slopes[k] += layout.contract(g, g).double().sum((1, 2))
            flows[k] += layout.contract(g, x).double().abs().sum((1, 2))
            rest = forces - torch.stack(paths[k]).sum(0)
            for order, path in enumerate([*paths[k], rest]):
                products[k, order] += (path * forces).sum()
                sizes[k, order] += path.square().sum()
    components = torch.tensor([order.size for order in layout.orders], dtype=torch.float64)
    counted = components * atoms * channels
    return Shares(
        _share(squares),
        _share(squares / components),
        (squares / counted).sqrt(),
        _share(flows),
        (slopes / counted).sqrt(),
        products / total if total > 0 else torch.zeros_like(products),
        (sizes / (3 * atoms)).sqrt(),
    )


def _share(amounts: Tensor) -> Tensor:
    """Amounts divided by their sum over the orders; zero if the sum is zero."""
    total = amounts.sum(1, keepdim=True)
    return torch.where(total > 0, amounts / total.clamp_min(1e-300), torch.zeros_like(amounts))


def _paths(
    potential: Potential, graph: Graph, layout: Layout
) -> tuple[list[Tensor], list[Tensor], Tensor, list[list[Tensor]]]:
    """Features and gradients of each layer, forces (N, 3), and F_l of each layer and order."""
    graph, vectors = within(graph, potential.cutoff)
    vectors = vectors.detach().requires_grad_(True)
    features: list[Tensor] = []

    def keep(k: int, x: Tensor) -> Tensor:
        if not x.requires_grad:  # no atom has neighbours
            x = x.detach().requires_grad_(True)
        features.append(x)
        return x

    with changed(potential, keep):
        energies = potential.atom_energies(graph, vectors)
    found = torch.autograd.grad(
        energies.sum(),
        [vectors, *features],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    gradients = list(found[1:])

    def forces(gradient: Tensor) -> Tensor:
        return assemble(graph, energies.detach(), vectors.detach(), gradient.double()).forces

    paths = []
    for x, g in zip(features, gradients, strict=True):
        paths.append(
            [
                forces(
                    torch.autograd.grad(
                        x,
                        vectors,
                        layout.only(g, order),
                        retain_graph=True,
                        allow_unused=True,
                        materialize_grads=True,
                    )[0]
                )
                for order in layout.orders
            ]
        )
    features = [x.detach() for x in features]
    return features, gradients, forces(found[0]), paths
