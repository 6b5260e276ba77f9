"""Tables of functions of a distance: uniform cubic B-splines, smooth enough for dynamics."""

from collections.abc import Callable

import numpy as np
import torch
from scipy.linalg import solveh_banded  # type: ignore[import-untyped]
from torch import Tensor, nn

from .double import DoubleConstants

RadialFunction = Callable[[Tensor], Tensor]
"""Function from distances (E,) float64 to (E, M) float64."""


def spline_weights(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Six times the weights w of `spline_coefficients`, for t from 0 to 1.

    The CPU kernels compile this function for numbers.
    """
    s = 1 - t
    return s * s * s, (3 * t - 6) * t * t + 4, (3 * s - 6) * s * s + 4, t * t * t


def spline_coefficients(
    function: RadialFunction, cutoff: float, intervals: int, lower: float = 0.0
) -> Tensor:
    r"""Coefficients of the cubic spline that interpolates a function of the distance.

    The knots are :math:`r_k = r_l + k h` with :math:`h = (r_c - r_l) / n`, k = 0 to n. Between
    two knots, with :math:`t = (r - r_k) / h`,

    .. math::
        f(r) = \sum_{m=0}^{3} w_m(t) \, c_{k+m}, \qquad
        w = \tfrac16 \left( (1-t)^3, \; 3t^3 - 6t^2 + 4, \; 3(1-t)^3 - 6(1-t)^2 + 4, \; t^3
        \right)

    The spline has the values of the function at all knots, its slopes at the first and the last,
    and two continuous derivatives. Its error scales as h^4, that of its derivative as h^3.

    Parameters
    ----------
    function
        Function from distances (E,) to (E, M), smooth between the ends, and differentiable there.
    cutoff, lower
        Ends of the table, r_c and r_l.
    intervals
        Number of intervals, n.

    Returns
    -------
    Tensor
        Coefficients c, (n + 3, M) float64.

    Raises
    ------
    ValueError
        If there is no interval, or the ends are out of order.
    """
    if intervals < 1:
        raise ValueError(f"{intervals} intervals: expected at least 1")
    if not 0 <= lower < cutoff:
        raise ValueError(f"a table from {lower} to {cutoff}: expected 0 <= lower < upper")
    knots = torch.linspace(lower, cutoff, intervals + 1, dtype=torch.float64)
    with torch.no_grad():
        values = function(knots)
    return interpolating_coefficients(values, end_slopes(function, cutoff, lower), cutoff - lower)


AT_ONCE = 256
"""Outputs whose slopes are computed together."""


def end_slopes(function: RadialFunction, cutoff: float, lower: float = 0.0) -> Tensor:
    """Derivatives (2, M) of a function (E,) -> (E, M) at the lower and upper end."""
    # Forward mode would be one pass, and imports torch's compiler: a second at each start.
    ends = torch.tensor([lower, cutoff], dtype=torch.float64)
    with torch.no_grad():
        outputs = function(ends).shape[1]
    slopes = []
    for first in range(0, outputs, AT_ONCE):
        count = min(AT_ONCE, outputs - first)
        copies = ends.repeat_interleave(count).requires_grad_(True)
        with torch.set_grad_enabled(True):
            values = function(copies).view(2, count, outputs)
            own = values.diagonal(first, 1, 2)
            slopes.append(torch.autograd.grad(own.sum(), copies)[0].view(2, count))
    return torch.cat(slopes, dim=1)


def interpolating_coefficients(values: Tensor, slopes: Tensor, length: float) -> Tensor:
    """Spline coefficients from values at the knots and slopes at the ends.

    At knot k the spline is (c_k + 4 c_{k+1} + c_{k+2}) / 6 and its slope
    (c_{k+2} - c_k) / 2h. The slopes eliminate the first and the last coefficient; the
    remaining system is symmetric and tridiagonal.

    Parameters
    ----------
    values
        Values at the knots, (n + 1, M) float64.
    slopes
        Slopes at the first and the last knot, (2, M).
    length
        Length of the table, n h.

    Returns
    -------
    Tensor
        Coefficients c, (n + 3, M) float64.
    """
    intervals = values.shape[0] - 1
    rise = (2 * length / intervals) * slopes.numpy()
    right = 6 * values.numpy()
    right[0] += rise[0]
    right[-1] -= rise[1]
    right[[0, -1]] /= 2  # rows (2, 1) and (1, 2) at the ends: symmetric
    bands = np.empty((2, intervals + 1))
    bands[0], bands[1] = 1, 4
    bands[1, [0, -1]] = 2
    inner = solveh_banded(bands, right, overwrite_b=True, check_finite=False)
    first, last = inner[1] - rise[0], inner[-2] + rise[1]
    return torch.from_numpy(np.concatenate([first[None], inner, last[None]]))


class RadialTable(DoubleConstants):
    """A function of the distance, given by spline coefficients.

    It is differentiable once; its derivative is that of the spline. Coefficients and sums are
    float64 regardless of the network's dtype: the slope is a difference of neighbouring
    coefficients divided by h, whose float32 error would grow with the number of intervals (at
    2,048, forces would be five times as noisy as the network's).

    Parameters
    ----------
    coefficients
        Coefficients from `spline_coefficients`, (n + 3, M) float64.
    cutoff, lower
        Ends of the table; the function is zero at the upper end and outside.
    """

    coefficients: Tensor

    def __init__(self, coefficients: Tensor, cutoff: float, lower: float = 0.0) -> None:
        super().__init__()
        self.intervals = coefficients.shape[0] - 3
        self.cutoff = float(cutoff)
        self.lower = float(lower)
        self.register_buffer("coefficients", coefficients.double().contiguous())

    def forward(self, distances: Tensor) -> Tensor:
        """(E,) -> (E, M), in the dtype of the distances."""
        place = (distances.double() - self.lower) * (self.intervals / (self.cutoff - self.lower))
        knot = place.detach().floor().clamp(0, self.intervals - 1)
        t = place - knot
        inside = (distances >= self.lower) & (distances < self.cutoff)
        weights = torch.stack(spline_weights(t), dim=1) / 6 * inside.unsqueeze(1)
        rows = knot.long().unsqueeze(1) + torch.arange(4, device=distances.device)
        sums = nn.functional.embedding_bag(
            rows, self.coefficients, per_sample_weights=weights, mode="sum"
        )
        return sums.to(distances.dtype)
