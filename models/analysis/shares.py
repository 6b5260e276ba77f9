r"""What each order carries: of the features, of the energy and of the forces.

With X the features :math:`X^{(k)}_{imc}` of atom i, component m and channel c after layer k, and
l an order, that is, a set of components:

norm share
    :math:`\|X_l\|^2 / \sum_{l'} \|X_{l'}\|^2`, summed over atoms and channels; per component each
    norm is divided by 2l + 1 first.
energy share
    gradient times feature, :math:`a_l = \sum_{ic} |\sum_{m \in l} g_{imc} X_{imc}|` with
    :math:`g = \partial E / \partial X`, over the sum of all orders: by how much the energy
    changes, to first order, with the size of what an atom holds there. Rotations, and a channel
    that is scaled while the next layer's weights undo it, leave it as it is.
force share
    :math:`\langle F_l, F \rangle / \langle F, F \rangle` with
    :math:`F_l = -\sum_{m \in l} g_m \cdot \partial X_m / \partial R`, the forces that reach the
    atoms through that order at that layer. What the later layers read of the edges themselves is
    the rest: :math:`F = \sum_l F_l + F_{edges}`, and the shares sum to one. F_l is the forces less
    those with the gradient stopped at that order; a share may be negative or above one where
    orders work against each other.
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
    """Of K layers (the embedding is one) and O orders; float64."""

    norm: Tensor
    """(K, O), sums to 1 over the orders."""
    norm_per_component: Tensor
    """(K, O), sums to 1 over the orders."""
    rms: Tensor
    """(K, O), root mean square of a component."""
    energy: Tensor
    """(K, O), sums to 1 over the orders."""
    gradient_rms: Tensor
    """(K, O), root mean square of dE/dX by component, eV over the unit of the feature."""
    force: Tensor
    """(K, O + 1), sums to 1; the last column is what goes through the edges of later layers."""
    force_rms: Tensor
    """(K, O + 1), root mean square of a component of F_l, eV/A."""


def measure_shares(potential: Potential, frames: Frames, layout: Layout) -> Shares:
    """Shares over all frames; see the module."""
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
    """Divided by the sum over the orders; zero where that is."""
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
        if not x.requires_grad:  # of atoms without neighbours
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
