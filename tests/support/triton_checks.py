"""The Triton kernels in Triton's interpreter, against the plain functions.

`test_kernels_triton.py` runs this file in a separate process, because the interpreter is chosen
when Triton is first imported.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

from typing import Any

import numpy as np
import pytest
import torch
from support.helpers import System, ethanol, make_potential, tiny
from support.kernel_cases import CUTOFF, INTERVALS, LOWER, make_case
from support.kernel_equations import TorchOperators, plain_pass
from torch import Tensor
from triton.runtime import interpreter

from tensormd.models import batch_graphs
from tensormd.models.inference.kernels.cuda.operators import TritonOperators
from tensormd.models.inference.kernels.cuda.potential import CUDATensorNet
from tensormd.models.inference.kernels.cuda.rows import Geometry
from tensormd.models.inference.tables import build_table

BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-10}
SHAPES = [(0, 16), (1, 24), (5, 16), (5, 64), (5, 128), (5, 160), (33, 24)]

_patch = interpreter._patch_lang_tensor


def _patch_with_index(tensor: Any) -> None:
    # Triton 3.5's interpreter reads loop bounds with int(array), which NumPy 2.4 refuses.
    _patch(tensor)
    tensor.__index__ = lambda self: self.handle.data.item()


interpreter._patch_lang_tensor = _patch_with_index

reference, kernels = TorchOperators(), TritonOperators()


def assert_equal(found: Any, expected: Any, bound: float) -> None:
    """Within ``bound`` of the largest magnitude."""
    if not isinstance(expected, Tensor):
        for a, b in zip(found, expected, strict=True):
            assert_equal(a, b, bound)
        return
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    if expected.numel():
        assert expected.abs().max() > 0
        assert (found - expected).abs().max() <= bound * expected.abs().max()


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=SHAPES, ids=str)
def shape(request: pytest.FixtureRequest) -> tuple[int, int]:
    return request.param


def geometry(operators: Any, case: Any, dtype: torch.dtype) -> Geometry:
    graph = case.graph
    return operators.geometry(
        graph.positions,
        graph.cell,
        graph.system,
        case.edges,
        length=1.3,
        lower=LOWER / 1.3,
        cutoff=CUTOFF / 1.3,
        intervals=INTERVALS,
        dtype=dtype,
    )


@pytest.mark.parametrize("atoms", [0, 1, 5, 33])
def test_geometry(atoms: int, dtype: torch.dtype) -> None:
    case = make_case(atoms, 16, dtype)
    found, expected = geometry(kernels, case, dtype), geometry(reference, case, dtype)
    assert torch.equal(found.knot, expected.knot)
    inside = expected.knot >= 0
    if atoms > 1:
        assert inside.any()
        assert not inside.all(), "no pair of the skin to skip"
    assert_equal(found.unit[inside], expected.unit[inside], BOUNDS[dtype])
    assert_equal(found.distance[inside], expected.distance[inside], BOUNDS[dtype])
    assert_equal(found.fraction[inside], expected.fraction[inside], BOUNDS[dtype])


def test_embedding(shape: tuple[int, int], dtype: torch.dtype) -> None:
    case = make_case(*shape, dtype)
    at = geometry(reference, case, dtype)
    species = (case.receiver, case.sender, case.graph.numbers)
    own = case.at_zero[: shape[1]].contiguous()

    def embed(operators: Any) -> Tensor:
        return operators.embed(at, case.edges, case.table, own, *species)

    def backward(operators: Any) -> Tensor:
        return operators.embed_backward(at, case.edges, case.table, *species, case.g)

    assert_equal(embed(kernels), embed(reference), BOUNDS[dtype])
    assert_equal_inside(at, backward(kernels), backward(reference), BOUNDS[dtype])


def test_message(shape: tuple[int, int], dtype: torch.dtype) -> None:
    case = make_case(*shape, dtype)
    at = geometry(reference, case, dtype)
    fixed = (at, case.edges, case.table, case.at_zero)
    assert_equal(kernels.message(*fixed, case.y), reference.message(*fixed, case.y), BOUNDS[dtype])
    d_y, d_distance = kernels.message_backward(*fixed, case.y, case.g)
    expected_y, expected_distance = reference.message_backward(*fixed, case.y, case.g)
    assert_equal(d_y, expected_y, BOUNDS[dtype])
    assert_equal_inside(at, d_distance, expected_distance, BOUNDS[dtype])


def assert_equal_inside(at: Geometry, found: Tensor, expected: Tensor, bound: float) -> None:
    inside = at.knot >= 0
    assert_equal(found[inside], expected[inside], bound)


@pytest.mark.parametrize("atoms", [0, 1, 5, 33])
def test_forces(atoms: int, dtype: torch.dtype) -> None:
    case = make_case(atoms, 16, dtype)
    at = geometry(reference, case, dtype)
    generator = torch.Generator().manual_seed(1)
    room = case.edges.senders.shape[0]
    d_vector = torch.randn(room, 3, generator=generator, dtype=torch.float64).to(dtype)
    d_distance = torch.randn(room, generator=generator, dtype=torch.float64).to(dtype)
    # Kernels leave these unset: they must not be read.
    d_vector[at.knot < 0] = torch.nan
    d_distance[at.knot < 0] = torch.nan
    found = kernels.forces(at, case.edges, d_vector, d_distance)
    expected = reference.forces(at, case.edges, d_vector, d_distance)
    if atoms == 1:
        assert not torch.stack([found[0].abs().max(), found[1].abs().max()]).any()
    else:
        assert_equal(found, expected, 1e-12)


@pytest.mark.parametrize("atoms", [0, 33, 700])
def test_sums_by_system(atoms: int) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(atoms, 10, generator=generator, dtype=torch.float64)
    system = torch.randint(0, 3, (atoms,), generator=generator)
    found = kernels.sum_by_system(values, system, 4)
    assert not found[3].any()
    if atoms:
        assert_equal(found, reference.sum_by_system(values, system, 4), 1e-14)


@pytest.mark.parametrize("parity", [True, False], ids=["O(3)", "SO(3)"])
def test_products(shape: tuple[int, int], dtype: torch.dtype, parity: bool) -> None:
    case = make_case(*shape, dtype)
    for name, arguments in (
        ("combine", (case.x, case.y, case.charge_factor, parity)),
        ("combine_adjoint", (case.x, case.y, case.charge_factor, parity, case.g)),
        ("update", (case.x, case.y, case.charge_factor)),
        ("update_adjoint", (case.y, case.charge_factor, case.g)),
    ):
        found = getattr(kernels, name)(*arguments)
        assert_equal(found, getattr(reference, name)(*arguments), BOUNDS[dtype])


def test_norms_and_gates(shape: tuple[int, int], dtype: torch.dtype) -> None:
    case = make_case(*shape, dtype)
    for name, arguments in (
        ("normalize", (case.x,)),
        ("normalize_adjoint", (case.x, case.g)),
        ("norm_squared", (case.x,)),
        ("norm_squared_adjoint", (case.x, case.g[0].contiguous())),
        ("irrep_norms_squared", (case.x,)),
        ("irrep_norms_squared_adjoint", (case.x, case.factors)),
        ("gate", (case.x, case.factors)),
        ("gate_adjoint", (case.x, case.factors, case.g)),
    ):
        found = getattr(kernels, name)(*arguments)
        assert_equal(found, getattr(reference, name)(*arguments), BOUNDS[dtype])


@pytest.mark.parametrize(
    "variant",
    [{}, {"group": "SO(3)", "self_interaction": False, "head": "gated"}, {"layers": 0}],
    ids=["O(3)", "SO(3)", "no layers"],
)
def test_whole_pass(variant: dict[str, Any]) -> None:
    potential = make_potential(channels=24, cutoff=2.6, **variant)
    table, _ = build_table(potential)
    systems = [ethanol(charge=1.0), tiny(1), System(np.array([6]), np.zeros((1, 3)))]
    graph = batch_graphs([s.graph(2.6, skin=0.1) for s in systems])
    found = CUDATensorNet(potential, kernels, table)(graph)
    assert_equal(found, plain_pass(potential, table)(graph), 1e-11)
    assert found.forces.abs().max() > 0.1


def test_the_comparison_can_fail() -> None:
    case = make_case(5, 16)
    wrong = case.y.clone()
    wrong[3, 2, 1] *= 1 + 1e-6
    expected = reference.combine(case.x, case.y, case.charge_factor, True)
    with pytest.raises(AssertionError):
        assert_equal(kernels.combine(case.x, wrong, case.charge_factor, True), expected, 1e-10)
