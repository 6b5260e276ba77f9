"""Nine components against 3x3 matrices."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from support.helpers import rotation
from torch import Tensor

from tensormd.models.maths.cartesian import (
    BASIS,
    TensorAlgebra,
    TensorLinear,
    irrep_norms_squared,
    norm_squared,
    scale_irreps,
    split_irreps,
)

ATOMS, CHANNELS = 4, 5
EXACT = 1e-13  # a few roundings of numbers of order one


@pytest.fixture
def x() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(9, ATOMS, CHANNELS, dtype=torch.float64, generator=generator)


@pytest.fixture
def y() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(9, ATOMS, CHANNELS, dtype=torch.float64, generator=generator)


@pytest.fixture
def unit() -> Tensor:
    vectors = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 3)))
    return vectors / vectors.norm(dim=1, keepdim=True)


def matrices(x: Tensor) -> Tensor:
    """(9, N, F) -> (N, F, 3, 3), written out with the basis."""
    return torch.einsum("knf,kij->nfij", x, BASIS)


def components(matrices: Tensor) -> Tensor:
    return torch.einsum("nfij,kij->knf", matrices, BASIS)


def assert_close(a: Tensor, b: Tensor, bound: float = EXACT) -> None:
    assert a.shape == b.shape
    assert b.abs().max() > 0.1
    assert (a - b).abs().max() < bound


def test_basis_is_orthonormal() -> None:
    gram = torch.einsum("kij,lij->kl", BASIS, BASIS)
    assert (gram - torch.eye(9, dtype=torch.float64)).abs().max() < 1e-15


def test_basis_holds_the_irreps() -> None:
    i, a, s = BASIS.split([1, 3, 5])
    assert torch.equal(i[0], torch.eye(3, dtype=torch.float64) / math.sqrt(3))
    assert torch.equal(a, -a.mT)
    assert torch.equal(s, s.mT)
    assert s.diagonal(dim1=1, dim2=2).sum(1).abs().max() < 1e-15


def test_a_is_the_cross_product() -> None:
    v, w = torch.tensor([[1.0, 2.0, 3.0], [-0.4, 0.5, 0.7]], dtype=torch.float64)
    cross = math.sqrt(2) * torch.einsum("k,kij->ij", v, BASIS[1:4])
    assert (cross @ w - torch.linalg.cross(v, w)).abs().max() < 1e-15


def test_compose_and_decompose_are_inverse(x: Tensor) -> None:
    algebra = TensorAlgebra()
    composed = algebra.compose(x)
    assert_close(composed.permute(2, 3, 0, 1), matrices(x))
    assert_close(algebra.decompose(composed), x)
    assert_close(algebra.compose(algebra.decompose(composed)), composed)


def test_products_are_those_of_matrices(x: Tensor, y: Tensor) -> None:
    algebra, a, b = TensorAlgebra(), matrices(x), matrices(y)
    assert_close(algebra.product(x, y), components(a @ b))
    assert_close(algebra.anticommutator(x, y), components(a @ b + b @ a))
    assert_close(algebra.square(x), components(a @ a))
    assert (components(a @ b) - components(b @ a)).abs().max() > 0.1  # their order matters


def test_anticommutator_mixes_no_parities(x: Tensor, y: Tensor) -> None:
    """Inversion turns the sign of A, which stands for a vector; SO(3)'s product mixes."""
    algebra = TensorAlgebra()
    sign = torch.tensor([1.0] + 3 * [-1.0] + 5 * [1.0], dtype=torch.float64).view(9, 1, 1)
    turned = sign * algebra.anticommutator(sign * x, sign * y)
    assert_close(turned, algebra.anticommutator(x, y))
    mixed = sign * algebra.product(sign * x, sign * y)
    assert (mixed - algebra.product(x, y)).abs().max() > 0.1


