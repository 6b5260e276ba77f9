r"""Tensor products of features with the harmonics of an edge, evaluated in several ways.

A bilinear map M (d, d, d) couples features x with harmonics Y of the same degrees. Each channel c
has a weight w for every degree l of the features, or one that all paths share (mode uvu, Lin et
al. 2025, arXiv:2507.01131):

.. math:: z_{kc} = \sum_{ij} M_{ijk} \, w_{l(i) c} \, x_{ic} \, Y_j

M is the sum of the Clebsch-Gordan tensors of all paths, or the tensor given by its factors. The
evaluations give the same numbers:

- contracted: z = M_e (w x) with M_e = sum_j M_j Y_j, computed once for all products of an edge;
- factored: z = C ((A^T w x) (B^T Y)), as in the paper. A^T is applied per atom if the features
  belong to atoms and share their weights, and C per atom if the result is a sum over edges;
- by path: one product for each l1, l2, l3, as in programs without a decomposition.

Contracting first costs d^2 multiplications per edge and channel, the factors 2 d R. Features have
the shape (n, d, C): n atoms or edges, components, channels; weights of edges (E, degrees, C), or
(E, 1, C) if they are shared.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..maths.double import DoubleConstants
from ..maths.harmonics import coupling_tensor, degree_slices, paths

EVALUATIONS = ("auto", "contracted", "factored")


class Coupling(NamedTuple):
    """Data shared by all products of one set of edges."""

    inward: Tensor
    """A^T, (R, d); unused by the other evaluations."""
    edge: Tensor
    """M_e (E, d, d), B^T Y (E, R), or Y (E, d)."""
    scalar: Tensor
    """Products of a scalar 1 with Y, (E, d)."""
    outward: Tensor
    """C, (d, R); unused by the other evaluations."""
    tensor: Tensor
    """M, (d, d, d)."""
    degree: Tensor
    """Place of the degree of each component, (d,)."""


class ContractedProduct(nn.Module):
    """One small matrix product for each edge.

    On a CPU, edges are processed a few hundred at a time: intermediate results stay in the cache,
    and no large block of memory is allocated repeatedly. This halves the time at L = 2 and 3.

    Attributes
    ----------
    chunked
        Whether edges are processed in chunks; switched off for tracing, because a trace must work
        for any number of edges.
    """

    def __init__(self) -> None:
        super().__init__()
        self.chunked = True

    def project(self, x: Tensor, coupling: Coupling) -> Tensor:
        """Part of the product computed per sending atom: (N, d, C) -> (N, p, C)."""
        return x

    def message(self, sent: Tensor, weight: Tensor, coupling: Coupling) -> Tensor:
        """Sent features (E, p, C) and weights -> products (E, d, C)."""
        size = chunk_size(sent, sent.shape[2])
        if not self.chunked or sent.shape[0] <= size:
            return torch.bmm(coupling.edge, sent * by_component(weight, coupling))
        matrices, weights = torch.split(coupling.edge, size), torch.split(weight, size)
        parts: list[Tensor] = []
        for k, x in enumerate(torch.split(sent, size)):
            parts.append(torch.bmm(matrices[k], x * by_component(weights[k], coupling)))
        return torch.cat(parts)

    def aggregate(
        self, x: Tensor, weight: Tensor, coupling: Coupling, receiver: Tensor, atoms: int
    ) -> Tensor:
        """Sum of the products of features (E, d, C) at each receiver -> (N, d, C)."""
        d, channels = x.shape[1], weight.shape[2]
        if not self.chunked:
            terms = torch.bmm(coupling.edge, x * by_component(weight, coupling))
            return weight.new_zeros(atoms, d, channels).index_add(0, receiver, terms)
        size = chunk_size(x, channels)
        matrices, weights = torch.split(coupling.edge, size), torch.split(weight, size)
        receivers = torch.split(receiver, size)
        total = weight.new_zeros(atoms, d, channels)
        for k, y in enumerate(torch.split(x, size)):
            terms = torch.bmm(matrices[k], y * by_component(weights[k], coupling))
            total = total.index_add_(0, receivers[k], terms)
        return total


class FactoredProduct(nn.Module):
    """R scalar products per edge and channel; ``shared``: whether degrees share their weights."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.shared = shared

    def project(self, x: Tensor, coupling: Coupling) -> Tensor:
        """Part of the product computed per sending atom: (N, d, C) -> (N, R or d, C)."""
        return coupling.inward @ x if self.shared else x

    def message(self, sent: Tensor, weight: Tensor, coupling: Coupling) -> Tensor:
        """Sent features (E, R or d, C) and weights -> products (E, d, C)."""
        if self.shared:
            sent = sent * weight
        else:
            sent = coupling.inward @ (sent * by_component(weight, coupling))
        return coupling.outward @ (sent * coupling.edge.unsqueeze(2))

    def aggregate(
        self, x: Tensor, weight: Tensor, coupling: Coupling, receiver: Tensor, atoms: int
    ) -> Tensor:
        """Sum of the products of features (E, d, C) at each receiver -> (N, d, C)."""
        x = coupling.inward @ (x * by_component(weight, coupling))
        terms = x * coupling.edge.unsqueeze(2)
        total = terms.new_zeros(atoms, terms.shape[1], terms.shape[2])
        return coupling.outward @ total.index_add(0, receiver, terms)


