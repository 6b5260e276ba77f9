"""A second implementation of TDN from its description, with e3nn's harmonics and products.

It is slow and plain: every edge carries its own tensors, attention loops over receivers, and
channels come before components, as in e3nn. Only the weights are taken from the package.
"""

from __future__ import annotations

import math

import torch
from e3nn import o3
from support.checkpoint_helpers import default_dtype
from torch import Tensor, nn
from torch.nn import functional as F

from tensormd.models.graph import Graph


def irreps(lmax: int, group: str, channels: int) -> o3.Irreps:
    return o3.Irreps(
        [
            (channels, (degree, -1 if degree % 2 and group == "O(3)" else 1))
            for degree in range(lmax + 1)
        ]
    )


class PathTensorProduct:
    """Every path that e3nn's fully connected tensor product has, one weight for all of them."""

    def __init__(self, lmax: int, group: str, channels: int) -> None:
        self.features = irreps(lmax, group, channels)
        self.edges = irreps(lmax, group, 1)
        instructions = [
            (i, j, k, "uvu", True)
            for i, (_, first) in enumerate(self.features)
            for j, (_, second) in enumerate(self.edges)
            for k, (_, third) in enumerate(self.features)
            if third in first * second
        ]
        self.paths = len(instructions)
        self.instructions = instructions
        with default_dtype(torch.float64):  # of e3nn's constants
            self.product = o3.TensorProduct(
                self.features,
                self.edges,
                self.features,
                instructions,
                irrep_normalization="none",
                path_normalization="none",
                internal_weights=False,
                shared_weights=False,
            )
            # Of two features of an atom, channel by channel.
            self.own = o3.TensorProduct(
                self.features,
                self.features,
                self.features,
                [(*path[:3], "uuu", True) for path in instructions],
                irrep_normalization="none",
                path_normalization="none",
                internal_weights=False,
                shared_weights=False,
            )
        self.lmax, self.channels = lmax, channels

    def __call__(self, x: Tensor, y: Tensor, w: Tensor, results: bool = False) -> Tensor:
        """x (E, d, C), y (E, d) and w (E, C) or, by degree of x or result, (E, D C)."""
        if w.shape[1] == self.channels:
            w = w.repeat(1, self.paths)
        else:
            degrees = [path[2 if results else 0] for path in self.instructions]
            w = w.unflatten(1, (-1, self.channels))[:, degrees].flatten(1)
        return self.parts(self.product(self.flat(x), y, w))

    def of_atoms(self, x: Tensor, y: Tensor) -> Tensor:
        """x and y (N, d, C) -> (N, d, C)."""
        ones = torch.ones(len(x), self.own.weight_numel, dtype=x.dtype)
        return self.parts(self.own(self.flat(x), self.flat(y), ones))

    def flat(self, x: Tensor) -> Tensor:
        """(n, d, C) -> e3nn's layout."""
        return torch.cat([part.mT.flatten(1) for part in self.split(x)], 1)

    def parts(self, out: Tensor) -> Tensor:
        """E3nn's layout -> (n, d, C)."""
        sizes = [self.channels * (2 * degree + 1) for degree in range(self.lmax + 1)]
        parts = [p.view(len(out), self.channels, -1).mT for p in out.split(sizes, 1)]
        return torch.cat(parts, 1)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split([2 * degree + 1 for degree in range(self.lmax + 1)], 1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if weight.ndim == 3:  # a matrix of each degree
        sizes = [2 * degree + 1 for degree in range(len(weight))]
        each = [
            torch.einsum("ndc,oc->ndo", p, w)
            for p, w in zip(x.split(sizes, 1), weight, strict=True)
        ]
        y = torch.cat(each, 1)
    else:
        y = torch.einsum("ndc,oc->ndo", x, weight)
    if bias is not None:
        y[:, 0] += bias
    return y


def norm(x: Tensor, module: nn.Module, epsilon: float, product: PathTensorProduct) -> Tensor:
    parts = []
    for degree, part in enumerate(product.split(x)):
        if degree == 0:
            part = part - part.mean(2, keepdim=True)
        mean = part.pow(2).mean(1, keepdim=True).mean(2, keepdim=True)
        part = part / torch.sqrt(mean + (epsilon if degree else 1e-5)) * module.weight[degree]
        parts.append(part + module.bias if degree == 0 else part)
    return torch.cat(parts, 1)


def gate(x: Tensor, module: nn.Module) -> Tensor:
    """The released form: 2C channels, the second half of which gates by its degree 0."""
    channels = x.shape[2]
    if module.value.ndim == 3:
        value = linear(x, module.value, module.bias)
        gates = torch.sigmoid(linear(x[:, :1], module.gate.weight, module.gate.bias))
        return torch.cat([F.silu(value[:, :1]), value[:, 1:] * gates], 1)
    both = linear(
        x,
        torch.cat([module.value, module.gate.weight]),
        torch.cat([module.bias, module.gate.bias]),
    )
    value, gates = both[..., :channels], torch.sigmoid(both[:, :1, channels:])
    return torch.cat([F.silu(value[:, :1]), value[:, 1:] * gates], 1)


def energies(network: nn.Module, readout: nn.Module, graph: Graph, positions: Tensor) -> Tensor:
    """Outputs of the readout for each atom, (N,), as a function of positions (a molecule's)."""
    options = network.config
    lmax, channels, heads = options["lmax"], options["channels"], options["heads"]
    product = PathTensorProduct(lmax, options["group"], channels)
    i, j = graph.edge_index
    vectors = positions[j] - positions[i]
    distances = vectors.norm(dim=1)
    y = o3.spherical_harmonics(
        list(range(lmax + 1)), vectors, normalize=True, normalization="component"
    )
    phi = torch.ones_like(distances)
    if options["envelope"] == "cosine":
        phi = 0.5 * (torch.cos(math.pi * distances / options["cutoff"]) + 1)
    basis = network.radial
    scaled = basis.weight * distances[:, None] / options["cutoff"] + basis.bias
    std = basis.std.abs() + 1e-5
    g = torch.exp(-((scaled - basis.mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi))

    atoms, d = len(graph.numbers), (lmax + 1) ** 2
    x = torch.zeros(atoms, d, channels, dtype=torch.float64)
    part = network.surroundings
    ones = torch.zeros(len(i), d, channels, dtype=torch.float64)
    species = options["sender_species"]
    ones[:, 0] = part.sender[graph.numbers[j]] if species else part.sender
    sent = linear(product(ones, y, part.radial(g), results=True), part.mix.weight, part.bias)
    sent = sent * phi[:, None, None]
    for n in range(atoms):
        x[n] = sent[i == n].sum(0) / math.sqrt(options["average_degree"])
    x[:, 0] = x[:, 0] + network.species.weight[graph.numbers]

    for layer in network.layers:
        part = layer.attention
        normed = norm(x, layer.norm_1, options["norm_epsilon"], product)
        message = linear(normed, part.sender.weight, part.sender.bias)[j]
        message = message + linear(normed, part.receiver.weight)[i]
        w = part.radial(g)
        message = product(message, y, w)
        a = linear(message, part.score.weight, part.score.bias)[:, 0]
        a = a.view(-1, heads, channels // heads)
        a = 0.6 * a + 0.4 * a * (2 * torch.sigmoid(a) - 1)
        scores = torch.einsum("ehk,hk->eh", a, part.score_dot)
        value = product(gate(message, part.value), y, w).view(len(i), d, heads, -1)
        total = []
        for n in range(atoms):
            mine = i == n
            exponential = phi[mine][:, None] * scores[mine].exp()
            constant = 1.0 if options["envelope"] == "cosine" else 0.0
            alpha = exponential / (constant + exponential.sum(0))
            total.append(torch.einsum("eh,edhk->dhk", alpha, value[mine]).flatten(1))
        x = x + linear(torch.stack(total), part.mix.weight, part.mix.bias)
        normed = norm(x, layer.norm_2, options["norm_epsilon"], product)
        inner = gate(normed, layer.gated)
        if options["self_product"]:
            factor = linear(normed, layer.factor.weight)
            inner = inner + product.of_atoms(inner, factor)
        x = x + linear(inner, layer.mix.weight, layer.mix.bias)
    return readout.head(readout.norm(x[:, 0])).squeeze(1)
