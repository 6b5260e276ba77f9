"""Radial bases and cutoffs against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor
from torchmdnet.models.utils import CosineCutoff as TorchMDCutoff
from torchmdnet.models.utils import ExpNormalSmearing, GaussianSmearing

from tensormd.models.maths.radial import (
    RADIAL_BASES,
    CosineCutoff,
    ExpNormalBasis,
    GaussianBasis,
    SmoothBesselBasis,
    radial_basis,
)

CUTOFF, SIZE = 4.5, 8
R = torch.linspace(0.0, 5.0, 101, dtype=torch.float64)


def derivative(function: object, r: Tensor, order: int) -> Tensor:
    """Of each column of ``function(r)``, (E, K), by automatic differentiation."""
    r = r.clone().requires_grad_(True)
    columns = []
    for values in function(r).unbind(-1):  # type: ignore[operator]
        for _ in range(order):
            (values,) = torch.autograd.grad(values.sum(), r, create_graph=True)
        columns.append(values.detach())
    return torch.stack(columns, dim=-1)


# Cutoffs


def test_cosine_cutoff() -> None:
    found = CosineCutoff(CUTOFF)(R)
    r = R.numpy()
    expected = np.where(r < CUTOFF, 0.5 * (np.cos(np.pi * r / CUTOFF) + 1), 0.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)
    assert found[0] == 1
    assert (found[R >= CUTOFF] == 0).all()


@pytest.mark.parametrize("lower", [0.0, 0.5, 1.3])
def test_cosine_cutoff_equals_torchmd_nets(lower: float) -> None:
    expected = TorchMDCutoff(lower, CUTOFF)(R)
    assert expected.max() > 0.9
    assert (CosineCutoff(CUTOFF, lower)(R) - expected).abs().max() < 1e-15


@pytest.mark.parametrize("lower", [0.0, 0.5])
def test_cutoff_and_its_slope_vanish_at_the_end(lower: float) -> None:
    envelope = CosineCutoff(CUTOFF, lower)
    ends = [CUTOFF - 1e-9] + ([lower + 1e-9] if lower else [])
    r = torch.tensor(ends, dtype=torch.float64)
    assert envelope(r).max() < 1e-15
    slope = derivative(lambda r: envelope(r).unsqueeze(-1), r, 1)
    assert slope.abs().max() < 1e-8


# Bases


def parameters_in_double(size: int, lower: float) -> tuple[Tensor, Tensor]:
    start = math.exp(lower - CUTOFF)
    means = torch.linspace(start, 1, size, dtype=torch.float64)
    return means, torch.full((size,), (2 / size * (1 - start)) ** -2, dtype=torch.float64)


@pytest.mark.parametrize("lower", [0.0, 0.5])
def test_expnorm_equals_torchmd_nets(lower: float) -> None:
    theirs = ExpNormalSmearing(lower, CUTOFF, SIZE, trainable=False, dtype=torch.float64)
    ours = ExpNormalBasis(CUTOFF, SIZE, lower).double()
    # Ours are made in float32, as checkpoints hold them.
    assert (ours.means - theirs.means).abs().max() < 1e-7
    assert (ours.betas / theirs.betas - 1).abs().max() < 1e-6
    ours.load_state_dict(theirs.state_dict())
    expected = theirs(R)
    assert expected.max() > 0.9
    assert (ours(R) - expected).abs().max() < 1e-15


def test_expnorm_by_its_formula() -> None:
    basis = ExpNormalBasis(CUTOFF, SIZE).double()
    basis.means, basis.betas = parameters_in_double(SIZE, 0.0)
    r = 1.7
    decay = math.exp(-5 * r / CUTOFF)
    envelope = 0.5 * (math.cos(math.pi * r / CUTOFF) + 1)
    expected = [
        envelope * math.exp(-beta * (decay - mean) ** 2)
        for mean, beta in zip(basis.means.tolist(), basis.betas.tolist(), strict=True)
    ]
    found = basis(torch.tensor([r], dtype=torch.float64))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-14)


@pytest.mark.parametrize("lower", [0.0, 0.5])
def test_gauss_equals_torchmd_nets(lower: float) -> None:
    theirs = GaussianSmearing(lower, CUTOFF, SIZE, trainable=False, dtype=torch.float64)
    ours = GaussianBasis(CUTOFF, SIZE, lower).double()
    assert (ours.centres - theirs.offset).abs().max() < 1e-6
    assert abs(ours.coefficient / theirs.coeff - 1) < 1e-6
    ours.centres, ours.coefficient = theirs.offset, theirs.coeff
    expected = theirs(R)
    assert expected.max() > 0.9
    assert (ours(R) - expected).abs().max() < 1e-15


def test_gauss_by_its_formula() -> None:
    found = GaussianBasis(CUTOFF, SIZE).double()(R)
    spacing = CUTOFF / (SIZE - 1)
    centres = spacing * np.arange(SIZE)
    expected = np.exp(-0.5 * ((R.numpy()[:, None] - centres) / spacing) ** 2)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)  # parameters of float32


@pytest.mark.parametrize("size", [1, 3, 8])
def test_bessel_functions_are_orthonormal(size: int) -> None:
    nodes, weights = leggauss(200)
    r = torch.from_numpy(0.5 * CUTOFF * (nodes + 1))
    g = SmoothBesselBasis(CUTOFF, size)(r)
    measure = torch.from_numpy(0.5 * CUTOFF * weights) * r**2
    gram = g.T @ (measure.unsqueeze(1) * g)
    assert (gram - torch.eye(size, dtype=torch.float64)).abs().max() < 1e-12


def test_bessel_functions_by_their_formula() -> None:
    """Gram-Schmidt by quadrature, of the f_n written out, gives the recursion's g_n."""
    nodes, weights = leggauss(200)
    r = 0.5 * CUTOFF * (nodes + 1)
    measure = 0.5 * CUTOFF * weights * r**2
    expected: list[np.ndarray] = []
    for n in range(SIZE):
        a, b = n + 1, n + 2
        x = np.pi * r / CUTOFF
        f = (-1) ** n * a * b * (np.sin(a * x) / (a * x) + np.sin(b * x) / (b * x))
        f *= math.sqrt(2) * math.pi / CUTOFF**1.5 / math.hypot(a, b)
        for g in expected:
            f = f - g * (measure * g * f).sum()
        expected.append(f / math.sqrt((measure * f * f).sum()))
    found = SmoothBesselBasis(CUTOFF, SIZE)(torch.from_numpy(r))
    np.testing.assert_allclose(found, np.stack(expected, axis=1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_bessel_functions_vanish_smoothly_at_the_cutoff(order: int) -> None:
    basis = SmoothBesselBasis(CUTOFF, SIZE)
    inside = derivative(basis, torch.tensor([0.3 * CUTOFF], dtype=torch.float64), order)
    end = derivative(basis, torch.tensor([CUTOFF], dtype=torch.float64), order)
    assert inside.abs().min() > 1e-3
    assert end.abs().max() < 1e-11 * inside.abs().max()
    third = derivative(basis, torch.tensor([CUTOFF], dtype=torch.float64), 3)
    assert third.abs().max() > 1  # no further: the control


@pytest.mark.parametrize("kind", RADIAL_BASES)
def test_bases_are_finite_and_smooth_at_zero(kind: str) -> None:
    basis = radial_basis(kind, CUTOFF, SIZE).double()
    r = torch.tensor([0.0, 1e-8, 1e-4], dtype=torch.float64)
    values = basis(r)
    assert values.shape == (3, SIZE)
    assert torch.isfinite(values).all()
    assert (values[0] - values[1]).abs().max() < 1e-6
    assert torch.isfinite(derivative(basis, r, 1)).all()


@pytest.mark.parametrize("kind", ["expnorm", "gauss"])
def test_trainable_parameters(kind: str) -> None:
    assert not list(radial_basis(kind, CUTOFF, SIZE).parameters())
    basis = radial_basis(kind, CUTOFF, SIZE, trainable=True)
    parameters = list(basis.parameters())
    assert len(parameters) == 2
    gradients = torch.autograd.grad(basis(R.float()).square().sum(), parameters)
    assert all(g.abs().max() > 0 for g in gradients)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gaussian", CUTOFF, SIZE), "unknown radial basis 'gaussian': expected one of expnorm"),
        (("bessel", CUTOFF, SIZE, 0.5), "no lower cutoff"),
        (("bessel", CUTOFF, SIZE, 0.0, True), "nothing to train"),
        (("gauss", CUTOFF, 1), "expected at least 2"),
    ],
)
def test_bad_arguments(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        radial_basis(*arguments)  # type: ignore[arg-type]