class PathProduct(nn.Module):
    """One product for every path l1, l2, l3."""

    def __init__(self, degrees: Sequence[int], group: str) -> None:
        super().__init__()
        places = degree_slices(degrees)
        self.size = sum(2 * degree + 1 for degree in degrees)
        self.paths = [
            [(places[degree].start, places[degree].stop) for degree in path]
            for path in paths(max(degrees), group, degrees)
        ]

    def project(self, x: Tensor, coupling: Coupling) -> Tensor:
        """Part of the product computed per sending atom: (N, d, C) -> (N, d, C)."""
        return x

    def message(self, sent: Tensor, weight: Tensor, coupling: Coupling) -> Tensor:
        """Sent features (E, d, C) and weights -> products (E, d, C)."""
        tensor = coupling.inward.view(self.size, self.size, self.size)
        sent = sent * by_component(weight, coupling)
        out = torch.zeros_like(sent)
        for (i, i_end), (j, j_end), (k, k_end) in self.paths:
            path = tensor[i:i_end, j:j_end, k:k_end]
            y = coupling.edge[:, j:j_end]
            z = torch.einsum("ijk,ej,eic->ekc", path, y, sent[:, i:i_end])
            out = out + torch.nn.functional.pad(z, [0, 0, k, self.size - k_end])
        return out

    def aggregate(
        self, x: Tensor, weight: Tensor, coupling: Coupling, receiver: Tensor, atoms: int
    ) -> Tensor:
        """Sum of the products of features (E, d, C) at each receiver -> (N, d, C)."""
        terms = self.message(x, weight, coupling)
        total = terms.new_zeros(atoms, terms.shape[1], terms.shape[2])
        return total.index_add(0, receiver, terms)


def by_component(weight: Tensor, coupling: Coupling) -> Tensor:
    """Weights (E, degrees, C) of each component, (E, d, C); shared ones (E, 1, C) as they are."""
    return weight if weight.shape[1] == 1 else weight.index_select(1, coupling.degree)


