"""The fused CPU kernels, piece by piece and whole, against plain torch."""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from numba import njit
from numpy.typing import NDArray
from support.helpers import (
    make_potential,
    predict,
    predict_batch,
)
from support.kernel_cases import LANES, NETWORKS, SYSTEMS, exponentials, water
from support.paths import TESTS

from tensormd.models import Potential
from tensormd.models.analysis.pruning import pruned
from tensormd.models.inference.kernels import fuse
from tensormd.models.inference.kernels.cpu import algebra, components, dense, perceptron, simd
from tensormd.models.inference.kernels.weights import dense_layers
from tensormd.models.inference.tables import FORCE_BOUND, tabulated_potential
from tensormd.models.maths.activations import activation
from tensormd.models.maths.cartesian import SUBSETS, TensorAlgebra, split_irreps
from tensormd.models.neighbors import NeighborList

DTYPES = (np.float32, np.float64)
ROUNDING = {np.float32: 2e-6, np.float64: 4e-15}
Array = NDArray[Any]


@functools.cache
def entry(function: Any) -> Any:
    return njit(function.py_func)


def run(function: Any, *args: Any) -> Any:
    """Call a function of the kernels, which have no entry point for Python."""
    return entry(function)(*args)


def numbers(rng: np.random.Generator, size: int, dtype: Any) -> Array:
    return rng.normal(size=size).astype(dtype)


# Vectors


