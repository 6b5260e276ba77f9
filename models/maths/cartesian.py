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

Features have the shape (n, N, F): components first, so that an irrep is one contiguous slice. A
network has the irreps of one of ``SUBSETS``: n is 9 for IAS, 6 for IS, 4 for IA and 1 for I. The
rows of missing irreps are omitted, and products are projected onto the others.
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
"""Orthonormal basis, (9, 3, 3) float64: ``(BASIS[k] * BASIS[l]).sum()`` is 1 if k = l, else 0."""

COMPONENTS = {"I": 1, "A": 3, "S": 5}
"""Number of components of each irrep."""
ROWS = {"I": slice(0, 1), "A": slice(1, 4), "S": slice(4, 9)}
"""Rows of the basis by irrep."""
SUBSETS = ("IAS", "IS", "IA", "I")
"""Possible sets of irreps of a network; I is in all of them."""


BY_COMPONENTS = {9: "IAS", 6: "IS", 4: "IA", 1: "I"}
"""Sets of irreps by their number of components."""


def check_irreps(irreps: str) -> str:
    """Check a set of irreps, and return it.

    Raises
    ------
    ValueError
        If they are not one of ``SUBSETS``.
    """
    if irreps not in SUBSETS:
        raise ValueError(f"irreps is {irreps!r}: expected one of {', '.join(SUBSETS)}")
    return irreps


def split_irreps(x: Tensor) -> list[Tensor]:
    """Irreps of features: (n, N, F) -> (1, 3 or 5, N, F) each."""
    if x.shape[0] == 9:
        return list(torch.split(x, [1, 3, 5]))
    if x.shape[0] == 1:
        return [x]
    return list(torch.split(x, [1, x.shape[0] - 1]))


def norm_squared(x: Tensor) -> Tensor:
    """Squared Frobenius norm, (n, N, F) -> (N, F)."""
    return (x * x).sum(0)


def irrep_norms_squared(x: Tensor) -> Tensor:
    """Squared norms of the irreps side by side, (n, N, F) -> (N, 3F), fewer for fewer irreps."""
    return torch.cat([part.sum(0) for part in split_irreps(x * x)], dim=-1)


def scale_irreps(x: Tensor, factors: Tensor) -> Tensor:
    """Multiply each irrep by a factor: (n, N, F) and (irreps, N, F) -> (n, N, F)."""
    by_irrep = torch.split(factors, 1)
    return torch.cat([part * by_irrep[k] for k, part in enumerate(split_irreps(x))])


class TensorAlgebra(DoubleConstants):
    """Products of 3x3 tensors in components, and tensors of directions.

    Parameters
    ----------
    irreps
        Irreps of the components; others are omitted from every result.
    kept
        Irreps that are not set to zero in results; None: all of ``irreps``.
    """

    basis: Tensor

    def __init__(self, irreps: str = "IAS", kept: str | None = None) -> None:
        super().__init__()
        self.irreps = check_irreps(irreps)
        kept = irreps if kept is None else kept
        basis = torch.cat([BASIS[ROWS[irrep]] * (irrep in kept) for irrep in irreps])
        self.register_buffer("basis", basis.reshape(-1, 9), persistent=False)
        self.vector = math.sqrt(2.0) if "A" in kept else 0.0

    def compose(self, x: Tensor) -> Tensor:
        """Components (n, N, F) -> matrices (3, 3, N, F)."""
        n, f = x.shape[1], x.shape[2]
        basis = self.basis.to(x.dtype)
        return (basis.t() @ x.reshape(x.shape[0], n * f)).view(3, 3, n, f)

    def decompose(self, matrices: Tensor) -> Tensor:
        """Matrices (3, 3, N, F) -> components (n, N, F)."""
        n, f = matrices.shape[2], matrices.shape[3]
        basis = self.basis.to(matrices.dtype)
        return (basis @ matrices.reshape(9, n * f)).view(basis.shape[0], n, f)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """Matrix product of every atom and channel, (3, 3, N, F)."""
        a_0, a_1, a_2 = torch.split(a, 1, dim=1)
        b_0, b_1, b_2 = torch.split(b, 1)
        return a_0 * b_0 + a_1 * b_1 + a_2 * b_2

    def product(self, x: Tensor, y: Tensor) -> Tensor:
        """Components of X Y."""
        return self.decompose(self.matmul(self.compose(x), self.compose(y)))

    def anticommutator(self, x: Tensor, y: Tensor) -> Tensor:
        """Components of X Y + Y X, which does not mix parities (O(3))."""
        a, b = self.compose(x), self.compose(y)
        return self.decompose(self.matmul(a, b) + self.matmul(b, a))

    def square(self, x: Tensor) -> Tensor:
        """Components of X X."""
        a = self.compose(x)
        return self.decompose(self.matmul(a, a))

    def directions(self, unit: Tensor) -> Tensor:
        """Components of 1 + [u]x + (u u^T - 1/3), (E, 3) -> (n, E): eqs. 3 to 5 of the paper."""
        parts: list[Tensor] = []
        if "S" in self.irreps:
            outer = unit.unsqueeze(2) * unit.unsqueeze(1)
            # In this order, because products of five rows depend on the number of threads.
            parts = [(outer.reshape(-1, 9) @ self.basis[-5:].to(unit.dtype).t()).t()]
        if "A" in self.irreps:
            parts.insert(0, self.vector * unit.t())
        parts.insert(0, torch.full_like(unit[:, :1].t(), math.sqrt(3.0)))
        return torch.cat(parts)


class TensorLinear(nn.Module):
    """One matrix over channels for each irrep, without bias (eq. 9 of the paper).

    ``weight`` is (irreps, F, F): the matrices of the irreps in order.
    """

    def __init__(self, channels: int, irreps: str = "IAS") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(len(irreps), channels, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as `torch.nn.Linear` does."""
        for matrix in self.weight:
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """(n, N, F) -> (n, N, F)."""
        matrices = self.weight.mT.unbind(0)
        return torch.cat([part @ matrices[k] for k, part in enumerate(split_irreps(x))])
