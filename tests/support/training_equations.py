"""The network of a fused training step in plain torch, and random inputs for both."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tensormd.models.inference.kernels.cpu.perceptron import ACTIVATIONS
from tensormd.models.maths.activations import activation
from tensormd.models.maths.cartesian import (
    COMPONENTS,
    TensorAlgebra,
    irrep_norms_squared,
    norm_squared,
    scale_irreps,
    split_irreps,
)
from tensormd.models.training.kernels.batch import Batch
from tensormd.models.training.kernels.edges import Edges
from tensormd.models.training.kernels.memory import Memory
from tensormd.models.training.kernels.network import Functions, Weights
from tensormd.models.training.kernels.perceptrons import Dense, Kinds

ATOMS, SPECIES, CHANNELS, ROWS, LAYERS = 6, 3, 16, 9, 2
"""Channels fill a chunk: padding is a matter of `FusedEnergies`."""


class Case(NamedTuple):
    """Inputs of `Evaluation`, random."""

    batch: Batch
    functions: Functions
    weights: Weights
    receivers: Tensor
    of_pair: Tensor
    """Pair of each edge; both edges of a pair have equal lengths."""
    irreps: str
    parity_conserving: bool

    def by_pair(self, x: Tensor) -> Tensor:
        """Sums over both edges of a pair."""
        pairs = int(self.of_pair.max()) + 1
        return x.new_zeros(pairs, *x.shape[1:]).index_add(0, self.of_pair, x)


def random_case(irreps: str, dtype: torch.dtype, parity_conserving: bool = True) -> Case:
    """A graph in which two of three pairs of atoms are neighbours, and random weights."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        drawn = 0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
        return drawn.to(dtype).requires_grad_()

    near = torch.triu(torch.rand(ATOMS, ATOMS, generator=generator) < 0.67, 1)
    i, j = (near | near.T).nonzero().T
    _, of_pair = torch.unique(
        torch.minimum(i, j) * ATOMS + torch.maximum(i, j), return_inverse=True
    )
    pairs, n, kinds = int(of_pair.max()) + 1, sum(COMPONENTS[k] for k in irreps), len(irreps)
    row = torch.randint(0, ROWS - 3, (pairs,), generator=generator)[of_pair]
    edges = Edges(
        torch.randint(0, SPECIES, (ATOMS,), generator=generator).numpy(),
        torch.searchsorted(i, torch.arange(ATOMS + 1)).numpy(),
        j.contiguous().numpy(),
        row.numpy(),
        normal(pairs, 4).detach()[of_pair].flatten().numpy(),
        normal(pairs, 4).detach()[of_pair].flatten().numpy(),
        of_both(normal(pairs, n).detach(), irreps, i < j, of_pair).reshape(-1).numpy(),
    )
    charge = 1 + 0.1 * normal(ATOMS).detach()
    batch = Batch(irreps, CHANNELS, parity_conserving, edges, charge, Memory())
    f, wide = CHANNELS, kinds * CHANNELS
    weights = Weights(
        receiver=normal(SPECIES, f),
        sender=normal(SPECIES, f),
        tables=[normal(1, ROWS, kinds, f) for _ in range(LAYERS + 1)],
        at_zero=[normal(kinds, f) for _ in range(LAYERS + 1)],
        mixes=[normal(kinds, f, f) for _ in range(2 * LAYERS + 1)],
        gate=Dense(
            [normal(2 * f, f), normal(wide, 2 * f)], [normal(2 * f), normal(wide)], normal(f),
            normal(f),
        ),
        head=Dense(
            [normal(f, wide), normal(16, f)], [normal(f), normal(16)], normal(wide), normal(wide)
        ),
    )  # fmt: skip
    silu, tanh, mish, identity = map(ACTIVATIONS.index, ("silu", "tanh", "mish", "identity"))
    functions = Functions(Kinds([silu, tanh], f, 1e-5), Kinds([mish, identity], wide, 1e-5))
    return Case(batch, functions, weights, i, of_pair, irreps, parity_conserving)


def of_both(x: Tensor, irreps: str, forward: Tensor, of_pair: Tensor) -> Tensor:
    """Components of pairs -> of edges: A changes its sign with the direction."""
    x = x[of_pair]
    if "A" in irreps:
        x[:, 1:4] *= torch.where(forward, 1.0, -1.0).to(x.dtype).unsqueeze(1)
    return x


def outputs(case: Case, lengths: Tensor, directions: Tensor) -> Tensor:
    """Outputs (N,) as a function of changes of the lengths (E,) and of the directions (E, n)."""
    w, edges, irreps = case.weights, case.batch.edges, len(case.irreps)
    algebra = TensorAlgebra(case.irreps)
    i, j = case.receivers, torch.from_numpy(edges.sender)
    charge = torch.from_numpy(case.batch.charge).unsqueeze(1)
    values, slopes = (torch.from_numpy(x).view(-1, 4) for x in (edges.weights, edges.slopes))
    rows = torch.from_numpy(edges.row)[:, None] + torch.arange(4)

    def factors(table: Tensor) -> Tensor:
        weights = values + slopes * lengths.unsqueeze(1)
        return torch.einsum("em,emkf->kef", weights, table[0, rows])

    def dense(of: Dense, x: Tensor, kinds: Kinds) -> Tensor:
        x = nn.functional.layer_norm(x, x.shape[-1:], of.norm_weight, of.norm_bias)
        return perceptron(of, x, kinds)

    def mix(x: Tensor, matrices: Tensor) -> Tensor:
        return torch.cat([part @ matrices[k].T for k, part in enumerate(split_irreps(x))])

    def sums(edges_: Tensor) -> Tensor:
        return edges_.new_zeros(len(edges_), ATOMS, CHANNELS).index_add(1, i, edges_)

    species = torch.from_numpy(edges.species)
    receiver, sender = w.receiver[species], w.sender[species]
    pair = receiver[i] + sender[j]
    x = sums(scale_irreps(directions.T.unsqueeze(2), factors(w.tables[0]) * pair))
    own = 3**0.5 * w.at_zero[0][0] * (receiver + sender)
    x = torch.cat([x[:1] + own, x[1:]])
    scale = dense(w.gate, norm_squared(x), case.functions.gate)
    x = scale_irreps(mix(x, w.mixes[0]), scale.view(ATOMS, irreps, CHANNELS).transpose(0, 1))
    for k in range(LAYERS):
        u = x / (norm_squared(x) + 1)
        y = mix(u, w.mixes[2 * k + 1])
        message = sums(scale_irreps(y[:, j], factors(w.tables[k + 1])))
        message = message + scale_irreps(y, w.at_zero[k + 1].unsqueeze(1))
        c = 2 * algebra.product(y, message)
        if case.parity_conserving:
            c = charge * algebra.anticommutator(y, message)
        delta = mix(c / (norm_squared(c) + 1), w.mixes[2 * k + 2])
        x = u + delta + charge * algebra.square(delta)
    return dense(w.head, irrep_norms_squared(x), case.functions.head)[:, 0]


def perceptron(of: Dense, x: Tensor, kinds: Kinds) -> Tensor:
    """Dense layers without the layer norm before them."""
    for weight, bias, kind in zip(of.weights, of.biases, kinds.activations, strict=True):
        x = nn.functional.linear(x, weight, bias)
        x = activation(ACTIVATIONS[kind])(x) if ACTIVATIONS[kind] != "identity" else x
    return x
