r"""Rank-2 Cartesian tensors as nine components: one scalar, a vector, a traceless symmetric part.

TensorNet (Simeon & De Fabritiis 2023, arXiv:2306.06482, eq. 1) splits a 3x3 tensor into
:math:`X = I + A + S`. Here the parts are coordinates in a basis that is orthonormal under the
Frobenius product, so that every norm is a plain sum of squares:

======== ======= ==================================================
rows     irrep   basis tensors
======== ======= ==================================================
0        I       :math:`\mathbb{1} / \sqrt 3`
1 to 3   A       :math:`[e_k]_\times / \sqrt 2`, k = x, y, z
4 to 8   S       xy, yz, xz, xx - yy, 2zz - xx - yy, each of norm 1
======== ======= ==================================================

Features have the shape (9, N, F): components first, so that an irrep is one contiguous slice.
"""

import math

import torch
from torch import Tensor, nn

from .double import DoubleConstants


def _orthonormal_basis() -> Tensor:
    basis = torch.zeros(9, 3, 3, dtype=torch.float64)
    basis[0] = torch.eye(3, dtype=torch.float64) / math.sqrt(3)
    for k in range(3):
        i, j = (k + 1) % 3, (k + 2) % 3
        basis[1 + k, i, j] = -1 / math.sqrt(2)
        basis[1 + k, j, i] = 1 / math.sqrt(2)
    for row, (i, j) in enumerate([(0, 1), (1, 2), (0, 2)]):
        basis[4 + row, i, j] = basis[4 + row, j, i] = 1 / math.sqrt(2)
    for row, diagonal in [(7, [1.0, -1.0, 0.0]), (8, [-1.0, -1.0, 2.0])]:
        matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        basis[row] = matrix / matrix.norm()
    return basis


BASIS = _orthonormal_basis()
"""(9, 3, 3) float64, orthonormal: ``(BASIS[k] * BASIS[l]).sum()`` is 1 if k = l, else 0."""


def split_irreps(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """I, A and S of features: (9, N, F) -> (1, N, F), (3, N, F), (5, N, F)."""
    i, a, s = torch.split(x, [1, 3, 5])
    return i, a, s


def norm_squared(x: Tensor) -> Tensor:
    """Squared Frobenius norm, (9, N, F) -> (N, F)."""
    return (x * x).sum(0)


def irrep_norms_squared(x: Tensor) -> Tensor:
    """Squared norms of I, A and S side by side, (9, N, F) -> (N, 3F)."""
    i, a, s = split_irreps(x * x)
    return torch.cat([i.sum(0), a.sum(0), s.sum(0)], dim=-1)


def scale_irreps(x: Tensor, factors: Tensor) -> Tensor:
    """Multiply I, A and S by a factor each: (9, N, F) and (3, N, F) -> (9, N, F)."""
    i, a, s = split_irreps(x)
    f_i, f_a, f_s = torch.split(factors, 1)
    return torch.cat([i * f_i, a * f_a, s * f_s])


class TensorAlgebra(DoubleConstants):
    """Products of 3x3 tensors given by their components, and the tensors of directions."""

    basis: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("basis", BASIS.reshape(9, 9).clone(), persistent=False)

    def compose(self, x: Tensor) -> Tensor:
        """Components (9, N, F) -> matrices (3, 3, N, F)."""
        n, f = x.shape[1], x.shape[2]
        basis = self.basis.to(x.dtype)
        return (basis.t() @ x.reshape(9, n * f)).view(3, 3, n, f)

    def decompose(self, matrices: Tensor) -> Tensor:
        """Matrices (3, 3, N, F) -> components (9, N, F)."""
        n, f = matrices.shape[2], matrices.shape[3]
        basis = self.basis.to(matrices.dtype)
        return (basis @ matrices.reshape(9, n * f)).view(9, n, f)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """Matrix product of every atom and channel, (3, 3, N, F)."""
        a_0, a_1, a_2 = torch.split(a, 1, dim=1)
        b_0, b_1, b_2 = torch.split(b, 1)
        return a_0 * b_0 + a_1 * b_1 + a_2 * b_2

    def product(self, x: Tensor, y: Tensor) -> Tensor:
        """Components of X Y."""
        return self.decompose(self.matmul(self.compose(x), self.compose(y)))

    def anticommutator(self, x: Tensor, y: Tensor) -> Tensor:
        """Components of X Y + Y X, which mixes no parities (O(3))."""
        a, b = self.compose(x), self.compose(y)
        return self.decompose(self.matmul(a, b) + self.matmul(b, a))

    def square(self, x: Tensor) -> Tensor:
        """Components of X X."""
        a = self.compose(x)
        return self.decompose(self.matmul(a, a))

    def directions(self, unit: Tensor) -> Tensor:
        """Components of 1 + [u]x + (u u^T - 1/3), (E, 3) -> (9, E): eqs. 3 to 5 of the paper."""
        outer = unit.unsqueeze(2) * unit.unsqueeze(1)
        symmetric = self.basis[4:].to(unit.dtype) @ outer.reshape(-1, 9).t()
        scalar = torch.full_like(unit[:, 0], math.sqrt(3.0)).unsqueeze(0)
        return torch.cat([scalar, math.sqrt(2.0) * unit.t(), symmetric])


class TensorLinear(nn.Module):
    """One matrix on the channels for each irrep, without bias (eq. 9 of the paper).

    ``weight`` is (3, F, F): the matrices of I, A and S.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, channels, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as `torch.nn.Linear` does."""
        for matrix in self.weight:
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """(9, N, F) -> (9, N, F)."""
        i, a, s = split_irreps(x)
        w_i, w_a, w_s = self.weight.mT.unbind(0)
        return torch.cat([i @ w_i, a @ w_a, s @ w_s])