@njit
def lanewise(x: Array, y: Array, out: Array) -> Any:
    a, b = simd.load(x, 0), simd.load(y, 0)
    simd.store(out, 0, simd.fma(a, b, a) - b / (a * a + simd.like(a, 2.0)))
    simd.store(out, 16, simd.maximum(a, b) + simd.minimum(a, -b) * simd.absolute(a))
    simd.store(out, 32, simd.splat(y[3]) * a)
    return simd.total(a), simd.lane(b, 5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_do_what_arrays_do(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    x, y, out = numbers(rng, 16, dtype), numbers(rng, 16, dtype), np.zeros(48, dtype)
    total, lane = lanewise(x, y, out)
    a, b = x.astype(float), y.astype(float)
    expected = [
        a * b + a - b / (a * a + 2),
        np.maximum(a, b) + np.minimum(a, -b) * np.abs(a),
        b[3] * a,
    ]
    np.testing.assert_allclose(out, np.concatenate(expected), atol=4 * ROUNDING[dtype])
    assert total == pytest.approx(a.sum(), abs=16 * ROUNDING[dtype])
    assert lane == y[5]


@pytest.mark.parametrize("dtype", DTYPES)
def test_exponential(dtype: Any) -> None:
    ends = (-87, 88) if dtype is np.float32 else (-708, 709)
    x = np.linspace(*ends, 4096).astype(dtype)
    out = np.empty_like(x)
    exponentials(x, out)
    exact = np.exp(x.astype(np.longdouble))
    assert (abs(out - exact) / exact).max() < 2.5 * np.finfo(dtype).eps
    outside = np.tile(np.array([-1e4, 1e4], dtype), 8)
    exponentials(outside, out)
    assert np.isfinite(out[:16]).all()


# Matrix products and perceptrons


def chunked(rows: Array) -> Array:
    """(n, K) as the kernels store it."""
    n, channels = rows.shape
    return rows.reshape(n, channels // LANES, LANES).transpose(1, 0, 2).ravel().copy()


def unchunked(flat: Array, n: int) -> Array:
    return flat.reshape(-1, n, LANES).transpose(1, 0, 2).reshape(n, -1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(1, 16, 16), (5, 48, 80), (6, 16, 128), (29, 128, 256)], ids=str
)
def test_matrix_product(dtype: Any, shape: tuple[int, int, int]) -> None:
    n, inputs, outputs = shape
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(n, inputs)).astype(dtype), rng.normal(size=shape[1:]).astype(dtype)
    bias, y = numbers(rng, outputs, dtype), np.full(n * outputs, np.nan, dtype)
    run(
        dense.multiply, chunked(x), 0, n * LANES, LANES * np.arange(n), n, dense.pack_matrix(w), 0,
        bias, 0, inputs // LANES, outputs // LANES, y, 0, n * LANES,
    )  # fmt: skip
    expected = x.astype(float) @ w.astype(float) + bias
    np.testing.assert_allclose(unchunked(y, n), expected, atol=inputs * ROUNDING[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["silu", "ssp", "tanh", "sigmoid", "mish"])
def test_perceptron_and_its_gradient(dtype: Any, name: str) -> None:
    """Three parts of 10 channels in, which are padded to 16 each, and one number out."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(30, 20), activation(name), torch.nn.Linear(20, 1), activation(name)
    ).double()
    n, block = 5, 7
    x = (5 * torch.randn(n, 30, dtype=torch.float64)).requires_grad_(True)
    value = network(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)

    packed = perceptron.pack_perceptron(dense_layers(network), 3, 1, np.dtype(dtype))
    size = int(packed.chunks.sum()) * block * LANES
    values, slopes = np.zeros(size, dtype), np.zeros(size, dtype)
    wide = perceptron.padded(x.detach().numpy(), 1, 3).astype(dtype)
    values.reshape(-1, block, LANES)[: wide.shape[1] // LANES, :n] = chunked(wide).reshape(
        -1, n, LANES
    )
    rows = LANES * np.arange(block)
    out = run(perceptron.forward, packed, values, 0, slopes, 0, rows, n, block)
    found = values[out : out + n * LANES : LANES]
    bound = 2e2 * ROUNDING[dtype]
    np.testing.assert_allclose(found, value.detach().numpy()[:, 0], atol=bound)

    values[out : out + block * LANES] = 1
    zeros = np.zeros(256, dtype)
    run(perceptron.backward, packed, values, 0, slopes, 0, rows, n, block, zeros)
    back = unchunked(values[: wide.shape[1] * block], block)[:n]
    expected = perceptron.padded(gradient.numpy(), 1, 3)
    np.testing.assert_allclose(back, expected, atol=bound)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_of_padded_channels_and_its_gradient(dtype: Any) -> None:
    torch.manual_seed(0)
    norm = torch.nn.LayerNorm(20).double()
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    x = (3 + torch.randn(1, 20, dtype=torch.float64)).requires_grad_(True)
    g = torch.randn(1, 20, dtype=torch.float64)
    y = norm(x)
    (gradient,) = torch.autograd.grad(y, x, g)

    def wide(t: torch.Tensor) -> Array:
        return perceptron.padded(t.detach().numpy().reshape(-1), 0).astype(dtype)

    found, weight, bias = np.zeros(32, dtype), wide(norm.weight), wide(norm.bias)
    mean, scale = run(perceptron.normalise, wide(x), 0, LANES, 2, 20, weight, bias, found, 0)
    np.testing.assert_allclose(found, wide(y), atol=20 * ROUNDING[dtype])
    back = wide(g)
    run(perceptron.normalise_back, wide(x), 0, LANES, 2, 20, weight, mean, scale, back, 0)
    np.testing.assert_allclose(back[:20], wide(gradient)[:20], atol=20 * ROUNDING[dtype])


@njit
def tensor_products(shape: Array, x: Array, y: Array, out: Array) -> None:
    a, b = components.load_all(shape, x, 0), components.load_all(shape, y, 0)
    size = algebra.features(shape)
    components.store_all(out, 0, algebra.anticommutator(a, b))
    components.store_all(out, size, algebra.product(a, algebra.transposed(b)))
    simd.store(out, 2 * size, algebra.dot(a, b))
    components.store_apart(out, 2 * size + LANES, LANES, algebra.dots(a, b))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("irreps", SUBSETS)
def test_tensor_algebra(irreps: str, dtype: Any) -> None:
    rng, torch_algebra = np.random.default_rng(2), TensorAlgebra(irreps)
    rows = len(torch_algebra.basis)
    size = rows * LANES
    x, y = numbers(rng, size, dtype), numbers(rng, size, dtype)
    out = np.zeros(2 * size + 4 * LANES, dtype)
    tensor_products(components.shape_of(rows), x, y, out)
    a, b = (torch.tensor(t.reshape(rows, 1, LANES), dtype=torch.float64) for t in (x, y))
    b_transposed = torch_algebra.decompose(torch_algebra.compose(b).transpose(0, 1))
    expected = [torch_algebra.anticommutator(a, b), torch_algebra.product(a, b_transposed)]
    bound = 20 * ROUNDING[dtype]
    for k, tensor in enumerate(expected):
        found = out[k * size : (k + 1) * size].reshape(rows, 1, LANES)
        np.testing.assert_allclose(found, tensor.numpy(), atol=bound)
    dots = torch.cat([part.sum(0) for part in split_irreps(a * b)]).numpy().ravel()
    found = out[2 * size : 2 * size + LANES]
    np.testing.assert_allclose(found, (a * b).sum((0, 1)).numpy(), atol=bound)
    found = out[2 * size + LANES :][: len(dots)]
    np.testing.assert_allclose(found, dots, atol=bound)


# The whole pass. What it means physically is tested in test_potential_physics.py.


def assert_equals_plain_torch(potential: Potential) -> None:
    """In float64, to rounding; and a wrong table would be seen."""
    fused, plain = fuse(potential), tabulated_potential(potential)
    for kind, system in SYSTEMS.items():
        found, expected = predict(fused, system, skin=0.7), predict(plain, system)
        for field, a, b in zip(expected._fields, found, expected, strict=True):
            size = max(float(b.abs().max()), 1e-3)
            assert float((a - b).abs().max()) < 1e-11 * size, (kind, field)


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_plain_torch_with_the_same_tables(name: str) -> None:
    assert_equals_plain_torch(make_potential(**NETWORKS[name]))


@pytest.mark.parametrize("name", ["default", "SO(3)-gated", "no-layers", "odd-channels"])
@pytest.mark.parametrize(
    "irreps", ["IS", *(pytest.param(each, marks=pytest.mark.slow) for each in ("IA", "I"))]
)
def test_networks_without_irreps(irreps: str, name: str) -> None:
    """Each number of components is compiled: pruned ones, and ones that never had more.

    `test_tensor_algebra` has them all.
    """
    assert_equals_plain_torch(pruned(make_potential(**NETWORKS[name]), irreps))
    assert_equals_plain_torch(make_potential(**NETWORKS[name] | {"irreps": irreps}))


@pytest.mark.parametrize("name", [*NETWORKS, pytest.param("IS", marks=pytest.mark.slow)])
def test_float32_is_near_the_network(name: str) -> None:
    potential = make_potential(**(NETWORKS | {"IS": {"irreps": "IS"}})[name])
    fused = fuse(copy.deepcopy(potential).float())
    for kind, system in SYSTEMS.items():
        found, expected = predict(fused, system), predict(potential, system)
        size = max(1.0, float(expected.forces.abs().max()))
        assert (found.forces - expected.forces).abs().max() < FORCE_BOUND + 1e-5 * size, kind
        energies = float(expected.energies.abs().max())
        assert (found.energies - expected.energies).abs().max() < 1e-5 + 2e-6 * energies, kind
        assert (found.virial - expected.virial).abs().max() < 2e-4 * size, kind
        assert found.forces.dtype == torch.float64


def test_several_systems_in_one_graph() -> None:
    systems = [SYSTEMS[kind] for kind in ("ion", "crystal", "atom", "molecule")]
    fused = fuse(make_potential())
    together = predict_batch(fused, systems)
    for k, system in enumerate(systems):
        alone = predict(fused, system)
        torch.testing.assert_close(together.energy[k], alone.energy[0], rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(together.virial[k], alone.virial[0], rtol=1e-13, atol=1e-13)


def test_repeats_to_the_bit_whatever_the_number_of_threads() -> None:
    potential, system = make_potential(channels=48).float(), water(150)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 2, 1):
            torch.set_num_threads(count)
            fused: Any = fuse(potential)
            fused.threads = count
            results.append(predict(fused, system))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            assert torch.equal(a, b)


def test_memory_is_kept_while_the_neighbours_are_the_same() -> None:
    fused, system = fuse(make_potential()), SYSTEMS["crystal"]
    neighbors = NeighborList(4.5, skin=1.0)
    rng = np.random.default_rng(0)
    for _ in range(3):
        moved = system.moved(system.positions + 0.05 * rng.normal(size=(5, 3)))
        found = fused(neighbors.graph(*moved))
        for a, b in zip(found, predict(fuse(make_potential()), moved), strict=True):
            assert torch.equal(a, b)
    assert neighbors.builds == 1
    # Another cell, and another structure: nothing of the last one is left.
    for other in (system.strained(0.02 * np.eye(3)), SYSTEMS["molecule"]):
        found = fused(neighbors.graph(*other))
        for a, b in zip(found, predict(fuse(make_potential()), other), strict=True):
            assert torch.equal(a, b)


def test_edges_that_cannot_be_used_are_refused() -> None:
    fused: Any = fuse(make_potential())
    graph = SYSTEMS["molecule"].graph()
    backwards = graph._replace(edge_index=graph.edge_index.flip(1).contiguous())
    with pytest.raises(ValueError, match="not sorted by receiver"):
        fused(backwards)
    half = graph._replace(
        edge_index=graph.edge_index[:, 1:].contiguous(), edge_shift=graph.edge_shift[1:]
    )
    with pytest.raises(ValueError, match="no reverse"):
        fused(half)


def test_another_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match="no fused kernels for Linear"):
        fuse(torch.nn.Linear(2, 2))  # type: ignore[arg-type]


BOUNDS_CHECK = """
import sys, torch
from support.kernel_cases import NETWORKS, SYSTEMS, water
from support.helpers import make_potential, make_tdn, predict
from support.tensornet2 import make_tensornet2
from tensormd.models.inference.kernels import fuse
torch.set_num_threads(2)
potentials = {
    "TensorNet": [
        make_potential(**NETWORKS[k]) for k in ("three-layers", "SO(3)-gated", "no-layers")
    ],
    "IS": [make_potential(irreps="IS", channels=24)],
    "TensorNet2": [
        make_tensornet2(layers=3, channels=24, coulomb=6.0),
        make_tensornet2(layers=1, charge_channels=20, coulomb=9.0),
        make_tensornet2(layers=0),
    ],
    "TDN": [make_tdn(scale=1.0), make_tdn(layers=1, channels=24), make_tdn(layers=0)],
}
for potential in potentials[sys.argv[1]]:
    fused = fuse(potential.float())
    for system in (SYSTEMS["molecule"], SYSTEMS["atom"], water(70), SYSTEMS["apart"]):
        predict(fused, system)
print("within bounds")
"""


TOO_FAR = """
import numpy as np
from support.kernel_cases import exponentials
x = np.zeros(48, np.float32)
exponentials(x, x)
print("within bounds", flush=True)
exponentials(x[:40], x)
print("nothing noticed")
"""


def checked_build(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_OPT": "1"},  # 3 takes twice as long
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.mark.parametrize(
    "network",
    [
        "TensorNet",
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("IS", "TensorNet2", "TDN")),
    ],
)
def test_nothing_outside_an_array_is_touched(network: str) -> None:
    """The same kernels, compiled so that every vector loaded or stored is checked."""
    done = checked_build(BOUNDS_CHECK, network)
    assert done.stdout.strip().endswith("within bounds"), done.stderr


def test_a_vector_outside_is_noticed() -> None:
    done = checked_build(TOO_FAR)
    assert done.returncode != 0
    assert done.stdout.strip().endswith("within bounds")


def test_a_potential_is_left_as_it_is() -> None:
    potential: Potential = make_potential().float()
    before = {name: value.clone() for name, value in potential.state_dict().items()}
    fuse(potential)
    assert all(torch.equal(before[name], v) for name, v in potential.state_dict().items())
    assert next(potential.parameters()).requires_grad
