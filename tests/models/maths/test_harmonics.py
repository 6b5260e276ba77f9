"""Spherical harmonics and Clebsch-Gordan tensors, against e3nn and against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.helpers import rotation

from tensormd.models.maths.harmonics import (
    MAX_DEGREE,
    SphericalHarmonics,
    clebsch_gordan,
    coupling_tensor,
    degree_slice,
    paths,
)

AXES = torch.cat([torch.eye(3), -torch.eye(3)]).double()


def directions(count: int = 200, seed: int = 0) -> torch.Tensor:
    random = torch.from_numpy(np.random.default_rng(seed).normal(size=(count, 3)))
    return torch.cat([random / random.norm(dim=1, keepdim=True), AXES])


def test_first_degrees_are_what_the_documentation_says() -> None:
    unit = directions()
    x, y, z = unit.T
    found = SphericalHarmonics(2)(unit)
    expected = [
        torch.ones_like(x), 3**0.5 * x, 3**0.5 * y, 3**0.5 * z,
        15**0.5 * x * z, 15**0.5 * x * y, 5**0.5 / 2 * (3 * y * y - 1),
        15**0.5 * y * z, 15**0.5 / 2 * (z * z - x * x),
    ]  # fmt: skip
    assert (found - torch.stack(expected, 1)).abs().max() < 1e-14


@pytest.mark.parametrize("lmax", range(MAX_DEGREE + 1))
def test_harmonics_are_those_of_e3nn(lmax: int) -> None:
    o3 = pytest.importorskip("e3nn.o3", reason="compares with e3nn")
    unit = directions()
    expected = o3.spherical_harmonics(
        list(range(lmax + 1)), unit, normalize=True, normalization="component"
    )
    assert (SphericalHarmonics(lmax)(unit) - expected).abs().max() < 1e-12


def test_couplings_are_those_of_e3nn() -> None:
    o3 = pytest.importorskip("e3nn.o3", reason="compares with e3nn")
    for l1, l2, l3 in paths(MAX_DEGREE, "SO(3)"):
        expected = o3.wigner_3j(l1, l2, l3, dtype=torch.float64).numpy()
        assert np.abs(clebsch_gordan(l1, l2, l3) - expected).max() < 1e-12


def test_component_normalisation() -> None:
    values = SphericalHarmonics(MAX_DEGREE)(directions())
    for degree in range(MAX_DEGREE + 1):
        norms = values[:, degree_slice(degree)].square().sum(1)
        assert (norms - (2 * degree + 1)).abs().max() < 1e-12


def representation(lmax: int, matrix: np.ndarray) -> np.ndarray:
    """D with Y(Q u) = D Y(u), from the harmonics alone."""
    unit = directions(500, seed=7)
    harmonics = SphericalHarmonics(lmax)
    before = harmonics(unit).numpy()
    after = harmonics(unit @ torch.from_numpy(matrix).T).numpy()
    blocks = np.zeros((before.shape[1],) * 2)
    for degree in range(lmax + 1):
        part = degree_slice(degree)
        blocks[part, part] = np.linalg.lstsq(before[:, part], after[:, part], rcond=None)[0].T
    return blocks


@pytest.mark.parametrize("group", ["O(3)", "SO(3)"])
@pytest.mark.parametrize("lmax", [1, 2, 4, 6])
def test_the_coupling_tensor_is_invariant(lmax: int, group: str) -> None:
    tensor = coupling_tensor(lmax, group)
    for seed in range(3):
        d = representation(lmax, rotation(seed))
        turned = np.einsum("abc,ai,bj,ck->ijk", tensor, d, d, d, optimize=True)
        assert np.abs(turned - tensor).max() < 1e-12


def test_only_even_paths_keep_their_sign_under_inversion() -> None:
    parity = np.concatenate([[(-1.0) ** degree] * (2 * degree + 1) for degree in range(4)])
    signs = np.einsum("i,j,k->ijk", parity, parity, parity)
    even, all_paths = coupling_tensor(3, "O(3)"), coupling_tensor(3, "SO(3)")
    assert np.array_equal(even * signs, even)
    assert not np.array_equal(all_paths * signs, all_paths)
    assert np.array_equal(even, all_paths * (signs > 0))
    assert len(paths(1, "O(3)")) == 4
    assert len(paths(1, "SO(3)")) == 5


def test_norm_and_symmetry_of_one_coupling() -> None:
    """1 x 1 -> 1 is the cross product."""
    tensor = clebsch_gordan(1, 1, 1)
    assert abs(np.linalg.norm(tensor) - 1) < 1e-14
    a, b = np.array([0.3, -0.2, 0.5]), np.array([1.0, 0.4, -0.7])
    found = np.einsum("ijk,i,j->k", tensor, a, b) * np.sqrt(6)
    assert np.allclose(np.abs(found), np.abs(np.cross(a, b)), atol=1e-14)
    assert np.allclose(found, np.sign(found[0] / np.cross(a, b)[0]) * np.cross(a, b), atol=1e-14)


def test_gradients_are_finite_for_every_direction() -> None:
    vectors = (AXES * 1.7).clone().requires_grad_(True)
    harmonics = SphericalHarmonics(MAX_DEGREE)

    def values(v: torch.Tensor) -> torch.Tensor:
        return harmonics(v / v.norm(dim=1, keepdim=True))

    assert torch.autograd.gradcheck(values, vectors)
    assert torch.autograd.gradgradcheck(values, vectors)


def test_script_equals_eager() -> None:
    unit = directions()
    for lmax in (0, 1, 3, 6):
        module = SphericalHarmonics(lmax)
        assert torch.equal(torch.jit.script(module)(unit), module(unit))


@pytest.mark.parametrize("lmax", [-1, 7, 1.0, True])
def test_degree_out_of_range(lmax: int) -> None:
    with pytest.raises(ValueError, match="expected a whole number from 0 to 6"):
        SphericalHarmonics(lmax)
    with pytest.raises(ValueError, match="expected a whole number from 0 to 6"):
        paths(lmax)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="do not couple"):
        clebsch_gordan(1, 1, 3)
    with pytest.raises(ValueError, match=r"O\(2\)"):
        paths(1, "O(2)")
