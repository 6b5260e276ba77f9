"""Fused training step: every stage agrees with plain torch, in values and in all gradients."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.training_equations import Case, of_both, outputs, perceptron, random_case
from torch import Tensor, nn

from tensormd.models.inference.kernels.cpu.dense import pack_matrix
from tensormd.models.inference.kernels.cpu.perceptron import ACTIVATIONS
from tensormd.models.maths.activations import activation
from tensormd.models.maths.cartesian import TensorAlgebra
from tensormd.models.training.kernels import geometry
from tensormd.models.training.kernels.memory import LINE, Memory, flat
from tensormd.models.training.kernels.network import Evaluation
from tensormd.models.training.kernels.perceptrons import (
    Dense,
    DenseTangents,
    Kinds,
    dense_layers,
    padded,
)
from tensormd.models.training.kernels.products import pack


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
    evaluation = Evaluation(case.batch, case.functions, case.weights)
    found = list(map(torch.from_numpy, evaluation.values()))
    near(found[0], expected, tolerance)
    near(case.by_pair(found[1]), case.by_pair(by_length), tolerance)
    near(found[2].view_as(by_direction), by_direction, tolerance)

    weights = derivatives(case)
    total = sum(
        (v * w).sum() for v, w in zip((expected, by_length, by_direction), weights, strict=True)
    )
    plain = torch.autograd.grad([total], case.weights.tensors())
    fused = evaluation.gradients(*(w.flatten().numpy() for w in weights)).tensors()
    largest = max(float(g.abs().max()) for g in plain)
    for k, (one, other) in enumerate(zip(fused, plain, strict=True)):
        assert float(other.abs().max()) > 0, k
        assert float((one - other).abs().max()) <= tolerance * largest, k


def near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


def test_a_second_batch_before_the_gradient_is_refused() -> None:
    """The memory of both is the same."""
    case = random_case("IAS", torch.float64)
    evaluation = Evaluation(case.batch, case.functions, case.weights)
    values = evaluation.values()
    case.batch.memory.start()
    with pytest.raises(RuntimeError, match="another batch was evaluated"):
        evaluation.gradients(*values)


@pytest.mark.parametrize("irreps", ["IAS", "IS", "IA", "I"])
def test_directions(irreps: str) -> None:
    """Against those of TensorNet: values, gradients of vectors, and tangents."""
    generator = torch.Generator().manual_seed(0)
    vectors, tangents = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)

    def plain(vectors: Tensor) -> tuple[Tensor, Tensor]:
        r = vectors.norm(dim=1)
        return r, TensorAlgebra(irreps).directions(-vectors / r.unsqueeze(1)).t()

    expected, of_tangents = torch.func.jvp(plain, (vectors,), (tangents,))
    n = expected[1].shape[1]
    for loop, *given, both in (
        (geometry.directions, vectors, expected),
        (geometry.directions_tangent, vectors, tangents, of_tangents),
    ):
        r, d = torch.empty(5, dtype=torch.float64), torch.empty(5, n, dtype=torch.float64)
        loop(*(x.numpy() for x in given), r.numpy(), n, flat(d))
        near(r, both[0], 1e-14)
        torch.testing.assert_close(d, both[1], rtol=1e-13, atol=1e-14)
    weights = torch.randn(5, dtype=torch.float64), torch.randn(5, n, dtype=torch.float64)
    [gradient] = torch.func.vjp(plain, vectors)[1](weights)
    found = torch.empty_like(vectors)
    geometry.directions_back(
        vectors.numpy(), weights[0].numpy(), n, flat(weights[1]), found.numpy()
    )
    near(found, gradient, 1e-14)


def test_matrices_are_packed_as_in_inference() -> None:
    rng = np.random.default_rng(0)
    chunks = [2, 5, 7, 1]
    given = [rng.normal(size=(16 * o, 16 * i)) for i, o in itertools.pairwise(chunks)]
    raw = np.concatenate([w.ravel() for w in given])
    matrices, transposes = np.empty_like(raw), np.empty_like(raw)
    pack(np.array(chunks), raw, matrices, transposes)
    expected = [pack_matrix(np.ascontiguousarray(w.T)) for w in given]
    np.testing.assert_array_equal(matrices, np.concatenate(expected))
    np.testing.assert_array_equal(transposes, np.concatenate([pack_matrix(w) for w in given]))


def test_arrays_of_a_step_begin_at_cache_lines_and_are_used_again() -> None:
    memory = Memory()
    for count in range(3):
        memory.start()
        found = [memory.take(size, np.dtype(np.float32)) for size in (7, 100, 33)]
        assert [x.size for x in found] == [7, 100, 33]
        if count:  # in the first batch their sizes are not known
            assert all(x.ctypes.data % LINE == 0 for x in found)
            places = [x.ctypes.data for x in found]
            assert len({*places}) == 3
    memory.start()
    assert memory.take(7, np.dtype(np.float64)).ctypes.data == places[0]


@pytest.mark.parametrize("kind", range(len(ACTIVATIONS)))
def test_derivatives_of_activations(kind: int) -> None:
    """As a layer of the identity computes them; torch's softplus is linear from 20 on."""
    x = torch.linspace(-19, 19, 96, dtype=torch.float64, requires_grad=True)
    dense = Dense([torch.eye(16, dtype=torch.float64)], [torch.zeros(16, dtype=torch.float64)])
    layers = DenseTangents(dense, Kinds([kind]), 6, Memory())
    value = perceptron(Dense([x.new_ones(1, 1)], [x.new_zeros(1)]), x[:, None], Kinds([kind]))
    [slope] = torch.autograd.grad([value.sum()], [x], create_graph=True)
    curvature = torch.zeros_like(x)
    if slope.requires_grad:
        [curvature] = torch.autograd.grad([slope.sum()], [x])
    outputs = layers.value(x.detach().numpy())
    for found, expected in zip(
        (outputs, layers.v.slopes, layers.v.curvatures), (value[:, 0], slope, curvature),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-11, atol=1e-13)


