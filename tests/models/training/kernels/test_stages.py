"""Fused training step: every stage agrees with plain torch, in values and in all gradients."""

from __future__ import annotations

import pytest
import torch
from support.training_equations import Case, of_both, outputs, random_case
from torch import Tensor, nn

from tensormd.models.maths.activations import ACTIVATIONS, activation, with_derivatives
from tensormd.models.training.kernels.layers import NormTangents, PerceptronTangents
from tensormd.models.training.kernels.network import Energies


def derivatives(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Random derivatives of a loss, alike for both edges of a pair."""
    generator = torch.Generator().manual_seed(1)
    pairs, n = int(case.of_pair.max()) + 1, case.batch.layout.shape.itemsize
    dtype = case.batch.dtype
    c, r, d = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((case.batch.layout.atoms,), (pairs,), (pairs, n))
    )
    forward = case.receivers < torch.from_numpy(case.batch.edges.sender)
    return c, r[case.of_pair], of_both(d, case.irreps, forward, case.of_pair)


@pytest.mark.parametrize(
    ("irreps", "parity_conserving", "dtype", "tolerance"),
    [
        ("IAS", True, torch.float64, 1e-12),
        ("IAS", False, torch.float64, 1e-12),
        ("IS", True, torch.float32, 2e-5),
    ],
)
def test_equals_plain_torch(
    irreps: str, parity_conserving: bool, dtype: torch.dtype, tolerance: float
) -> None:
    case = random_case(irreps, dtype, parity_conserving)
    edges = case.batch.edges
    lengths = torch.zeros(len(edges.sender), dtype=dtype, requires_grad=True)
    directions = torch.from_numpy(edges.directions).view(len(lengths), -1).clone()
    directions.requires_grad_()
    expected = outputs(case, lengths, directions)
    by_length, by_direction = torch.autograd.grad(
        [expected.sum()], [lengths, directions], create_graph=True
    )
    tensors = case.weights.tensors()
    found = Energies.apply(case.batch, case.functions, case.weights, *tensors)
    near(found[0], expected, tolerance)
    near(case.by_pair(found[1]), case.by_pair(by_length), tolerance)
    near(found[2], by_direction, tolerance)

    weights = derivatives(case)
    plain = gradients((expected, by_length, by_direction), weights, tensors)
    fused = gradients(found, weights, tensors)
    largest = max(float(g.abs().max()) for g in plain)
    for k, (one, other) in enumerate(zip(fused, plain, strict=True)):
        assert float(other.abs().max()) > 0, k
        assert float((one - other).abs().max()) <= tolerance * largest, k


def near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


def gradients(
    values: tuple[Tensor, ...], weights: tuple[Tensor, ...], of: list[Tensor]
) -> list[Tensor]:
    total = sum((v * w).sum() for v, w in zip(values, weights, strict=True))
    return list(torch.autograd.grad([total], of))  # type: ignore[list-item]


def test_a_second_batch_before_the_gradient_is_refused() -> None:
    """The memory of both is the same."""
    case = random_case("IAS", torch.float64)
    tensors = case.weights.tensors()
    first = Energies.apply(case.batch, case.functions, case.weights, *tensors)
    case.batch.memory.start()
    with pytest.raises(RuntimeError, match="another batch was evaluated"):
        first[0].sum().backward()


@pytest.mark.parametrize("name", [*ACTIVATIONS, None])
def test_derivatives_of_activations(name: str | None) -> None:
    module = nn.Identity() if name is None else activation(name)
    x = torch.linspace(-6, 6, 49, dtype=torch.float64, requires_grad=True)
    value = module(x)
    [slope] = torch.autograd.grad([value.sum()], [x], create_graph=True)
    curvature = torch.zeros_like(x)
    if slope.requires_grad:
        [curvature] = torch.autograd.grad([slope.sum()], [x])
    for found, expected in zip(
        with_derivatives(module, x), (value, slope, curvature), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_what_is_no_activation() -> None:
    with pytest.raises(ValueError, match="Linear is no activation: expected silu"):
        with_derivatives(nn.Linear(1, 1), torch.zeros(1))


@pytest.mark.parametrize("size", [6, 10])
def test_layer_norm(size: int) -> None:
    """Also of rows padded with zeros, which have a share in the mean."""
    generator = torch.Generator().manual_seed(0)
    x, dx, g, dg = torch.randn(4, 3, 6, generator=generator, dtype=torch.float64)
    weight, bias = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    zeros = x.new_zeros(3, size - 6)

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        wide = nn.functional.layer_norm(torch.cat([x, zeros], 1), (size,))
        return wide[:, :6] * weight + bias

    compare(NormTangents(weight, bias, size, 1e-5), plain, x, dx, g, dg, [weight, bias])


def test_perceptron() -> None:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    weights, biases = [draw(5, 4), draw(3, 5)], [draw(5), draw(3)]
    activations = [nn.SiLU(), nn.Mish()]

    def plain(x: Tensor, *parameters: Tensor) -> Tensor:
        for k, module in enumerate(activations):
            x = module(nn.functional.linear(x, parameters[k], parameters[2 + k]))
        return x

    operation = PerceptronTangents(weights, biases, activations)
    compare(operation, plain, draw(6, 4), draw(6, 4), draw(6, 3), draw(6, 3), [*weights, *biases])


def compare(
    operation: NormTangents | PerceptronTangents, plain, x: Tensor, dx: Tensor, g: Tensor,
    dg: Tensor, parameters: list[Tensor],
) -> None:  # type: ignore[no-untyped-def]  # fmt: skip
    """All four results, and the gradients of the weights, against automatic differentiation."""
    inputs = (x, *parameters)
    zeros = [torch.zeros_like(p) for p in parameters]
    value, tangent = torch.func.jvp(plain, inputs, (dx, *zeros))

    def gradient(x: Tensor, g: Tensor) -> Tensor:
        return torch.func.vjp(lambda x: plain(x, *parameters), x)[1](g)[0]

    back, back_tangent = torch.func.jvp(gradient, (x, g), (dx, dg))

    def share(*parameters: Tensor) -> Tensor:
        y, dy = torch.func.jvp(lambda x: plain(x, *parameters), (x,), (dx,))
        return (dg * y + g * dy).sum()

    of_parameters = torch.func.grad(share, tuple(range(len(parameters))))(*parameters)
    found = [operation.value(x), operation.back(g), operation.tangent(dx)]
    found.append(operation.back_tangent(dg))
    if isinstance(operation, NormTangents):
        found += [operation.g_weight, operation.g_bias]
    else:
        found += [*operation.g_weights, *operation.g_biases]
    expected = [value, back, tangent, back_tangent, *of_parameters]
    for k, (one, other) in enumerate(zip(found, expected, strict=True)):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12, msg=str(k))
