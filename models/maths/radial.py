"""Functions of an interatomic distance: radial bases and cutoffs."""

import math

import torch
from torch import Tensor, nn


class CosineCutoff(nn.Module):
    r"""Smooth switch from 1 to 0 at the cutoff (and to 0 at a lower cutoff, if given).

    .. math::
        \phi(r) = \tfrac12 (\cos(\pi r / r_c) + 1), \qquad
        \phi(r) = \tfrac12 \left(\cos\left(\pi
            \left(2 \frac{r - r_l}{r_c - r_l} + 1\right)\right) + 1\right)
        \text{ with a lower cutoff } r_l > 0
    """

    def __init__(self, cutoff: float, lower: float = 0.0) -> None:
        super().__init__()
        self.cutoff = float(cutoff)
        self.lower = float(lower)

    def forward(self, distances: Tensor) -> Tensor:
        """(E,) -> (E,); zero outside the cutoffs."""
        inside = distances < self.cutoff
        if self.lower > 0:
            inside = inside & (distances > self.lower)
            phase = 2 * (distances - self.lower) / (self.cutoff - self.lower) + 1
        else:
            phase = distances / self.cutoff
        return 0.5 * (torch.cos(math.pi * phase) + 1) * inside


def _register(module: nn.Module, name: str, values: Tensor, trainable: bool) -> None:
    if trainable:
        module.register_parameter(name, nn.Parameter(values))
    else:
        module.register_buffer(name, values)


class ExpNormalBasis(nn.Module):
    r"""Gaussians of :math:`e^{-\alpha r}` (PhysNet, Unke & Meuwly 2019, eq. 7).

    .. math:: \phi_c(r) \exp(-\beta_k (e^{\alpha (r_l - r)} - \mu_k)^2)

    with :math:`\alpha = 5 / (r_c - r_l)` and the cosine cutoff :math:`\phi_c` with the upper
    cutoff :math:`r_c` only.
    """

    means: Tensor
    betas: Tensor

    def __init__(
        self, cutoff: float, size: int, lower: float = 0.0, trainable: bool = False
    ) -> None:
        super().__init__()
        self.lower = float(lower)
        self.alpha = 5.0 / (cutoff - lower)
        self.envelope = CosineCutoff(cutoff)
        start = math.exp(lower - cutoff)
        _register(self, "means", torch.linspace(start, 1, size), trainable)
        beta = (2 / size * (1 - start)) ** -2
        _register(self, "betas", torch.full((size,), beta), trainable)

    def forward(self, distances: Tensor) -> Tensor:
        """(E,) -> (E, K)."""
        decay = torch.exp(self.alpha * (self.lower - distances)).unsqueeze(-1)
        gaussians = torch.exp(-self.betas * (decay - self.means) ** 2)
        return self.envelope(distances).unsqueeze(-1) * gaussians


class GaussianBasis(nn.Module):
    r"""Gaussians on a grid of distances, :math:`\exp(\gamma (r - \mu_k)^2)`, no envelope.

    Raises
    ------
    ValueError
        If there are fewer than two.
    """

    centres: Tensor
    coefficient: Tensor

    def __init__(
        self, cutoff: float, size: int, lower: float = 0.0, trainable: bool = False
    ) -> None:
        super().__init__()
        if size < 2:
            raise ValueError(f"{size} Gaussian functions: expected at least 2")
        _register(self, "centres", torch.linspace(lower, cutoff, size), trainable)
        spacing = (cutoff - lower) / (size - 1)
        _register(self, "coefficient", torch.tensor(-0.5 / spacing**2), trainable)

    def forward(self, distances: Tensor) -> Tensor:
        """(E,) -> (E, K)."""
        return torch.exp(self.coefficient * (distances.unsqueeze(-1) - self.centres) ** 2)


class SmoothBesselBasis(nn.Module):
    r"""Smooth spherical Bessel functions (Kocer, Mason & Erturk 2019, eqs. 9 to 13).

    Orthonormal combinations :math:`g_n` of

    .. math::
        f_n(r) = (-1)^n \frac{\sqrt 2 \pi}{r_c^{3/2}}
        \frac{(n+1)(n+2)}{\sqrt{(n+1)^2+(n+2)^2}}
        \left[ s((n+1) x) + s((n+2) x) \right],
        \quad x = \pi r / r_c, \quad s(y) = \sin y / y

    whose value and first two derivatives vanish at the cutoff. As in matgl, the basis has no
    additional envelope.
    """

    def __init__(self, cutoff: float, size: int) -> None:
        super().__init__()
        self.cutoff = float(cutoff)
        self.size = int(size)

    def forward(self, distances: Tensor) -> Tensor:
        """(E,) -> (E, K)."""
        scale = math.sqrt(2) * math.pi / self.cutoff**1.5
        reduced = distances / self.cutoff  # torch.sinc(x) is sin(pi x) / (pi x), 1 at zero
        columns: list[Tensor] = []
        d_previous = 1.0
        for n in range(self.size):
            a, b = n + 1, n + 2
            amplitude = (-1.0) ** n * scale * a * b / math.sqrt(a * a + b * b)
            f = amplitude * (torch.sinc(a * reduced) + torch.sinc(b * reduced))
            if n == 0:
                columns.append(f)
                continue
            e = n**2 * (n + 2) ** 2 / (4.0 * (n + 1) ** 4 + 1)
            d = 1 - e / d_previous
            columns.append((f + math.sqrt(e / d_previous) * columns[-1]) / math.sqrt(d))
            d_previous = d
        return torch.stack(columns, dim=-1)


RADIAL_BASES = ("expnorm", "gauss", "bessel")


def radial_basis(
    kind: str, cutoff: float, size: int, lower: float = 0.0, trainable: bool = False
) -> nn.Module:
    """A radial basis by name: ``expnorm``, ``gauss`` or ``bessel`` (smooth, spherical).

    Raises
    ------
    ValueError
        If the name is unknown, or the basis does not have an option.
    """
    if kind == "expnorm":
        return ExpNormalBasis(cutoff, size, lower, trainable)
    if kind == "gauss":
        return GaussianBasis(cutoff, size, lower, trainable)
    if kind == "bessel":
        if lower != 0 or trainable:
            raise ValueError("the bessel basis has no lower cutoff and nothing to train")
        return SmoothBesselBasis(cutoff, size)
    raise ValueError(f"unknown radial basis {kind!r}: expected one of {', '.join(RADIAL_BASES)}")
