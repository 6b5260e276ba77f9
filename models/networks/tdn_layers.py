"""Layers of TDN that act on each atom or edge separately.

Features have the shape (n, d, C): n atoms or edges, d components of the degrees in order, which
are (L + 1)^2 for degrees 0 to L, C channels. Nonlinear operations act on degree 0 only, or
multiply all components of a degree by one number, so the layers are equivariant.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def new_matrices(channels: int, matrices: int | None) -> nn.Parameter:
    """Random matrices over channels, (matrices, C, C), or one, (C, C)."""
    shape = (channels, channels) if matrices is None else (matrices, channels, channels)
    return nn.Parameter(torch.empty(shape).uniform_(-(channels**-0.5), channels**-0.5))


def map_channels(x: Tensor, matrices: Tensor, sizes: list[int]) -> Tensor:
    """Features (n, d, C) times a matrix of each degree, (degrees, C, C), or of all, (C, C)."""
    if matrices.ndim == 2:
        return x @ matrices.t()
    parts: list[Tensor] = []
    for k, part in enumerate(torch.split(x, sizes, dim=1)):
        # As rows: the order of sums over batches depends on which tensors need gradients.
        rows = part.reshape(-1, part.shape[2]) @ matrices[k].t()
        parts.append(rows.view(part.shape))
    return torch.cat(parts, dim=1)


class DegreeLinear(nn.Module):
    """A matrix over channels for each degree or for all, and a bias on degree 0.

    Parameters
    ----------
    channels
        Number of channels, C.
    degrees
        Degrees of the features, 0 first.
    shared
        Whether one matrix serves all degrees, as published.
    bias
        Whether there is a bias.
    """

    def __init__(
        self, channels: int, degrees: Sequence[int], shared: bool, bias: bool = True
    ) -> None:
        super().__init__()
        self.sizes = [2 * degree + 1 for degree in degrees]
        self.weight = new_matrices(channels, None if shared else len(degrees))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(n, d, C) -> (n, d, C)."""
        y = map_channels(x, self.weight, self.sizes)
        bias = self.bias
        if bias is not None:
            y = y + nn.functional.pad(bias.unsqueeze(0), [0, 0, 0, x.shape[1] - 1])
        return y


class DegreeNorm(nn.Module):
    r"""Layer norm of each degree.

    .. math::
        x_l \leftarrow \gamma_l \, x_l \Big/
        \sqrt{\langle x_{lmc}^2 \rangle_{mc} + \epsilon_l} \; (+ \beta \text{ for } l = 0)

    where the mean over channels is subtracted from degree 0 first, and
    :math:`\epsilon_0 = 10^{-5}`. In symmetric surroundings the features of l > 0 vanish, and
    each norm amplifies a deviation from symmetry by :math:`1 / \sqrt{\epsilon_l}`: with the
    released code's :math:`10^{-5}`, four norms turn rounding errors into forces of 1e-6 eV/A, and
    make the energy surface equally steep.

    Parameters
    ----------
    channels
        Number of channels, C.
    degrees
        Degrees of the features, 0 first.
    epsilon
        Epsilon of the degrees l > 0.
    """

    def __init__(self, channels: int, degrees: Sequence[int], epsilon: float) -> None:
        super().__init__()
        self.epsilons = [1e-5] + (len(degrees) - 1) * [float(epsilon)]
        self.sizes = [2 * degree + 1 for degree in degrees]
        self.weight = nn.Parameter(torch.ones(len(degrees), channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(n, d, C) -> (n, d, C)."""
        fields: list[Tensor] = []
        for n, field in enumerate(torch.split(x, self.sizes, dim=1)):
            if n == 0:
                field = field - field.mean(dim=2, keepdim=True)
            scale = (field.square().mean(dim=(1, 2), keepdim=True) + self.epsilons[n]).rsqrt()
            field = field * (scale * self.weight[n])
            if n == 0:
                field = field + self.bias
            fields.append(field)
        return torch.cat(fields, dim=1)


class GatedLinear(nn.Module):
    r"""A linear map to values and gates, then the gate.

    .. math::
        v = W_v x + b_v, \quad g = W_g x_{l=0} + b_g, \qquad
        \mathrm{SiLU}(v_l) \text{ for } l = 0, \quad v_l \, \sigma(g) \text{ for } l > 0

    The released code maps all components to 2C channels, and uses the second half only at degree
    0; here only that part is computed. The parameters are those of `DegreeLinear`.
    """

    def __init__(self, channels: int, degrees: Sequence[int], shared: bool) -> None:
        super().__init__()
        self.sizes = [2 * degree + 1 for degree in degrees]
        self.value = new_matrices(channels, None if shared else len(degrees))
        self.gate = nn.Linear(channels, channels)
        nn.init.zeros_(self.gate.bias)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(n, d, C) -> (n, d, C)."""
        v = map_channels(x, self.value, self.sizes)
        gate = torch.sigmoid(self.gate(x[:, 0]))
        scalar = nn.functional.silu(v[:, 0] + self.bias)
        return torch.cat([scalar.unsqueeze(1), v[:, 1:] * gate.unsqueeze(1)], dim=1)


class SmoothLeakyReLU(nn.Module):
    r""":math:`\tfrac{1+s}{2} x + \tfrac{1-s}{2} x (2 \sigma(x) - 1)`, slope s far below zero."""

    def __init__(self, slope: float = 0.2) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        """Apply elementwise, for any shape."""
        odd = 0.5 * (1 - self.slope) * x * (2 * torch.sigmoid(x) - 1)
        return 0.5 * (1 + self.slope) * x + odd


class TrainedGaussianBasis(nn.Module):
    r"""Normalised Gaussians of the scaled distance with trained means and widths.

    .. math::
        g_k(r) = \frac{1}{\sqrt{2 \pi} s_k} e^{-(x - m_k)^2 / 2 s_k^2}, \qquad
        x = w \, r / r_c + b, \quad s_k = |\mathrm{std}_k| + 10^{-5}

    Raises
    ------
    ValueError
        If there is no function.
    """

    def __init__(self, cutoff: float, size: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"{size} radial functions: expected at least 1")
        self.cutoff = float(cutoff)
        # Evenly spaced and narrow: the released code's random wide Gaussians train more slowly.
        self.mean = nn.Parameter(torch.linspace(0, 1, size))
        self.std = nn.Parameter(torch.full((size,), 1 / size))
        self.weight = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, distances: Tensor) -> Tensor:
        """(E,) -> (E, K)."""
        x = self.weight * (distances / self.cutoff).unsqueeze(1) + self.bias
        std = self.std.abs() + 1e-5
        return torch.exp(-0.5 * ((x - self.mean) / std).square()) / (math.sqrt(2 * math.pi) * std)


class RadialNetwork(nn.Sequential):
    """Perceptron from the radial basis to tensor-product weights: linear, layer norm, SiLU."""

    def __init__(self, radial_functions: int, widths: list[int], channels: int) -> None:
        sizes = [radial_functions, *widths]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.SiLU()]
        super().__init__(*layers, nn.Linear(sizes[-1], channels))
