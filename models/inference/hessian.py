"""Second derivatives of the energy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..graph import Graph


def hessian(total_energy: Callable[[Graph], Tensor], graph: Graph) -> Tensor:
    """d2E / dR dR of one system, by automatic differentiation twice.

    Parameters
    ----------
    total_energy
        Energy (), eV, differentiable in the positions of its graph: `Potential.total_energy`.
    graph
        One system of N atoms. Its edges must cover the cutoff.

    Returns
    -------
    (3N, 3N) float64, eV/Angstrom^2, symmetric; rows are atom by atom, with x, y, z for each.
    """
    positions = graph.positions.detach().clone().requires_grad_(True)
    energy = total_energy(graph._replace(positions=positions))
    (gradient,) = torch.autograd.grad([energy], [positions], create_graph=True)
    components = gradient.reshape(-1)
    rows = [
        torch.autograd.grad([component], [positions], retain_graph=True)[0].reshape(-1)
        for component in components
    ]
    matrix = torch.stack(rows)
    return 0.5 * (matrix + matrix.T)