def test_activations_are_found() -> None:
    modules = [nn.Linear(3, 3), *(activation(name) for name in ACTIVATIONS[1:])]
    for kind, module in enumerate(modules[1:], 1):
        assert dense_layers([modules[0], module])[1].activations == [kind]
    with pytest.raises(ValueError, match="ReLU is no activation: expected silu"):
        dense_layers([modules[0], nn.ReLU()])


@pytest.mark.parametrize("zeros", [0, 5])
def test_dense_layers(zeros: int) -> None:
    """Also with a layer norm of rows padded with zeros, which have a share in the mean."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    rows, ins, outs = 14, 7, 2 * 9  # outputs are two parts of nine
    linear, last = nn.Linear(ins, 20).double(), nn.Linear(20, outs).double()
    modules = [linear, nn.SiLU(), last, nn.Tanh()]
    norm = nn.LayerNorm(ins).double()
    norm.weight.data, norm.bias.data = draw(ins), draw(ins)
    parameters = [norm.weight, norm.bias, linear.weight, last.weight, linear.bias, last.bias]

    def plain(x: Tensor, *parameters: Tensor) -> Tensor:
        wide = nn.functional.pad(x, (0, zeros))
        x = nn.functional.layer_norm(wide, (ins + zeros,))[:, :ins]
        x = x * parameters[0] + parameters[1]
        x = nn.functional.silu(nn.functional.linear(x, parameters[2], parameters[4]))
        return torch.tanh(nn.functional.linear(x, parameters[3], parameters[5]))

    x, dx, g, dg = draw(rows, ins), draw(rows, ins), draw(rows, outs), draw(rows, outs)
    value, tangent = torch.func.jvp(lambda x: plain(x, *parameters), (x,), (dx,))

    def gradient(x: Tensor, g: Tensor) -> Tensor:
        return torch.func.vjp(lambda x: plain(x, *parameters), x)[1](g)[0]

    back, back_tangent = torch.func.jvp(gradient, (x, g), (dx, dg))

    def share(*parameters: Tensor) -> Tensor:
        y, dy = torch.func.jvp(lambda x: plain(x, *parameters), (x,), (dx,))
        return (dg * y + g * dy).sum()

    expected = torch.func.grad(share, tuple(range(6)))(*parameters)

    dense, kinds = dense_layers(modules, norm, ins + zeros, last=2)
    layers = DenseTangents(dense, kinds, rows, Memory())
    near(unpacked(layers.value(packed(x)), rows, outs), value, 1e-13)
    layers.g[:] = packed(g, 2)
    near(unpacked(layers.back(), rows, ins), back, 1e-13)
    near(unpacked(layers.tangent(packed(dx)), rows, outs), tangent, 1e-13)
    layers.dg[:] = packed(dg, 2)
    near(unpacked(layers.back_tangent(), rows, ins), back_tangent, 1e-13)
    found = torch.autograd.grad(
        dense.tensors(), parameters, layers.gradients_of_tangents().tensors()
    )
    for one, other in zip(found, expected, strict=True):
        near(one, other, 1e-13)


def packed(x: Tensor, parts: int = 1) -> NDArray[np.float64]:
    """Rows as `layers` has them."""
    return padded(x, parts).view(len(x), -1, 16).transpose(0, 1).flatten().numpy()


def unpacked(x: NDArray[np.float64], rows: int, size: int) -> Tensor:
    """Rows of numbers, in parts of at most sixteen."""
    parts = torch.from_numpy(x.copy()).view(-1, rows, 16)
    return torch.cat([part[:, : size // len(parts)] for part in parts], 1)