def test_irreps_rotate_among_themselves(x: Tensor) -> None:
    q = torch.from_numpy(rotation(2))
    turned = components(q @ matrices(x) @ q.T)
    i, a, s = split_irreps(x)
    turned_i, turned_a, turned_s = split_irreps(turned)
    assert_close(turned_i, i)
    assert_close(turned_a, torch.einsum("kl,lnf->knf", q, a))  # a vector
    wigner = torch.einsum("kij,ia,jb,lab->kl", BASIS[4:], q, q, BASIS[4:])
    assert_close(turned_s, torch.einsum("kl,lnf->knf", wigner, s))
    assert_close(irrep_norms_squared(turned), irrep_norms_squared(x), 1e-12)


def test_norms(x: Tensor) -> None:
    squares = matrices(x).square().sum((-1, -2))
    assert_close(norm_squared(x), squares, 1e-12)
    parts = irrep_norms_squared(x)
    assert parts.shape == (ATOMS, 3 * CHANNELS)
    matrix = matrices(x)
    trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
    antisymmetric = 0.5 * (matrix - matrix.mT)
    i, a, s = parts.split(CHANNELS, dim=1)
    assert_close(i, trace.square() / 3, 1e-12)
    assert_close(a, antisymmetric.square().sum((-1, -2)), 1e-12)
    assert_close(i + a + s, squares, 1e-12)


def test_scale_irreps(x: Tensor) -> None:
    factors = torch.randn(3, ATOMS, CHANNELS, dtype=torch.float64)
    expected = torch.stack([x[k] * factors[[0, 1, 1, 1, 2, 2, 2, 2, 2][k]] for k in range(9)])
    assert torch.equal(scale_irreps(x, factors), expected)


def test_directions_follow_the_paper(unit: Tensor) -> None:
    """1 + [u]x + (u u^T - 1/3), eqs. 3 to 5."""
    found = matrices(TensorAlgebra().directions(unit).unsqueeze(2))[:, 0]
    eye = torch.eye(3, dtype=torch.float64)
    for tensor, u in zip(found, unit, strict=True):
        a, b, c = u.tolist()
        cross = torch.tensor([[0, -c, b], [c, 0, -a], [-b, a, 0]], dtype=torch.float64)
        assert_close(tensor, eye + cross + torch.outer(u, u) - eye / 3)


def test_directions_rotate_with_the_edges(unit: Tensor) -> None:
    algebra, q = TensorAlgebra(), torch.from_numpy(rotation(1))
    turned = components(q @ matrices(algebra.directions(unit).unsqueeze(2)) @ q.T)
    assert_close(algebra.directions(unit @ q.T), turned.squeeze(2))


def test_linear_has_one_matrix_for_each_irrep(x: Tensor) -> None:
    linear = TensorLinear(CHANNELS).double()
    rows = [0, 1, 1, 1, 2, 2, 2, 2, 2]
    expected = torch.stack([x[k] @ linear.weight[rows[k]].T for k in range(9)])
    assert_close(linear(x), expected)


def test_linear_commutes_with_rotation(x: Tensor) -> None:
    linear, q = TensorLinear(CHANNELS).double(), torch.from_numpy(rotation(5))

    def turn(x: Tensor) -> Tensor:
        return components(q @ matrices(x) @ q.T)

    assert_close(linear(turn(x)), turn(linear(x)))


def test_basis_is_no_weight_and_keeps_its_digits() -> None:
    algebra = TensorAlgebra()
    assert not algebra.state_dict()
    for changed in (algebra.float().double(), algebra.half(), copy.deepcopy(algebra)):
        assert torch.equal(changed.basis, BASIS.reshape(9, 9))


def test_float32_stays_float32(x: Tensor, unit: Tensor) -> None:
    algebra = TensorAlgebra()
    assert algebra.square(x.float()).dtype == torch.float32
    assert algebra.directions(unit.float()).dtype == torch.float32
    # 6e-8 each, sums of nine
    assert_close(algebra.square(x.float()).double(), algebra.square(x), 1e-5)
