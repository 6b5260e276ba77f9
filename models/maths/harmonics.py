r"""Real spherical harmonics and the Clebsch-Gordan tensors that couple them.

Both are in e3nn's real basis: degree l has 2l + 1 components, m = -l to l, with y as the polar
axis. For l = 1 they are x, y, z; for l = 2

.. math:: \sqrt{15} x z,\ \sqrt{15} x y,\ \tfrac{\sqrt 5}{2} (3 y^2 - 1),\ \sqrt{15} y z,\
    \tfrac{\sqrt{15}}{2} (z^2 - x^2)

in *component* normalisation: :math:`\sum_m Y_{lm}^2 = 2l + 1` for every direction. Degrees
0 to L have :math:`d = (L + 1)^2` components together; if only some are kept (``degrees``), these
are contiguous.
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

MAX_DEGREE = 6
GROUPS = ("O(3)", "SO(3)")


def check_degree(lmax: int, highest: int = MAX_DEGREE, lowest: int = 0) -> int:
    """Check a degree, and return it.

    Raises
    ------
    ValueError
        If it is not a whole number from ``lowest`` to ``highest``.
    """
    if isinstance(lmax, bool) or not isinstance(lmax, int) or not lowest <= lmax <= highest:
        raise ValueError(
            f"the maximum degree L is {lmax!r}: expected a whole number from {lowest} to {highest}"
        )
    return lmax


def check_degrees(degrees: Sequence[int]) -> tuple[int, ...]:
    """Check degrees, and return them in ascending order.

    Raises
    ------
    ValueError
        If a degree is out of range or occurs twice, or 0 is missing.
    """
    found = tuple(sorted(check_degree(degree) for degree in degrees))
    if 0 not in found or len(set(found)) < len(found):
        raise ValueError(
            f"degrees are {list(degrees)}: expected 0, which the energy comes from, and others, "
            "each once"
        )
    return found


def check_group(group: str) -> str:
    """Check a group, and return it.

    Raises
    ------
    ValueError
        If it is not one of ``GROUPS``.
    """
    if group not in GROUPS:
        raise ValueError(f"unknown group {group!r}: expected one of {', '.join(GROUPS)}")
    return group


class SphericalHarmonics(nn.Module):
    r"""Harmonics of unit vectors, of all degrees from 0 to L or some of them.

    .. math::
        Y_{lm} = \sqrt{2l+1} \sqrt{\frac{(2 - \delta_{m0}) (l-|m|)!}{(l+|m|)!}}
        \; \Pi_l^{|m|}(y) \;
        \begin{cases} \Re (z + i x)^m & m \ge 0 \\ \Im (z + i x)^{|m|} & m < 0 \end{cases}

    where :math:`\Pi_l^m` is the associated Legendre polynomial without its factor
    :math:`(1 - y^2)^{m/2}`. Everything is polynomial in the components, so gradients are
    finite for all directions, including the axes.

    Parameters
    ----------
    lmax
        Highest degree L, 0 to 6.
    degrees
        Degrees of the result; None: all.
    """

    def __init__(self, lmax: int, degrees: Sequence[int] | None = None) -> None:
        super().__init__()
        self.lmax = check_degree(lmax)
        self.degrees = list(range(lmax + 1) if degrees is None else degrees)
        self.norms = [
            [
                math.sqrt(2 * degree + 1)
                * math.sqrt((2 - (m == 0)) * math.factorial(degree - m))
                / math.sqrt(math.factorial(degree + m))
                for m in range(degree + 1)
            ]
            for degree in range(lmax + 1)
        ]

    def forward(self, unit: Tensor) -> Tensor:
        """Unit vectors (E, 3) -> (E, d)."""
        x, y, z = unit[:, 0], unit[:, 1], unit[:, 2]
        cosines = [torch.ones_like(x)]
        sines = [torch.zeros_like(x)]
        for m in range(self.lmax):
            cosines.append(z * cosines[m] - x * sines[m])
            sines.append(z * sines[m] + x * cosines[m])
        # legendre[l][m]
        legendre = [[torch.ones_like(x)]]
        for degree in range(1, self.lmax + 1):
            row: list[Tensor] = []
            for m in range(degree - 1):
                lower = (2 * degree - 1) * y * legendre[degree - 1][m]
                lowest = (degree + m - 1) * legendre[degree - 2][m]
                row.append((lower - lowest) / (degree - m))
            row.append((2 * degree - 1) * y * legendre[degree - 1][degree - 1])
            row.append((2 * degree - 1) * legendre[degree - 1][degree - 1])
            legendre.append(row)
        columns: list[Tensor] = []
        for degree in self.degrees:
            for k in range(-degree, degree + 1):
                m = abs(k)
                phase = sines[m] if k < 0 else cosines[m]
                columns.append(self.norms[degree][m] * legendre[degree][m] * phase)
        return torch.stack(columns, dim=1)


# Clebsch-Gordan tensors


def _su2_coefficient(l1: int, l2: int, l3: int, m1: int, m2: int) -> float:
    """<l1 m1 l2 m2 | l3 m1+m2> by Racah's formula, summed in integers."""
    f = math.factorial
    m3 = m1 + m2
    total = 0
    denominator = 1
    for k in range(max(0, l2 - l3 - m1, l1 - l3 + m2), min(l1 + l2 - l3, l1 - m1, l2 + m2) + 1):
        product = (
            f(k) * f(l1 + l2 - l3 - k) * f(l1 - m1 - k) * f(l2 + m2 - k)
            * f(l3 - l2 + m1 + k) * f(l3 - l1 - m2 + k)
        )  # fmt: skip
        total = total * product + (-1) ** k * denominator
        denominator *= product
    square = (
        (2 * l3 + 1) * f(l3 + l1 - l2) * f(l3 - l1 + l2) * f(l1 + l2 - l3)
        * f(l3 + m3) * f(l3 - m3) * f(l1 - m1) * f(l1 + m1) * f(l2 - m2) * f(l2 + m2)
    )  # fmt: skip
    return total / denominator * math.sqrt(square / f(l1 + l2 + l3 + 1))


