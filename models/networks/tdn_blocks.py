"""The parts of a TDN in which neighbours meet: the embedding, the attention, and a block of both.

The notation is that of `tdn`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .tdn_layers import DegreeLinear, GatedLinear, SmoothLeakyReLU
from .tdn_product import Coupling, Product, by_component, product_of_atoms


class Edges(NamedTuple):
    """Data of the edges that every layer reads."""

    receiver: Tensor
    """Receivers i, (E,)."""
    sender: Tensor
    """Senders j, (E,)."""
    envelope: Tensor
    """Envelope, (E, 1): 1 at zero distance, 0 at and beyond the cutoff."""


class DegreeEmbedding(nn.Module):
    r"""Initial features of an atom from the directions of its neighbours.

    .. math::
        x_i = \frac{1}{\sqrt{\bar n}} \sum_j \phi(r_{ij}) \left[
        W \left( w_l(r_{ij}) \odot s_{Z_j} \otimes Y(\hat r_{ij}) \right) + b \right]

    where s, one number per channel, represents the sender at degree 0, w are the weights of the
    degrees of the result, and :math:`\bar n` is the average degree. As released, s is the same for
    all elements (``species`` is None), and w for all degrees.
    """

    def __init__(
        self,
        channels: int,
        degrees: Sequence[int],
        radial: nn.Module,
        average_degree: float,
        shared: bool,
        species: int | None,
    ) -> None:
        super().__init__()
        self.scale = float(average_degree) ** -0.5
        self.radial = radial
        # The released code has a linear map of ones here.
        shape = (channels,) if species is None else (species, channels)
        self.sender = nn.Parameter(torch.empty(shape).uniform_(-1, 1))
        self.mix = DegreeLinear(channels, degrees, shared, bias=False)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, edges: Edges, weight: Tensor, coupling: Coupling, numbers: Tensor) -> Tensor:
        """Weights of the degrees and atomic numbers (N,) -> (N, d, C)."""
        atoms = numbers.shape[0]
        sender: Tensor = self.sender
        if sender.ndim == 2:
            sender = sender.index_select(0, numbers.index_select(0, edges.sender))
        weight = weight * (edges.envelope * sender).unsqueeze(1)
        terms = coupling.scalar.unsqueeze(2) * by_component(weight, coupling)
        x = weight.new_zeros(atoms, terms.shape[1], terms.shape[2])
        x = self.mix(x.index_add(0, edges.receiver, terms))
        degree = edges.envelope.new_zeros(atoms, 1).index_add(0, edges.receiver, edges.envelope)
        bias = (degree * self.bias).unsqueeze(1)
        return self.scale * torch.cat([x[:, :1] + bias, x[:, 1:]], dim=1)


class GraphAttention(nn.Module):
    r"""Messages of the neighbours, weighted by attention.

    .. math::
        m_{ij} &= w_l(r_{ij}) \odot (W_s x_j + W_r x_i) \otimes Y(\hat r_{ij}) \\
        s_{ij} &= a \cdot \mathrm{LeakyReLU}(W_\alpha m_{ij}^{l=0}) \quad \text{by head} \\
        \alpha_{ij} &= \frac{\phi(r_{ij}) e^{s_{ij}}}{1 + \sum_k \phi(r_{ik}) e^{s_{ik}}} \\
        x_i &= W \sum_j \alpha_{ij} \; w_l(r_{ij}) \odot
            \mathrm{gate}(W_v m_{ij}) \otimes Y(\hat r_{ij})

    Both tensor products have the same weights w, for each degree l of the features that they
    multiply (as released, for all of them). With the envelope :math:`\phi` each weight
    vanishes at the cutoff. The 1 in the denominator ensures this for a single neighbour too, whose
    weight would otherwise be 1 at any distance. Without an envelope the 1 is absent, as released.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        product: Product,
        radial: nn.Module,
        smooth: bool,
        dropout: float,
        degrees: Sequence[int],
        shared: bool,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.smooth = smooth
        self.product: Product = product
        self.radial = radial
        self.sender = DegreeLinear(channels, degrees, shared)
        self.receiver = DegreeLinear(channels, degrees, shared, bias=False)
        self.score = nn.Linear(channels, channels)
        nn.init.zeros_(self.score.bias)
        self.score_act = SmoothLeakyReLU(0.2)
        self.score_dot = nn.Parameter(torch.empty(heads, channels // heads))
        nn.init.xavier_uniform_(self.score_dot)
        self.dropout = nn.Dropout(dropout)
        self.value = GatedLinear(channels, degrees, shared)
        self.mix = DegreeLinear(channels, degrees, shared)

    def forward(self, x: Tensor, edges: Edges, weight: Tensor, coupling: Coupling) -> Tensor:
        """Features (N, d, C) and weights of the tensor products -> (N, d, C)."""
        i, j = edges.receiver, edges.sender
        # Linear, hence applied per atom.
        sent = self.product.project(self.sender(x), coupling)
        received = self.product.project(self.receiver(x), coupling)
        message = self.product.message(
            sent.index_select(0, j) + received.index_select(0, i), weight, coupling
        )
        attention = self.attention(message[:, 0], edges, x.shape[0])
        attention = attention.repeat_interleave(weight.shape[2] // self.heads, dim=1)
        weight = weight * attention.unsqueeze(1)
        value = self.value(message)
        return self.mix(self.product.aggregate(value, weight, coupling, i, x.shape[0]))

    def attention(self, scalars: Tensor, edges: Edges, atoms: int) -> Tensor:
        """Attention weights: scalars (E, C) of the messages -> (E, heads)."""
        i = edges.receiver
        scores = self.score_act(self.score(scalars))
        width = scores.shape[1] // self.heads
        scores = (scores.view(scores.shape[0], self.heads, width) * self.score_dot).sum(2)
        # Shifted by the largest score to avoid overflow; the ratio is unchanged.
        index = i.unsqueeze(1).expand(-1, self.heads)
        highest = scores.new_zeros(atoms, self.heads)
        highest = highest.scatter_reduce(
            0, index, scores.detach(), "amax", include_self=self.smooth
        )
        weights = edges.envelope * torch.exp(scores - highest.index_select(0, i))
        total = torch.exp(-highest) if self.smooth else torch.zeros_like(highest)
        total = total.index_add(0, i, weights)
        return self.dropout(weights / total.index_select(0, i))


class Block(nn.Module):
    r"""Attention and a feed-forward network, each with a normalised input and a residual sum.

    .. math::
        x' = x + \mathrm{attention}(\mathrm{norm}_1(x)), \quad h = \mathrm{norm}_2(x'), \quad
        y = \mathrm{gate}(W_g h), \qquad x'' = x' + W (y + y \otimes F h)

    The product :math:`y \otimes F h` of an atom with itself is optional. It makes features of
    many neighbours at once, as the matrix product of a TensorNet does.
    """

    def __init__(
        self,
        channels: int,
        attention: GraphAttention,
        norms: Sequence[nn.Module],
        degrees: Sequence[int],
        shared: bool,
        self_product: bool,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.norm_1, self.norm_2 = norms
        self.gated = GatedLinear(channels, degrees, shared)
        self.factor: DegreeLinear | None = None
        if self_product:
            self.factor = DegreeLinear(channels, degrees, shared, bias=False)
        self.mix = DegreeLinear(channels, degrees, shared)

    def weight(self, basis: Tensor) -> Tensor:
        """Weights of the tensor products from the radial basis: (E, K) -> (E, degrees C)."""
        return self.attention.radial(basis)

    def forward(self, x: Tensor, edges: Edges, weight: Tensor, coupling: Coupling) -> Tensor:
        """Features (N, d, C) and weights of the tensor products -> (N, d, C)."""
        x = x + self.attention(self.norm_1(x), edges, weight, coupling)
        h = self.norm_2(x)
        y = self.gated(h)
        factor = self.factor
        if factor is not None:
            y = y + product_of_atoms(y, factor(h), coupling.tensor)
        return x + self.mix(y)