def chunk_size(x: Tensor, channels: int) -> int:
    """Number of edges per chunk of (E, d, channels): a quarter of a million numbers."""
    if x.device.type == "cuda":
        return max(1, x.shape[0])
    return max(1, 262_144 // max(1, x.shape[1] * channels))


Product = ContractedProduct | FactoredProduct | PathProduct
"""Tensor products that a layer can use; none has weights of its own."""


class ExactCoupling(DoubleConstants):
    """The Clebsch-Gordan tensor itself."""

    tensor: Tensor
    degree: Tensor

    def __init__(self, degrees: Sequence[int], group: str, contracted: bool) -> None:
        super().__init__()
        self.contracted = contracted
        self.register_buffer("degree", places_of_degrees(degrees), persistent=False)
        tensor = torch.from_numpy(coupling_tensor(max(degrees), group, degrees))
        self.register_buffer("tensor", tensor, persistent=False)

    def forward(self, harmonics: Tensor) -> Coupling:
        """Harmonics (E, d) of the edges -> data shared by their products."""
        tensor = self.tensor.to(harmonics.dtype)
        edge = contract(tensor, harmonics) if self.contracted else harmonics
        return Coupling(tensor, edge, harmonics @ tensor[0], tensor, tensor, self.degree)

    def mask(self, mask: Tensor) -> None:
        """Multiply components (d,) of features, harmonics and products by 0 or 1."""
        mask = mask.to(self.tensor.device)
        self.tensor = self.tensor * mask[:, None, None] * mask[:, None] * mask


class FactoredCoupling(DoubleConstants):
    r""":math:`M_{ijk} = \sum_r A_{ir} B_{jr} C_{kr}`; the factors are part of the weights.

    Parameters
    ----------
    a, b, c
        Factors A, B, C, (d, R) float64.
    degrees
        Degrees of the features.
    contracted
        Whether the full tensor is contracted with the harmonics first.
    """

    a: Tensor
    b: Tensor
    c: Tensor
    degree: Tensor

    def __init__(
        self, a: Tensor, b: Tensor, c: Tensor, degrees: Sequence[int], contracted: bool
    ) -> None:
        super().__init__()
        self.contracted = contracted
        self.register_buffer("degree", places_of_degrees(degrees), persistent=False)
        self.register_buffer("a", a)
        self.register_buffer("b", b)
        self.register_buffer("c", c)

    def forward(self, harmonics: Tensor) -> Coupling:
        """Harmonics (E, d) of the edges -> data shared by their products."""
        dtype = harmonics.dtype
        tensor = torch.einsum("ir,jr,kr->ijk", self.a, self.b, self.c).to(dtype)
        edge = contract(tensor, harmonics) if self.contracted else harmonics @ self.b.to(dtype)
        scalar = harmonics @ tensor[0]
        inward, outward = self.a.t().to(dtype), self.c.to(dtype)
        return Coupling(inward, edge, scalar, outward, tensor, self.degree)

    def mask(self, mask: Tensor) -> None:
        """Multiply components (d,) of features, harmonics and products by 0 or 1."""
        mask = mask.to(self.a.device).unsqueeze(1)
        self.a, self.b, self.c = (factor * mask for factor in (self.a, self.b, self.c))


def places_of_degrees(degrees: Sequence[int]) -> Tensor:
    """Place of the degree of each component, (d,): 0, 1, 1, 1 for degrees 0 and 1."""
    sizes = [2 * degree + 1 for degree in degrees]
    return torch.from_numpy(np.repeat(np.arange(len(degrees)), sizes))


def contract(tensor: Tensor, harmonics: Tensor) -> Tensor:
    """M_e[k, i] = sum_j M[i, j, k] Y_j: (d, d, d) and (E, d) -> (E, d, d)."""
    d = tensor.shape[0]
    return (harmonics @ tensor.permute(1, 2, 0).reshape(d, d * d)).view(harmonics.shape[0], d, d)


def product_of_atoms(x: Tensor, y: Tensor, tensor: Tensor) -> Tensor:
    """Products of two features of the same atoms, by M (d, d, d): twice (N, d, C) -> (N, d, C)."""
    d = tensor.shape[0]
    pairs = (x.unsqueeze(2) * y.unsqueeze(1)).flatten(1, 2)
    return tensor.reshape(d * d, d).t() @ pairs


def parse_evaluation(evaluation: str) -> bool:
    """Whether to contract first, as ``auto`` does: faster at every L, rank and size measured.

    Raises
    ------
    ValueError
        If it is not one of ``EVALUATIONS``.
    """
    if evaluation not in EVALUATIONS:
        raise ValueError(
            f"unknown evaluation {evaluation!r}: expected one of {', '.join(EVALUATIONS)}"
        )
    return evaluation != "factored"
