"""Factors of edges in a fused training step: at pairs, and on knots."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.helpers import ethanol
from torch import Tensor

from tensormd.models import TensorNet
from tensormd.models.graph import displacements, pair_edges
from tensormd.models.maths.splines import RadialTable, interpolating_coefficients
from tensormd.models.training.kernels.radial import Knots, Radial, radial_at_pairs


def network(**options: object) -> TensorNet:
    torch.manual_seed(0)
    given = {"channels": 5, "layers": 1, "radial_functions": 8, "cutoff": 4.5} | options
    return TensorNet(**given).double()  # type: ignore[arg-type]


def looked_up(radial: Radial) -> tuple[Tensor, Tensor]:
    """Factors of the edges and their slopes, (E, ...), side by side."""
    rows = radial.row[:, None] + torch.arange(radial.weights.shape[1])
    table = side_by_side(radial)[rows]
    return tuple(torch.einsum("em,emf->ef", w, table) for w in (radial.weights, radial.slopes))


def side_by_side(radial: Radial) -> Tensor:
    """The tables of five channels, (rows, ...)."""
    tables = [table.permute(1, 2, 0, 3).flatten(2)[..., :5] for table in radial.tables]
    return torch.cat([table.flatten(1) for table in tables], 1)


def exact(net: TensorNet, distances: Tensor) -> tuple[Tensor, Tensor]:
    return torch.func.jvp(
        lambda r: torch.cat(net.edge_factors(r), 1), (distances,), (torch.ones_like(distances),)
    )


@pytest.mark.parametrize("options", [{}, {"irreps": "IS"}, {"cutoff_lower": 0.5}])
def test_at_pairs(options: dict[str, object]) -> None:
    net = network(**options)
    graph = ethanol().graph()
    distances = displacements(graph).norm(dim=1)
    found = radial_at_pairs(net, distances, pair_edges(graph))
    for one, other in zip(looked_up(found), exact(net, distances), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)
    for one, other in zip(found.at_zero, net.edge_factors(torch.zeros(1).double()), strict=True):
        torch.testing.assert_close(one[:, :5].flatten(), other[0])


@pytest.mark.parametrize("options", [{}, {"cutoff_lower": 0.5}])
def test_on_knots_the_error_falls_with_the_fourth_power(options: dict[str, object]) -> None:
    net = network(**options)
    lower = net.cutoff_lower
    distances = torch.linspace(lower + 0.4, 4.49, 300, dtype=torch.float64)
    net.requires_grad_(False)
    expected = exact(net, distances)
    errors = []
    for intervals in (64, 128, 256):
        found = looked_up(Knots(net, intervals)(distances))
        errors.append([float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)])
    by_value, by_slope = np.array(errors).T
    assert (by_value[:-1] / by_value[1:] > 12).all()
    assert (by_slope[:-1] / by_slope[1:] > 6).all()
    assert by_value[-1] < 1e-6 * float(expected[0].abs().max())


def test_the_same_spline_as_in_inference() -> None:
    net = network()
    knots = Knots(net, 32)
    distances = torch.tensor([-0.1, 0.0, 0.3, 1.0, 4.4999, 4.5, 6.0], dtype=torch.float64)
    radial = knots(distances)
    values = torch.cat(net.edge_factors(knots.knots), 1).detach()
    first = torch.tensor([-25, 48, -36, 16, -3]).double() @ values[:5] / (12 * knots.step)
    slopes = torch.stack([first, torch.zeros_like(first)])
    coefficients = interpolating_coefficients(values, slopes, net.cutoff)
    torch.testing.assert_close(side_by_side(radial), coefficients, rtol=1e-11, atol=1e-13)
    table = RadialTable(coefficients, net.cutoff)
    found = looked_up(radial)
    torch.testing.assert_close(found[0], table(distances), rtol=1e-10, atol=1e-12)
    middle = distances[2:5]
    slopes = (table(middle + 1e-5) - table(middle - 1e-5)) / 2e-5
    torch.testing.assert_close(found[1][2:4], slopes[:2], rtol=1e-6, atol=1e-8)
    outside = looked_up(radial)[0][[0, 5, 6]]
    assert not outside.any()


def test_gradients_go_through_the_spline() -> None:
    net = network()
    distances = torch.linspace(0.8, 4.4, 20, dtype=torch.float64)

    def total() -> Tensor:
        values, slopes = looked_up(Knots(net, 16)(distances))
        return (values.sin() + 2 * slopes.cos()).sum()

    weight = net.layers[0].radial[2].weight
    [gradient] = torch.autograd.grad([total()], [weight])
    with torch.no_grad():
        for place in ((0, 0), (3, 2)):
            ends = []
            for step in (-1e-5, 1e-5):
                weight[place] += step
                ends.append(float(total()))
                weight[place] -= step
            assert (ends[1] - ends[0]) / 2e-5 == pytest.approx(float(gradient[place]), rel=1e-4)