def _real_from_complex(degree: int) -> NDArray[np.complex128]:
    """Unitary Q[m complex, m real] of one degree, times (-i)^l so that all couplings are real."""
    q = np.zeros((2 * degree + 1, 2 * degree + 1), dtype=np.complex128)
    q[degree, degree] = 1
    for m in range(1, degree + 1):
        q[degree - m, degree + m] = 1 / math.sqrt(2)
        q[degree - m, degree - m] = -1j / math.sqrt(2)
        q[degree + m, degree + m] = (-1) ** m / math.sqrt(2)
        q[degree + m, degree - m] = 1j * (-1) ** m / math.sqrt(2)
    return (-1j) ** degree * q


@cache
def _coupling(l1: int, l2: int, l3: int) -> NDArray[np.float64]:
    c = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    for m1 in range(-l1, l1 + 1):
        for m2 in range(max(-l2, -l3 - m1), min(l2, l3 - m1) + 1):
            c[l1 + m1, l2 + m2, l3 + m1 + m2] = _su2_coefficient(l1, l2, l3, m1, m2)
    q1, q2, q3 = (_real_from_complex(degree) for degree in (l1, l2, l3))
    real = np.einsum("ai,bj,ck,abc->ijk", q1, q2, q3.conj(), c).real
    return real / np.linalg.norm(real)


def clebsch_gordan(l1: int, l2: int, l3: int) -> NDArray[np.float64]:
    r"""Invariant tensor that couples degrees l1 and l2 to l3, of Frobenius norm 1.

    .. math:: C_{ijk} = \sum_{i'j'k'} D^{l_1}_{i'i} D^{l_2}_{j'j} D^{l_3}_{k'k} C_{i'j'k'}

    for every rotation. It equals e3nn's ``wigner_3j``, including the sign.

    Returns
    -------
    ndarray
        C, (2 l1 + 1, 2 l2 + 1, 2 l3 + 1) float64.

    Raises
    ------
    ValueError
        If a degree is out of range or the three violate the triangle inequality.
    """
    for degree in (l1, l2, l3):
        check_degree(degree)
    if not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ValueError(
            f"degrees {l1}, {l2} and {l3} do not couple: expected |l1 - l2| <= l3 <= l1 + l2"
        )
    return _coupling(l1, l2, l3).copy()


def paths(
    lmax: int, group: str = "O(3)", degrees: Sequence[int] | None = None
) -> list[tuple[int, int, int]]:
    """All (l1, l2, l3) up to L that couple; for O(3) only those with an even sum.

    A feature of degree l has parity (-1)^l: an odd sum would mix parities, and mirror images
    would have different energies. ``degrees`` restricts all three degrees to these.
    """
    check_degree(lmax)
    check_group(group)
    degrees = range(lmax + 1) if degrees is None else degrees
    return [
        (l1, l2, l3)
        for l1 in degrees
        for l2 in degrees
        for l3 in range(abs(l1 - l2), min(lmax, l1 + l2) + 1)
        if l3 in degrees and (group == "SO(3)" or (l1 + l2 + l3) % 2 == 0)
    ]


def degree_slice(degree: int) -> slice:
    """Slice of the components of one degree among all d."""
    return slice(degree**2, (degree + 1) ** 2)


def degree_slices(degrees: Sequence[int]) -> dict[int, slice]:
    """Slice of the components of each degree, if there are only these degrees."""
    found, start = {}, 0
    for degree in degrees:
        found[degree] = slice(start, start + 2 * degree + 1)
        start += 2 * degree + 1
    return found


def coupling_tensor(
    lmax: int, group: str = "O(3)", degrees: Sequence[int] | None = None
) -> NDArray[np.float64]:
    """Sum of the Clebsch-Gordan tensors of all paths, M[i, j, k], (d, d, d) float64.

    With one weight for all paths (path-weight sharing, Lin et al. 2025, arXiv:2507.01131) the
    tensor product is one bilinear map: out[k] = sum_ij M[i, j, k] x[i] y[j].
    """
    places = degree_slices(range(lmax + 1) if degrees is None else degrees)
    size = sum(2 * degree + 1 for degree in places)
    tensor = np.zeros((size, size, size))
    for l1, l2, l3 in paths(lmax, group, degrees):
        tensor[places[l1], places[l2], places[l3]] = _coupling(l1, l2, l3)
    return tensor
